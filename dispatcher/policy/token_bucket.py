"""Admission by rate: a token bucket kept as a ledger of debt.

The problem. A lane may send `rate_per_s` calls a second and, after a pause, `burst` of them at
once. The promise to keep is about *departures*: in any window of T seconds at most
rate · T + burst calls leave, whatever the arrival pattern, through retries, rate changes,
cancellations and restarts.

The naive way is a counter, a lock and a list of waiters that are woken to try again. Waking all
of them for every permit is O(n²) (botocore's adaptive mode: 88 % of a core for 1,000 waiters) and
wakes them in no particular order. Its accrual, `level += rate * dt` on every call, adds a rounding
error each time, and those errors accumulate.

Ours. A reservation is subtracted at once and may take the level below zero; the debt *is* the
queue, and the wait is debt / rate. No waiter list, no wake-ups, O(1). The level is not summed up:
it is computed from an anchor as `anchor level + rate · (now − anchor) − taken`, so a rounding
error never outlives one evaluation.

How it must be used. The admission shell serialises callers at a FIFO gate and only the head of
that gate holds a reservation: it reserves, waits, departs, and only then does the next one
reserve. Two things follow. A rate change takes effect at once, since at most one call was promised
an instant under the old rate (the head may also `refund` and reserve again). And a loop that
stalls for five seconds cannot bunch calls: had a hundred callers reserved ahead, all their
instants would have passed during the stall and they would leave together.

What it does not do. It knows no clock, does not sleep, and does not choose the rate
(`rate_control` does). It assumes a monotonic clock; one that steps back is never paid for twice,
at the price of waiting until it has caught up.
"""

from __future__ import annotations

import math

_INSTANT_S = 1e-9
"""Waits shorter than this are none: a clock of a machine up for a month resolves no less."""


class TokenBucket:
    """Permits accrue at `rate_per_s` up to `burst`; debt makes callers wait in order.

    Bound: if every call departs no earlier than its reservation plus the delay it was told (at once
    if that is 0), and the next reserves no earlier than that departure, then any N departures within
    T seconds obey N ≤ rate · T + burst (rate: the highest in the window), each instant read to
    within 1 ns.

    Proof sketch: every permit stays in the bucket until its call leaves. One that must wait may leave
    late, so its permit stays until `departed` tells the instant, or else until the next reservation,
    the latest instant possible; the cap at `burst` applies with it inside. So right
    after the first of N departures the level is at most burst − 1, it gains at most rate · T in the
    window, and after the last departure it is not negative: N − 1 ≤ burst − 1 + rate · T. If the
    rate fell while the head waited, it may leave with a debt that the old rate explains; a window
    which does not contain the old rate then holds that one departure first, and the debt after it.
    The bound also holds for callers that reserve ahead and depart *exactly* on time, as long as
    neither a refund nor a rate change comes between.

    A bucket that starts with level 0 adds no burst of its own, so a run and its restart at the
    same rate keep the bound together.
    """

    __slots__ = ("_anchor_level", "_anchor_s", "_as_of_s", "_burst", "_rate_per_s", "_taken", "_waiting")

    def __init__(self, rate_per_s: float, burst: float, *, now_s: float, level: float = 0.0) -> None:
        """Start with `level` permits at the monotonic instant `now_s`.

        Raises:
            ValueError: a rate that is not positive and finite, a burst below 1, a level above it.
        """
        if not (math.isfinite(burst) and burst >= 1.0):
            raise ValueError(f"burst must be at least 1, got {burst!r}")
        if not (math.isfinite(level) and level <= burst):
            raise ValueError(f"level must be finite and at most the burst of {burst!r}, got {level!r}")
        self._rate_per_s = _checked_rate(rate_per_s)
        self._burst = burst
        self._anchor_s = now_s
        self._anchor_level = level
        self._taken = 0.0  # permits that left since the anchor
        self._waiting = 0.0  # the newest permit, if its call had to wait and may not have left yet
        self._as_of_s = now_s  # the latest instant seen

    @property
    def rate_per_s(self) -> float:
        """Permits accrued per second."""
        return self._rate_per_s

    @property
    def burst(self) -> float:
        """The most permits that may gather while nobody calls."""
        return self._burst

    @property
    def level(self) -> float:
        """Permits free at the latest instant seen; negative while a reservation is in debt."""
        return self._stock() - self._waiting

    def __repr__(self) -> str:
        return f"<TokenBucket {self.level:.3f} of {self._burst:g} at {self._rate_per_s:g}/s>"

    def reserve(self, now_s: float, cost: float = 1.0) -> float:
        """Take `cost` permits and return the seconds to wait before using them, never negative.

        Raises:
            ValueError: a cost that is not positive, or above the burst and so never affordable.
        """
        if not 0.0 < cost <= self._burst:
            raise ValueError(
                f"a cost must be positive and at most the burst of {self._burst!r}, got {cost!r}"
            )
        free = self._all_left(now_s) - cost
        wait_s = -free / self._rate_per_s
        behind_s = self._as_of_s - now_s  # positive only if the clock stepped back
        if wait_s <= _INSTANT_S:
            self._taken += cost
            return behind_s
        self._waiting = cost
        return behind_s + wait_s

    def departed(self, now_s: float) -> None:
        """Say that the call which had to wait has left now; optional.

        Without it the next reservation assumes the worst, that it left only then, and an idle lane
        may find one permit less than its burst.
        """
        self._all_left(now_s)

    def refund(self, cost: float = 1.0) -> None:
        """Give back the newest reservation, whose call will not leave (cancelled, or asking anew)."""
        held = min(cost, self._waiting)
        self._waiting -= held
        # Never above the burst, even if more is refunded than was taken since the anchor.
        self._taken = max(self._taken - (cost - held), self._taken + self._stock() - self._burst)

    def set_rate(self, now_s: float, rate_per_s: float) -> None:
        """Accrue at the old rate up to `now_s`, and at `rate_per_s` from then on.

        Raises:
            ValueError: a rate that is not positive and finite.
        """
        checked = _checked_rate(rate_per_s)
        stock = self._accrue(now_s)  # first: the time already passed was lived at the old rate
        if checked != self._rate_per_s:
            self._rebase(stock)
            self._rate_per_s = checked

    def _all_left(self, now_s: float) -> float:
        """Move on to `now_s`, when the call that had to wait has left; return the stock."""
        stock = self._accrue(now_s) - self._waiting
        self._taken += self._waiting
        self._waiting = 0.0
        return stock

    def _stock(self) -> float:
        """Permits in the bucket at the latest instant seen, a waiting one included."""
        return self._anchor_level + self._rate_per_s * (self._as_of_s - self._anchor_s) - self._taken

    def _accrue(self, now_s: float) -> float:
        """Move on to `now_s` and return the stock; a clock that stepped back leaves everything as it is."""
        if now_s > self._as_of_s:
            self._as_of_s = now_s
        stock = self._stock()
        if stock > self._burst:
            stock = self._burst
            self._rebase(stock)
        return stock

    def _rebase(self, stock: float) -> None:
        self._anchor_s = self._as_of_s
        self._anchor_level = stock
        self._taken = 0.0


def _checked_rate(rate_per_s: float) -> float:
    if not (math.isfinite(rate_per_s) and rate_per_s > 0.0):
        raise ValueError(f"rate must be positive and finite, got {rate_per_s!r} per second")
    return rate_per_s
