"""A budget for retries after faults, so that an outage never becomes a storm.

The problem. When half of all calls fail and each failure is sent again, a service in trouble gets
twice the load just when it can bear least. Backoff only postpones that.

The naive way is a quota that refuses (botocore: 500 units, 5 a retry, 1 back per success: after
about 100 retries without a success it stops retrying, silently). A bulk run must not drop a
device's command because others failed.

Ours is the same ledger, except that it delays and never drops. It holds `capacity` units; a retry
takes `cost`; a success gives back 1; time gives back enough for `trickle_per_s` retries a second.
A retry that finds the ledger empty goes into debt and waits until the trickle alone has paid:

    balance ← min(capacity, balance + successes + cost · trickle_per_s · dt) − cost
    delay   = max(0, −balance) / (cost · trickle_per_s)

So from the start of a run, retries ≤ capacity / cost + successes / cost + trickle_per_s · t: with the
defaults 100, plus 20 % of the successes, plus 10 a second. 20 % and 10/s are Finagle's retry
budget (https://finagle.github.io/blog/2016/02/08/retry-budgets), 500 and 5 are botocore's
`retries/quota.py` and `retries/standard.py`; gRPC's A6 has the same form. With faults up to a
sixth of all calls the budget never runs dry (1/6 failing is one retry for five successes), so
honest recovery is not slowed.

What it does not do. Throttled calls do not come here: the rate controller answers for them. It
adds no jitter (`backoff` does; wait for the longer of the two). A delay once told is not shortened
by later successes, but it is bounded: no batch has more than one retry waiting, so the longest
delay is live batches / trickle_per_s.
"""

from __future__ import annotations

import math


class RetryQuota:
    """Retries limited to a share of the successes plus a trickle, by delay."""

    __slots__ = ("_as_of_s", "_balance", "_capacity", "_cost", "_trickle_per_s")

    def __init__(
        self, *, now_s: float, capacity: float = 500.0, cost: float = 5.0, trickle_per_s: float = 10.0
    ) -> None:
        """Start full at the monotonic instant `now_s`.

        Args:
            now_s: monotonic seconds.
            capacity: the most units that gather; capacity / cost retries may go at once.
            cost: units a retry takes; 1 / cost is the share of successes that may be retries.
            trickle_per_s: retries a second that are always allowed.

        Raises:
            ValueError: a figure that is not positive and finite, or a capacity below the cost.
        """
        if not all(math.isfinite(figure) and figure > 0.0 for figure in (capacity, cost, trickle_per_s)):
            raise ValueError("capacity, cost and trickle of a retry quota must be positive and finite")
        if capacity < cost:
            raise ValueError(f"a capacity of {capacity!r} cannot pay for one retry of {cost!r}")
        self._capacity = capacity
        self._cost = cost
        self._trickle_per_s = trickle_per_s
        self._balance = capacity
        self._as_of_s = now_s

    @property
    def balance(self) -> float:
        """Units left at the latest instant seen; negative while retries are waiting."""
        return self._balance

    def __repr__(self) -> str:
        return f"<RetryQuota {self._balance:g} of {self._capacity:g}>"

    def succeeded(self) -> None:
        """Give back one unit, for a call that was answered without a fault."""
        self._balance = min(self._capacity, self._balance + 1.0)

    def take(self, now_s: float) -> float:
        """Pay for one retry and return the seconds it must wait, 0 while the budget lasts."""
        elapsed_s = max(0.0, now_s - self._as_of_s)  # a clock that steps back pays nothing
        self._as_of_s += elapsed_s
        per_s = self._cost * self._trickle_per_s
        self._balance = min(self._capacity, self._balance + per_s * elapsed_s) - self._cost
        return max(0.0, -self._balance) / per_s
