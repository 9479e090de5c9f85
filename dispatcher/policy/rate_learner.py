"""Find the rate that a service allows, and hold it.

The problem. The service throttles by a token bucket: it refills at a rate R and holds at most B calls,
and nobody publishes either. Too fast wastes calls, too slow wastes the night. While B lasts, any rate is
accepted, so acceptance alone says nothing about R; answers are late, by a latency that varies; and not
every throttle is the bucket's: a proxy or a rival makes some at any rate.

The naive ways. Backoff alone throttles half of all calls. Cutting by a factor on each throttle (AIMD)
overreacts to the ten throttles of one latency, has no bottom under random throttles, and comes back at a
speed that fits one rate only. CUBIC remembers the rate of the last throttle, not of the service, and
leaves a fifth or a third unused. Taking the accepted rate for R errs both ways: while B lasts it is too
high, and after any pause too low.

Ours rests on one fact. When a call was throttled the bucket was empty, and from then on it accepts what
it refills: between two throttles *accepted calls over time are R*, exactly, if the bucket did not
overflow meanwhile, and never more than R. So:

1. *Climb* from 10 calls/s, doubling while clean, until three throttles come close together. Then take
   the share that was accepted for a first estimate, and the bucket for empty.
2. *Hold* 1.25 % below the estimate for a while: the bucket fills a little. A hold that is throttled in
   earnest takes the estimate down to what was delivered since the bucket was empty.
3. *Probe* a little above it. The bucket pays for this with what the hold put in, so being clean proves
   nothing until more was accepted since the last throttle than the estimate explains. Mostly a throttle
   comes first, at the cost of a call or two: the estimate takes most of the way to the average between
   the two throttles, and the next hold is twice as long, up to 80 calls and 8 s.
4. *Climb on* where the probe passes that point: the limit has moved. Steps double while clean. A throttle
   ends it at the last step that was proven.
5. *Cut* where three throttles come close together in a hold: the limit fell. Take the accepted share, and
   climb from there by 8 %, each step measured against the average since the cut, not against itself.

Only calls that left after a change of rate, and one latency later where the change was a reaction to
throttles, are judged by it: one round of throttles is one piece of evidence.

*Chance.* Where a hold was throttled, the rate eased to what was delivered, and the same share is
throttled again, rate is not the cause: the share is taken for noise, the ease is undone, and from then on
as many throttles are let pass. The noise is always taken a tenth too low, so that a wrong one heals.

*Storms.* Where nothing is accepted through two cuts, the estimate from before is remembered while the
rate sinks to the floor of 0.5 calls/s; the first accepted call brings back an eighth of it, and it doubles
from there as at a warm start: from half of what an earlier process learnt, and after a minute of silence.

*Fairness.* A probe's step is 30 % / sqrt(rate), at least 1.5 %: of two runs on one account the slower one
gains relatively more, and a throttle costs both in proportion, so shares drift together. `share` holds
that part of the estimate, leaves the rest to others, and learns anew every ten minutes.

What it does not do. With B of 1 to 2 calls and a latency that varies by more than 1 / R, calls bunch on
the way and are throttled at any rate near R; nobody who paces departures can help that. It neither reads
latency nor knows of rivals. Every hold ends in a probe, so one or two calls in a hundred or more are
throttled for as long as there is a limit. It learns from what is sent: a lane that does not use its rate
learns nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dispatcher.model import Pace
from dispatcher.policy.rate_control import FLOOR_PER_S, RateSnapshot, RateState, checked
from dispatcher.policy.rate_evidence import Drained, Noise, Suspicion

if TYPE_CHECKING:
    from dispatcher.policy.rate_control import Departure

# Tuned together in the laboratory (`python -m bench rate`; docs/rate.md has its tables): R from 1 to
# 10,000/s, B from 1 to 10 seconds of R, latencies from 5 ms to 2 s. Change them by measurement.
START_PER_S = 10.0
MARGIN = 0.0125
LEAST_STEP = 0.015
"""A probe's least step, relative."""
_STEP_ROOT = 0.3
_STEP_CALLS = 0.3  # a probe's step adds at most so many calls in flight, where that is above the least
_MOST_PROBE = 0.4
_GENTLE = 0.05
_AFTER_CUT = 0.08
_MOST_STEP = 0.5
_STAGE_CALLS = 8
_SEARCH_S = 0.25  # a search doubles no faster: what is in flight when it ends is wasted
_UNSPACED = 2  # calls after a change whose permits accrued before it
_HOLD_CALLS = 80
_HOLD_S = 8.0
_FIRST_HOLD = 0.1
_EASE_CALLS = 30
_PROVEN = 1.002
_USED = 0.7
_TOWARDS = 0.6  # how far a probe's average moves the estimate down
_DEEPEST = 0.25
_STEEP = 0.15  # a climb by more than this waits while it is suspicious
_IDLE_S = 60.0
_RELEARN_S = 600.0


class RateLearner:
    """The learner of one lane. Its rate is always finite and in [min(0.5, ceiling), ceiling]."""

    def __init__(
        self, ceiling_per_s: float, start_per_s: float | None = None, *, share: float = 1.0, now_s: float
    ) -> None:
        """Search below the ceiling, from half of `start_per_s` where an earlier process learnt it.

        Raises:
            ValueError: a rate that is not positive and finite, a share that is not in (0, 1].
        """
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share must be above 0 and at most 1, got {share!r}")
        self._ceiling_per_s = checked(ceiling_per_s)
        self._floor_per_s = min(FLOOR_PER_S, ceiling_per_s)
        self._share = share
        self._goal = math.inf if start_per_s is None else self._clamp(checked(start_per_s))
        self._estimate = min(self._goal, self._clamp(max(START_PER_S, (start_per_s or 0.0) / 2.0)))
        self._clean = self._estimate  # the last estimate that a climb has proven
        self._latency_s = 0.0
        self._noise, self._suspicion, self._drained = Noise(), Suspicion(), Drained()
        self._sent = 0
        self._cuts = 0
        self._step = 1.0
        self._is_holding = False
        self._is_gentle = False  # whether the next climb is a probe
        self._is_beyond = False  # whether this climb passed what the estimate explains
        self._hold_size = _FIRST_HOLD
        self._eased_share = self._eased_from = 0.0
        self._before = 0.0  # the estimate before a storm, while there is one
        self._is_restored = False
        self._last_s = now_s
        self._begin(now_s, self._estimate)

    @property
    def rate_per_s(self) -> float:
        """The rate allowed now, in calls per second."""
        return self._rate_per_s

    def snapshot(self) -> RateSnapshot:
        """Return what is believed now, as a value."""
        is_limited = self._cuts > 0 or self._drained.is_known or self._goal < math.inf
        learnt = max(self._before, self._goal if self._goal < math.inf else self._estimate)
        if self._before or (self._is_restored and self._goal < math.inf):
            state = RateState.RECOVERING
        elif not is_limited:
            is_at_ceiling = self._rate_per_s >= self._ceiling_per_s
            state = RateState.AT_CEILING if is_at_ceiling else RateState.SEARCHING
        else:
            state = RateState.HOLDING if self._is_holding else RateState.PROBING
        return RateSnapshot(
            rate_per_s=self._rate_per_s,
            ceiling_per_s=self._ceiling_per_s,
            state=state,
            service_per_s=learnt if is_limited else None,
            share=self._share,
            noise=self._noise.share,
            cuts=self._cuts,
        )

    def departed(self, now_s: float) -> Departure:
        """Note that a call leaves now; give what is returned back with its answer."""
        self._sent += 1
        return now_s, self._sent

    def observe(self, now_s: float, pace: Pace, departure: Departure) -> float:
        """Learn from the answer to a call; return the rate allowed now.

        Faults and quota answers say nothing about the rate. All instants are monotonic seconds.
        """
        if pace is not Pace.OK and pace is not Pace.THROTTLE:
            self._drained.lost += 1
            return self._rate_per_s
        latency_s = max(0.0, now_s - departure[0])
        self._latency_s += (latency_s - self._latency_s) / 16.0 if self._latency_s else latency_s
        if now_s - self._last_s > _IDLE_S:
            self._relearn(now_s)
        self._last_s = now_s
        is_spaced = departure[1] > self._since_number + _UNSPACED or pace is Pace.OK
        if departure[0] <= self._since_s or not is_spaced:  # it left at another rate
            self._drained.lost += pace is Pace.THROTTLE and departure[1] > self._drained.number
        elif pace is Pace.THROTTLE:
            self._throttle(now_s, departure)
        elif self._before:
            self._restore(now_s)
        else:
            self._accepted += 1
            if self._suspicion.level:
                self._suspicion.accept(self._noise.trust)
            if self._accepted + self._throttled >= _STAGE_CALLS:
                self._look(now_s, departure)
        return self._rate_per_s

    # Clean so far

    def _look(self, now_s: float, departure: Departure) -> None:
        """After an accepted call: see whether this hold or this step of a climb is over."""
        span_s = now_s - self._since_s
        calls = self._accepted + self._throttled
        if not self._is_holding:
            is_steep = self._step >= _STEEP and self._suspicion.level >= 1.0
            least_s = self._latency_s if self._drained.is_known else max(self._latency_s, _SEARCH_S)
            if span_s >= least_s and not is_steep and self._is_used(now_s, span_s):
                self._climb_on(now_s, departure)
        elif self._is_sharing():
            if span_s >= _RELEARN_S:
                self._drained.forget()
                self._step, self._is_gentle = _AFTER_CUT, False
                self._climb(now_s)
            elif self._throttled > self._slack(calls) + 0.01 * calls:
                self._ease(now_s, departure)
        elif calls >= _HOLD_CALLS * self._hold_size and span_s >= _HOLD_S * self._hold_size:
            if self._throttled >= 2 and self._throttled > max(self._slack(calls) - 2.0, 0.01 * calls):
                self._ease(now_s, departure)
            else:
                self._eased_share = 0.0
                self._noise.listen(self._throttled, calls)
                if self._sent - self._since_number < _USED * self._rate_per_s * span_s:
                    self._drained.seen(departure)  # not so, but unused time would hide what is delivered
                self._climb(now_s)

    def _is_used(self, now_s: float, span_s: float) -> bool:
        """Tell whether the lane sends what it may; a search does not run ahead of a lane that does not."""
        used_per_s = (self._sent - self._since_number) / span_s
        if used_per_s >= _USED * self._rate_per_s:
            return True
        if not self._drained.is_known and span_s > 2.0 * self._latency_s:
            self._estimate = self._clamp(1.25 * used_per_s)
            self._begin(now_s, self._estimate)
        elif self._drained.is_known and span_s > _HOLD_S:
            self._hold(now_s)  # nothing is learnt from what is not sent
        return False

    def _climb(self, now_s: float) -> None:
        """Begin to climb from the estimate; by a probe's step where the estimate is a good one."""
        self._is_holding = self._is_beyond = False
        self._clean = self._estimate
        if self._is_gentle:
            in_flight = self._estimate * max(self._latency_s, 1e-3)
            most = min(_MOST_PROBE, _STEP_ROOT / math.sqrt(self._estimate), _STEP_CALLS / in_flight)
            self._step = max(LEAST_STEP, most)
        self._begin(now_s, self._estimate * (1.0 + self._step))

    def _climb_on(self, now_s: float, departure: Departure) -> None:
        """Take a larger step where this one has proven something."""
        if not self._drained.is_known or self._is_beyond:
            self._clean, self._estimate = self._estimate, self._rate_per_s
        else:
            average = self._average(departure)
            calls = departure[1] - self._drained.number
            doubt = self._slack(calls) / max(1e-9, departure[0] - self._drained.at_s)
            if average < _PROVEN * self._estimate + doubt:
                return
            self._estimate = min(self._rate_per_s, average)
            if self._is_gentle:
                self._is_beyond = True
                self._clean, self._estimate = self._estimate, self._rate_per_s
        if self._rate_per_s >= self._goal:
            self._goal, self._is_gentle, self._hold_size = math.inf, True, _FIRST_HOLD
            self._is_restored = False
            self._drained.seen(departure)  # not so, but a probe will tell
            self._hold(now_s)
            return
        self._step = min(_MOST_STEP if self._is_beyond else 1.0, 2.0 * self._step)
        onward = max(self._rate_per_s, self._estimate * (1.0 + self._step))
        self._begin(now_s, min(onward, self._goal))

    # Throttled

    def _throttle(self, now_s: float, departure: Departure) -> None:
        """Judge a throttled call that left at today's rate."""
        self._suspicion.throttle(self._average(departure))
        self._throttled += 1
        calls = self._accepted + self._throttled
        is_sure = self._suspicion.level >= self._noise.sure
        if not self._is_holding:
            if self._drained.is_known and (is_sure or self._throttled > self._noise.allowance(calls)):
                self._catch(now_s, departure)
                return
            if is_sure:
                self._cut(now_s, departure)
                return
        elif is_sure:
            self._cut(now_s, departure)
            return
        elif (
            departure[1] - self._drained.number > _EASE_CALLS
            and self._throttled > self._slack(calls) + self._noise.share * calls
        ):
            self._ease(now_s, departure)
            return
        self._drained.lost += 1

    def _catch(self, now_s: float, departure: Departure) -> None:
        """End a climb: the average up to the first throttle is the best that is known."""
        average = self._suspicion.average
        if self._is_beyond:
            self._estimate = max(average, self._clean)
            self._step /= 4.0
            self._is_gentle = self._step <= _GENTLE
            self._hold_size = _FIRST_HOLD
        else:
            if self._is_gentle:
                self._hold_size = min(1.0, 2.0 * self._hold_size)
                if average < self._estimate:
                    average += (1.0 - _TOWARDS) * (self._estimate - average)
            self._estimate = average
            self._is_gentle = True
        self._drained.seen(departure)
        self._hold(now_s, settle_s=self._latency_s)

    def _ease(self, now_s: float, departure: Departure) -> None:
        """Lower a held rate to what was delivered; where that has not helped before, call it chance."""
        calls = self._accepted + self._throttled
        share = self._throttled / calls
        if share >= 0.6 * self._eased_share > 0.0:
            self._noise.confirm((share + self._eased_share) / 2.0)
            self._estimate = max(self._estimate, self._eased_from)
            self._eased_share = 0.0
        else:
            self._eased_share, self._eased_from = share, self._estimate
            # Chance counts in full here: if the rate is the cause, this lowers it by enough to show.
            delivered = self._drained.average(departure) / self._part()
            self._estimate = min(0.995 * self._estimate, max(delivered, 0.5 * self._estimate))
        self._drained.seen(departure)
        self._hold(now_s)

    def _cut(self, now_s: float, departure: Departure) -> None:
        """Three throttles close together at a rate that was held: the limit is well below it."""
        self._cuts += 1
        rate = self._rate_per_s / self._part()
        self._note_storm(rate)
        self._eased_share = 0.0
        accepted, throttled = self._suspicion.accepted, self._suspicion.throttled
        delivered = rate * accepted / (accepted + throttled)
        held_s = departure[0] - self._drained.at_s
        if self._is_holding and self._latency_s <= held_s < 3.0 * self._latency_s + 1.0:
            delivered = self._average(departure) / self._part()  # the last cut was a moment ago: that counts
        self._estimate = self._clamp(min(max(delivered, _DEEPEST * rate), 0.9 * rate))
        self._goal = math.inf
        self._step, self._is_gentle = _AFTER_CUT, False
        self._hold_size = _FIRST_HOLD
        self._drained.seen(departure)
        self._hold(now_s, settle_s=self._latency_s)

    # Storms and silence

    def _note_storm(self, rate: float) -> None:
        """Remember the estimate through cuts between which nothing is accepted."""
        if self._is_restored and self._goal < math.inf:  # restored too soon, or the limit is another now
            self._before = self._goal / 4.0 if self._goal / 4.0 > rate else 0.0
        elif self._accepted:
            self._clean = self._estimate
        elif self._cuts > 1 and self._is_holding and self._clean > rate:
            self._before = max(self._before, self._clean)
        self._is_restored = False

    def _restore(self, now_s: float) -> None:
        """Go back to where it was before a storm, from an eighth of it."""
        self._relearn(now_s, self._before)
        self._is_restored, self._before = True, 0.0

    def _relearn(self, now_s: float, goal: float | None = None) -> None:
        """Climb to an old estimate again: what was learnt long ago is tried, not trusted."""
        self._is_holding = self._is_gentle = self._is_beyond = False
        self._step = 1.0
        if goal is not None:
            self._goal = goal
            self._estimate = self._clamp(max(self._estimate, goal / 8.0))
        elif self._drained.is_known:
            self._goal = self._estimate
            self._estimate = max(min(START_PER_S, self._goal), self._goal / 2.0)
        self._drained.forget()
        self._begin(now_s, self._estimate)

    # All of them

    def _hold(self, now_s: float, *, settle_s: float = 0.0) -> None:
        self._is_holding = True
        self._begin(now_s, self._estimate * (1.0 - MARGIN) * self._part(), settle_s=settle_s)

    def _begin(self, now_s: float, rate_per_s: float, *, settle_s: float = 0.0) -> None:
        """Go on at another rate; only calls that leave `settle_s` later or more are judged by it."""
        self._rate_per_s = self._clamp(rate_per_s)
        self._since_s = now_s + settle_s
        self._since_number = self._sent
        self._accepted = self._throttled = 0
        self._suspicion.clear()

    def _is_sharing(self) -> bool:
        return self._share < 1.0 and self._is_gentle

    def _part(self) -> float:
        """Return the part of the estimate that a hold uses."""
        return self._share if self._is_holding and self._is_sharing() else 1.0

    def _average(self, departure: Departure) -> float:
        """Return what could be sent, noise included, since the service was last seen empty."""
        return self._drained.average(departure) / (1.0 - self._noise.share)

    def _slack(self, calls: int) -> float:
        """Return by how many calls a count may err: two, what is under way, and chance."""
        in_flight = self._rate_per_s * self._latency_s
        return 2.0 + 0.5 * math.sqrt(in_flight) + 2.0 * math.sqrt(self._noise.share * calls)

    def _clamp(self, rate_per_s: float) -> float:
        return max(self._floor_per_s, min(self._ceiling_per_s, rate_per_s))
