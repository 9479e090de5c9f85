"""How fast a lane may go: a rate under the ceiling, learnt from accepted and throttled calls.

The problem. The service throttles by a token bucket of its own, with a rate R and a burst B that
nobody publishes. Too fast wastes calls on throttles, too slow wastes the night. While B lasts, any
rate is accepted, so acceptance alone says little about R.

The naive way is backoff alone (half of all calls throttled), halving on every throttle, or CUBIC
(simulated: 20 to 38 % of R unused at 50/s and more). Two traps lie deeper. Throttles arrive one
latency late and in groups, so reacting to each of them collapses the rate. And a service with B = 1
that is called at just above R throttles every second call: whoever then trusts the accepted rate
learns R / 2.

Ours, plain AIMD with five rules:

1. *Search.* From 25/s every accepted call adds 2.5/s, which doubles the rate every 0.28 s. The
   calls in flight are what a wrong guess may waste, so the search never has more of them than 8 or
   8 % of the calls accepted so far, whichever is more. With a long latency that is the brake.
2. *Cut, once a round.* Only a throttled call that left after the last cut, and was spaced by the
   new rate, cuts again. The cut is to 92 % of the rate at which that call left, not of today's.
3. *Measure.* At two throttles the service's bucket was empty, so what it accepted in between is
   what it refilled. When throttles follow each other closely the second cut goes down to that
   delivery rate at once, to 30 % at most.
4. *Hold.* A search that was cut beyond 80/s has had several doublings to guess badly in, so that
   cut is halved for one round. What was in flight then tells where to go on: to the delivery rate
   if clearly more was throttled than accepted (at B = 1 it is half and half), else to the 92 %.
5. *Probe.* After a cut every accepted call adds 0.02/s, that is 2 % of the rate per second. A rate
   25 % above the last cut without a throttle means that the limit has moved: the search resumes.

Growth is per accepted call, so an idle lane does not grow; and it stops while the lane uses less
than 80 % of its rate, since a rate that is not used is not proven.

What it does not do. It does not look for a rival's share, does not read latency (a token bucket
answers a throttled call fast), and keeps probing with a sawtooth. Where B is 1 or 2 and the latency
varies by more than 1 / R, calls bunch on the way and are throttled at any rate near R; it then
settles well below R. A learner that paces at the
measured rate can replace it behind the same protocol.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from dispatcher.model import Pace

# The figures below were tuned together in the simulation of tests/property/test_rate_control.py:
# R = 40/s, B from 1 to 80, latency from 2 to 200 ms, 200 calls and more. The tightest corner is 200
# calls at B = 1 and 190 ms; a start of 20/s already costs 16 % there. Change them by measurement.
FLOOR_PER_S = 0.5
"""The slowest rate: even in a throttle storm a lane asks once in two seconds (botocore's floor)."""
START_PER_S = 25.0
_SEARCH_STEP = 2.5
_FREE_CALLS = 8.0
_RISK_SHARE = 0.08
_KEEP = 0.92
_DEEPEST_KEEP = 0.3
_HOLD_BEYOND_PER_S = 80.0
_HOLD_CALLS = 3.0  # with fewer in flight a round teaches nothing worth waiting for
_HOLD_KEEP = 0.5
_PROBE_STEP = 0.02
_RESUME_ABOVE = 1.25
_SPAN_CALLS = 16
_USED_SHARE = 0.8
_USAGE_CALLS = 16
_USAGE_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSnapshot:
    """What a rate controller believes, for status and for the next run's warm start."""

    rate_per_s: float
    """The rate allowed now."""
    ceiling_per_s: float
    searching: bool
    """True while no limit is known at this rate."""
    cuts: int
    """How often throttles lowered the rate."""


class RateController(Protocol):
    """Decides how fast a lane may go; one per lane."""

    @property
    def rate_per_s(self) -> float:
        """The rate allowed now, in calls per second."""

    def observe(self, now_s: float, pace: Pace, *, sent_at_s: float) -> float:
        """Learn from one answer to a call that left at `sent_at_s`; return the rate allowed now."""

    def snapshot(self) -> RateSnapshot:
        """Return what is believed now, as a value."""


class FixedRate:
    """Always the ceiling: for tests, benchmarks and services with a known limit."""

    __slots__ = ("_ceiling_per_s",)

    def __init__(self, ceiling_per_s: float) -> None:
        self._ceiling_per_s = _checked(ceiling_per_s)

    @property
    def rate_per_s(self) -> float:
        """The ceiling."""
        return self._ceiling_per_s

    def observe(self, now_s: float, pace: Pace, *, sent_at_s: float) -> float:  # noqa: ARG002
        """Learn nothing."""
        return self._ceiling_per_s

    def snapshot(self) -> RateSnapshot:
        """Return the ceiling as a value."""
        rate = self._ceiling_per_s
        return RateSnapshot(rate_per_s=rate, ceiling_per_s=rate, searching=False, cuts=0)


class Aimd:
    """Additive increase, multiplicative decrease, with slow start under a ceiling.

    The rate is always a finite number in [min(0.5, ceiling), ceiling]. `start_per_s` is a rate
    learnt earlier: it is probed from, not searched from.
    """

    def __init__(self, ceiling_per_s: float, start_per_s: float | None = None, *, now_s: float) -> None:
        """Start at `start_per_s`, or search from 25/s; the ceiling holds in any case.

        Raises:
            ValueError: a rate that is not positive and finite.
        """
        self._ceiling_per_s = _checked(ceiling_per_s)
        self._floor_per_s = min(FLOOR_PER_S, ceiling_per_s)
        start = START_PER_S if start_per_s is None else _checked(start_per_s)
        self._rate_per_s = self._clamp(start)
        self._search_above = 0.0 if start_per_s is None else self._rate_per_s * _RESUME_ABOVE
        self._history = deque([(now_s, self._rate_per_s)])
        self._latency_s: float | None = None
        self._accepted = 0
        self._usage = _Usage()
        self._span: _Span | None = None
        self._cuts = 0
        self._cut_at_s = -math.inf
        self._held_for: float | None = None  # where a halved cut goes on to after its round

    @property
    def rate_per_s(self) -> float:
        """The rate allowed now, in calls per second."""
        return self._rate_per_s

    def snapshot(self) -> RateSnapshot:
        """Return what is believed now, as a value."""
        return RateSnapshot(
            rate_per_s=self._rate_per_s,
            ceiling_per_s=self._ceiling_per_s,
            searching=self._is_searching(),
            cuts=self._cuts,
        )

    def observe(self, now_s: float, pace: Pace, *, sent_at_s: float) -> float:
        """Learn from one answer to a call that left at `sent_at_s`; return the rate allowed now.

        Faults and quota answers say nothing about the rate. Both instants are monotonic seconds.
        """
        sent_rate = self._rate_at(sent_at_s)
        latency_s = max(0.0, now_s - sent_at_s)
        old_s = latency_s if self._latency_s is None else self._latency_s
        self._latency_s = old_s + (latency_s - old_s) / 8.0  # TCP's smoothing (RFC 6298)
        self._usage.count(now_s, sent_rate)
        after_cut = sent_at_s > self._cut_at_s
        if after_cut and self._held_for is not None:
            self._release(now_s, self._held_for)
        if pace is Pace.OK:
            self._accepted += 1
            if self._span is not None:
                self._span.accepted += 1
            if after_cut and self._usage.is_used:
                self._rate_per_s = self._clamp(self._rate_per_s + self._step())
        elif pace is Pace.THROTTLE:
            if self._span is not None:
                self._span.throttled += 1
            # The first call after a cut was still spaced by the old rate: wait one spacing more.
            if sent_at_s > self._cut_at_s + 1.0 / self._rate_per_s:
                self._cut(now_s, sent_rate)
        if self._rate_per_s != self._history[-1][1]:
            self._history.append((now_s, self._rate_per_s))
        return self._rate_per_s

    def _is_searching(self) -> bool:
        return self._rate_per_s >= self._search_above

    def _step(self) -> float:
        """Calls per second that one accepted call adds to the rate."""
        if not self._is_searching():
            return _PROBE_STEP
        in_flight = max(_FREE_CALLS, _RISK_SHARE * self._accepted)
        affordable = in_flight / max(self._latency_s or 0.0, 1e-9)
        return max(0.0, min(_SEARCH_STEP, affordable - self._rate_per_s))

    def _cut(self, now_s: float, sent_rate: float) -> None:
        """Lower the rate because a call that left at `sent_rate` was throttled."""
        target = _KEEP * sent_rate
        if self._span is not None:
            target = min(target, max(_DEEPEST_KEEP * sent_rate, self._span.delivered_per_s(now_s)))
        if self._span is None or self._span.accepted >= _SPAN_CALLS:
            self._span = _Span(now_s)  # the old one has told its tale; a short one goes on
        target = min(self._rate_per_s, self._clamp(target))
        in_flight = sent_rate * (self._latency_s or 0.0)
        is_far = self._is_searching() and sent_rate >= _HOLD_BEYOND_PER_S and in_flight >= _HOLD_CALLS
        self._held_for = target if is_far else None
        self._rate_per_s = self._clamp(target * _HOLD_KEEP) if is_far else target
        self._search_above = target * _RESUME_ABOVE
        self._cut_at_s = now_s
        self._cuts += 1

    def _release(self, now_s: float, target: float) -> None:
        """End a hold: every call of the round before it has been answered."""
        self._held_for = None
        if self._span is not None and self._span.is_swamped:
            target = min(target, self._span.delivered_per_s(now_s))
        self._rate_per_s = self._clamp(max(self._rate_per_s, target))
        self._search_above = self._rate_per_s * _RESUME_ABOVE

    def _rate_at(self, sent_at_s: float) -> float:
        """Return the rate that spaced the call which left at `sent_at_s`.

        That is the rate one spacing earlier. Older entries are dropped: answers come in the order
        of departure, or nearly so.
        """
        history = self._history
        while len(history) > 1 and history[1][0] <= sent_at_s - 1.0 / history[0][1]:
            history.popleft()
        return history[0][1]

    def _clamp(self, rate: float) -> float:
        return max(self._floor_per_s, min(self._ceiling_per_s, rate))


class _Span:
    """What the service answered since a throttle, when its bucket was known to be empty."""

    __slots__ = ("_since_s", "accepted", "throttled")

    def __init__(self, since_s: float) -> None:
        self._since_s = since_s
        self.accepted = 0
        self.throttled = 0

    @property
    def is_swamped(self) -> bool:
        """Tell whether more was throttled than the every-second-call of B = 1 explains."""
        return self.throttled >= self.accepted + 2

    def delivered_per_s(self, now_s: float) -> float:
        """Return the accepted rate; half a call is added, since a count rounds down."""
        elapsed_s = now_s - self._since_s
        return (self.accepted + 0.5) / elapsed_s if elapsed_s > 0.0 else math.inf


class _Usage:
    """Whether the lane uses the rate it is allowed, judged over at least 0.25 s and 16 answers."""

    __slots__ = ("_allowed", "_answers", "_last_s", "_span_s", "is_used")

    def __init__(self) -> None:
        self.is_used = True
        self._last_s: float | None = None
        self._answers = 0
        self._allowed = 0.0
        self._span_s = 0.0

    def count(self, now_s: float, sent_rate: float) -> None:
        """Add one answer to a call that was allowed at `sent_rate`."""
        if self._last_s is not None:
            gap_s = max(0.0, now_s - self._last_s)
            self._answers += 1
            self._span_s += gap_s
            self._allowed += gap_s * sent_rate
        self._last_s = now_s
        if self._answers >= _USAGE_CALLS and self._span_s >= _USAGE_S:
            self.is_used = self._answers >= _USED_SHARE * self._allowed
            self._answers, self._allowed, self._span_s = 0, 0.0, 0.0


def _checked(rate_per_s: float) -> float:
    if not (math.isfinite(rate_per_s) and rate_per_s > 0.0):
        raise ValueError(f"rate must be positive and finite, got {rate_per_s!r} per second")
    return rate_per_s
