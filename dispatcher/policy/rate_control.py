"""How fast a lane may go: a rate under the ceiling, learnt from accepted and throttled calls.

The problem. The service throttles by a token bucket of its own, with a rate R and a burst B that
nobody publishes. Too fast wastes calls on throttles, too slow wastes the night. While B lasts, any
rate is accepted, so acceptance alone says little about R. And not every throttle is the bucket's: a
proxy that answers 3 % of all calls with a bare 429 does so at any rate.

The naive way is backoff alone (half of all calls throttled), halving on every throttle, or CUBIC
(simulated: 20 to 38 % of R unused at 50/s and more). Three traps lie deeper. Throttles arrive one
latency late and in groups, so reacting to each of them collapses the rate. A service with B = 1
that is called at just above R throttles every second call: whoever then trusts the accepted rate
learns R / 2. And whoever cuts by a factor on each throttle has no bottom: 3 % of random throttles
took plain AIMD from 400/s to less than 15/s.

Ours is AIMD that wants evidence:

1. *Search.* From 25/s every accepted call adds 2.5/s, which doubles the rate every 0.28 s. The
   calls in flight are what a wrong guess may waste, so the search never has more of them than 8 or
   8 % of the calls accepted so far, whichever is more. With a long latency that is the brake.
2. *Suspect.* A throttled call adds 1 to the suspicion, an accepted one takes 0.18 off: it rises
   where more than 15 % is throttled. A search does not grow while it is 1 or more, and ends at 2.8,
   that is with three or four throttles close together. Only calls that left after the last cut,
   and were spaced by the new rate, add to it.
3. *Cut to what is delivered.* At a throttle the service's bucket was empty, so what it has accepted
   since the first suspect is what it refills. The cut goes there, to 30 % at most. Half and half is
   what B = 1 looks like: then it goes to 92 % of the rate at which the first suspect left.
4. *Prove.* What was accepted over a second and 32 answers is proven. Until a cut is proven, a
   further throttle cuts again, once a round. From then on a single throttle eases the rate to 92 %
   of the proven one or of its own, whichever is more: single throttles cannot drive it further.
5. *Know noise.* A suspicion that came to nothing, or a throttle at a rate at or below the eased
   one, was chance. Two of the latter and the search resumes: the limit lies elsewhere. While four
   in the last hundreds of calls were chance, 6 instead of 2.8 ends a search and single throttles
   after a cut are let pass.
6. *Probe.* Below a limit every accepted call adds 0.02/s, that is 2 % of the rate per second. At
   25 % above the last cut the limit has moved: the search resumes.

Growth is per accepted call, so an idle lane does not grow; and it stops while the lane uses less
than 80 % of its rate, since a rate that is not used is not proven.

What it does not do. It cannot rule out bad luck: in about 1 of 150 simulated runs random throttles
of 5 or 10 % bunch early, and the search resumes seconds late. It does not look for a rival's share,
does not read latency (a token bucket answers a throttled call fast), and keeps probing with a
sawtooth. Noise above some 12 % counts as a limit. With noise on top of a real limit it searches
again and again, so that a tenth of all calls or more is throttled, for the sake of finding a limit
that moved. Where B is 1 or 2 and the latency varies by more than 1 / R, calls bunch on the way and
are throttled at any rate near R; it then settles well below R. A learner that paces at the measured
rate can replace it behind the same protocol.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from dispatcher.model import Pace

# The figures below were tuned together in the simulation of tests/property/test_rate_control.py:
# R = 40/s, B from 1 to 80, latency from 2 to 200 ms, 200 calls and more, and noise up to 10 %. The
# tightest corners are 200 calls at B = 1 and 190 ms and at B = 80. Change them by measurement.
FLOOR_PER_S = 0.5
"""The slowest rate: even in a throttle storm a lane asks once in two seconds (botocore's floor)."""
START_PER_S = 25.0
_SEARCH_STEP = 2.5
_FREE_CALLS = 8.0
_RISK_SHARE = 0.08
_KEEP = 0.92
_DEEPEST_KEEP = 0.3
_PROBE_STEP = 0.02
_RESUME_ABOVE = 1.25
_SPAN_CALLS = 16
_TRUST = 0.18  # what an accepted call takes off the suspicion
_CALM = 1.0  # a search grows below this suspicion
_SURE = 2.8
_SURE_IN_NOISE = 6.0
_NOISY = 4.0
_FORGET = 0.01  # what an accepted call takes off the noise
_STRAYS = 2
_NEAR = 0.97  # an ease that would change less than this is none
_PROOF_CALLS = 32
_PROOF_S = 1.0
_FADE = 0.99  # what a proof keeps when a later one is lower
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
    """Additive increase, decrease to what is delivered, with slow start under a ceiling.

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
        self._cuts = 0
        self._cut_at_s = -math.inf
        self._suspicion = 0.0
        self._suspect_rate = self._rate_per_s  # at which the first suspect left
        self._span = _Span(now_s)  # since then, when the service's bucket was empty
        self._proof = _Span(now_s)
        self._proven_per_s: float | None = None
        self._strays = 0  # throttles at a proven rate
        self._noise = 0.0  # throttles lately that were chance

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
        if pace is Pace.OK:
            self._accept(sent_at_s)
        elif pace is Pace.THROTTLE:
            self._throttle(now_s, sent_at_s, sent_rate)
        self._prove(now_s)
        if self._rate_per_s != self._history[-1][1]:
            self._history.append((now_s, self._rate_per_s))
        return self._rate_per_s

    def _accept(self, sent_at_s: float) -> None:
        self._accepted += 1
        self._span.accepted += 1
        self._proof.accepted += 1
        if sent_at_s <= self._cut_at_s:
            return
        self._noise = max(0.0, self._noise - _FORGET)
        if 0.0 < self._suspicion <= _TRUST and self._is_searching():
            self._dismiss(self._span.throttled)
        self._suspicion = max(0.0, self._suspicion - _TRUST)
        if self._usage.is_used and self._suspicion < _CALM:
            self._rate_per_s = self._clamp(self._rate_per_s + self._step())

    def _throttle(self, now_s: float, sent_at_s: float, sent_rate: float) -> None:
        # The first call after a cut was still spaced by the old rate: wait one spacing more.
        is_fresh = sent_at_s > self._cut_at_s + 1.0 / self._rate_per_s
        if is_fresh and self._suspicion == 0.0:
            self._suspect_rate = sent_rate
            if self._is_searching() or self._proven_per_s is not None or self._cuts == 0:
                self._span = _Span(now_s)
        self._span.throttled += 1
        self._proof.throttled += 1
        if is_fresh:
            self._suspicion += 1.0
            self._judge(now_s, sent_rate)

    def _judge(self, now_s: float, sent_rate: float) -> None:
        """Decide what a throttle means that today's rate may have caused."""
        is_noisy = self._noise >= _NOISY
        proven = self._proven_per_s
        if self._suspicion >= (_SURE_IN_NOISE if is_noisy else _SURE):
            self._proof, self._proven_per_s = _Span(now_s), None
            suspect = min(sent_rate, self._suspect_rate)
            halved = self._span.is_halved
            self._cut(now_s, _KEEP * suspect if halved else self._delivered(now_s, sent_rate))
            self._span = _Span(now_s)
        elif self._is_searching():
            return
        elif proven is None:
            if not is_noisy:
                self._cut(now_s, self._delivered(now_s, sent_rate))
                if self._span.accepted >= _SPAN_CALLS:
                    self._span = _Span(now_s)  # the old one has told its tale; a short one goes on
        elif _NEAR * sent_rate > _KEEP * proven:
            self._lower(now_s, _KEEP * max(sent_rate, proven))
        else:
            self._dismiss(1)
            self._strays += 1
            if self._strays >= _STRAYS:
                self._strays, self._search_above = 0, 0.0

    def _dismiss(self, throttles: int) -> None:
        """Count throttles as chance."""
        self._noise = min(2.0 * _NOISY, self._noise + throttles)

    def _is_searching(self) -> bool:
        return self._rate_per_s >= self._search_above

    def _step(self) -> float:
        """Calls per second that one accepted call adds to the rate."""
        if not self._is_searching():
            return _PROBE_STEP
        in_flight = max(_FREE_CALLS, _RISK_SHARE * self._accepted)
        affordable = in_flight / max(self._latency_s or 0.0, 1e-9)
        return max(0.0, min(_SEARCH_STEP, affordable - self._rate_per_s))

    def _delivered(self, now_s: float, sent_rate: float) -> float:
        """Return where a cut goes that follows what the service delivers."""
        delivered = max(_DEEPEST_KEEP * sent_rate, self._span.delivered_per_s(now_s))
        return min(_KEEP * sent_rate, delivered)

    def _cut(self, now_s: float, target: float) -> None:
        """Lower the rate and start to judge anew."""
        self._lower(now_s, target)
        self._suspicion = 0.0
        self._strays = 0

    def _lower(self, now_s: float, target: float) -> None:
        self._rate_per_s = min(self._rate_per_s, self._clamp(target))
        self._search_above = self._rate_per_s * _RESUME_ABOVE
        self._cut_at_s = now_s
        self._cuts += 1

    def _prove(self, now_s: float) -> None:
        """Take what was delivered over a second and 32 answers as proven."""
        proof = self._proof
        if proof.accepted + proof.throttled >= _PROOF_CALLS and now_s - proof.since_s >= _PROOF_S:
            delivered = proof.delivered_per_s(now_s)
            self._proven_per_s = max(delivered, (self._proven_per_s or 0.0) * _FADE)
            self._proof = _Span(now_s)

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
    """What the service answered since an instant."""

    __slots__ = ("accepted", "since_s", "throttled")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.accepted = 0
        self.throttled = 0

    @property
    def is_halved(self) -> bool:
        """Tell whether every second call was throttled, as B = 1 does it; the first one was."""
        return 0 <= self.throttled - self.accepted <= 1

    def delivered_per_s(self, now_s: float) -> float:
        """Return the accepted rate; a part of a call is added, since a count rounds down."""
        elapsed_s = now_s - self.since_s
        return (self.accepted + 0.25) / elapsed_s if elapsed_s > 0.0 else math.inf


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
