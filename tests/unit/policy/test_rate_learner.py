"""The learner's rules one by one; tests/property/test_rate_control.py runs them together."""

from __future__ import annotations

import math

import pytest

from dispatcher.model import Pace
from dispatcher.policy.rate_control import RateState
from dispatcher.policy.rate_learner import MARGIN, RateLearner


class Line:
    """A learner whose calls leave at its own rate, and are answered after a fixed latency."""

    def __init__(self, control: RateLearner, latency_s: float = 0.01) -> None:
        self.control = control
        self.now_s = 0.0
        self.latency_s = latency_s

    def send(self, *paces: Pace) -> float:
        for pace in paces:
            self.now_s += 1.0 / self.control.rate_per_s
            departure = self.control.departed(self.now_s)
            self.control.observe(self.now_s + self.latency_s, pace, departure)
        return self.control.rate_per_s

    def bucket(self, rate_per_s: float, seconds: float, burst: float = 5.0) -> int:
        """Call a service of this rate for a while; return the throttled calls."""
        level, throttled, end_s = burst, 0, self.now_s + seconds
        while self.now_s < end_s:
            gap_s = 1.0 / self.control.rate_per_s
            level = min(burst, level + gap_s * rate_per_s)
            is_accepted = level >= 1.0
            level -= is_accepted
            throttled += not is_accepted
            self.send(Pace.OK if is_accepted else Pace.THROTTLE)
        return throttled


def test_it_starts_at_10_or_at_the_ceiling() -> None:
    """A cold start searches from 10/s, never above the ceiling."""
    assert RateLearner(400.0, now_s=0.0).rate_per_s == 10.0
    assert RateLearner(3.0, now_s=0.0).rate_per_s == 3.0
    assert RateLearner(0.2, now_s=0.0).rate_per_s == 0.2


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, math.nan])
def test_a_share_is_a_part(share: float) -> None:
    """Above 0 and at most 1, or an error."""
    with pytest.raises(ValueError, match="share must be"):
        RateLearner(10.0, share=share, now_s=0.0)


def test_a_search_doubles_every_eight_calls() -> None:
    """While clean: 10, 20, 40 and so on up to the ceiling, where it says so; and no faster than in 0.25 s."""
    line = Line(RateLearner(150.0, now_s=0.0))
    seen = [line.send(*[Pace.OK] * 8) for _ in range(4)]
    assert seen == [20.0, 40.0, 40.0, 80.0]
    assert line.send(*[Pace.OK] * 32) == 150.0
    assert line.control.snapshot().state is RateState.AT_CEILING
    assert line.control.snapshot().service_per_s is None


def test_a_search_lets_single_throttles_pass() -> None:
    """One throttle in ten, far below any limit, does not end a search."""
    line = Line(RateLearner(400.0, now_s=0.0))
    line.send(*([Pace.OK] * 9 + [Pace.THROTTLE]) * 40)
    assert line.control.rate_per_s == 400.0


def test_a_search_ends_at_three_throttles_close_together() -> None:
    """At the share that was accepted, and no lower than a quarter."""
    line = Line(RateLearner(400.0, now_s=0.0))
    line.send(*[Pace.OK] * 17)
    assert line.control.rate_per_s == 40.0
    line.send(Pace.OK)  # the first two after a change of rate are no evidence
    line.send(Pace.THROTTLE, Pace.THROTTLE, Pace.OK, Pace.THROTTLE, Pace.THROTTLE)
    assert line.control.rate_per_s == pytest.approx(0.25 * 40.0 * (1.0 - MARGIN))
    assert line.control.snapshot().state is RateState.HOLDING
    assert line.control.snapshot().cuts == 1


def test_one_round_is_one_piece_of_evidence() -> None:
    """Throttled calls that left before a cut, or within a latency of it, do not cut again."""
    control = RateLearner(400.0, now_s=0.0)
    departures = [control.departed(index / 100) for index in range(20)]
    rates = [control.observe(0.5 + index / 100, Pace.THROTTLE, d) for index, d in enumerate(departures)]
    assert len(set(rates)) == 2
    assert control.snapshot().cuts == 1


@pytest.mark.parametrize("rate", [3.0, 40.0, 700.0])
def test_it_finds_a_rate_and_holds_it(rate: float) -> None:
    """Over 200 calls' time within a few seconds' search; then 1 % off, with 1 in 50 throttled at most."""
    line = Line(RateLearner(10.0 * rate, now_s=0.0), latency_s=0.001)
    line.bucket(rate, 30.0 + 200.0 / rate)
    assert line.control.snapshot().service_per_s == pytest.approx(rate, rel=0.03)
    sent = line.control.departed(line.now_s)[1]
    throttled = line.bucket(rate, 2_000.0 / rate)
    calls = line.control.departed(line.now_s)[1] - sent
    assert throttled <= 0.02 * calls
    assert calls - throttled >= 0.97 * 2_000


def test_a_single_throttle_in_a_hold_changes_nothing() -> None:
    """Evidence is three together, or more than a handful."""
    line = Line(RateLearner(400.0, now_s=0.0))
    line.bucket(40.0, 60.0)
    while line.control.snapshot().state is not RateState.HOLDING:
        line.send(Pace.OK)
    held = line.send(*[Pace.OK] * 30)
    if line.control.snapshot().state is RateState.HOLDING:
        assert line.send(Pace.THROTTLE) == held


def test_a_warm_start_is_tried_not_trusted() -> None:
    """It begins at half of what was learnt, climbs to it within forty calls, and stays there."""
    line = Line(RateLearner(400.0, 60.0, now_s=0.0))
    assert line.control.rate_per_s == 30.0
    assert line.send(*[Pace.OK] * 8) == 60.0
    assert line.send(*[Pace.OK] * 24) == pytest.approx(60.0 * (1.0 - MARGIN))
    assert line.control.snapshot().service_per_s == pytest.approx(60.0)
    assert RateLearner(30.0, 60.0, now_s=0.0).rate_per_s == 30.0


def test_what_was_learnt_outlives_a_short_process() -> None:
    """A process that ends before it has met the limit again hands on what it was given."""
    control = RateLearner(400.0, 60.0, now_s=0.0)
    assert control.snapshot().service_per_s == 60.0


def test_a_silent_minute_is_learnt_again_gently() -> None:
    """After a pause it goes on at half and climbs back."""
    line = Line(RateLearner(400.0, now_s=0.0))
    line.bucket(40.0, 60.0)
    learnt = line.control.snapshot().service_per_s
    assert learnt is not None
    line.now_s += 100.0
    assert line.send(Pace.OK) == pytest.approx(learnt / 2.0)
    line.send(*[Pace.OK] * 20)
    assert line.control.rate_per_s == pytest.approx(learnt, rel=0.02)


def test_a_storm_ends_at_the_floor_and_is_recovered_from() -> None:
    """Nothing but throttles leads to 0.5/s; acceptance brings an eighth back, then the whole."""
    line = Line(RateLearner(400.0, now_s=0.0))
    line.bucket(40.0, 60.0)
    assert line.send(*[Pace.THROTTLE] * 40) == 0.5
    assert line.control.snapshot().service_per_s == pytest.approx(40.0, rel=0.05)
    assert line.send(Pace.OK) == pytest.approx(5.0, rel=0.05)
    assert line.control.snapshot().state is RateState.RECOVERING
    began_s = line.now_s
    while line.control.rate_per_s < 38.0:
        line.send(Pace.OK)
    assert line.now_s - began_s < 5.0


def test_faults_and_quotas_say_nothing() -> None:
    """They neither raise nor lower the rate."""
    line = Line(RateLearner(400.0, now_s=0.0))
    before = line.send(*[Pace.OK] * 8)
    assert line.send(*[Pace.FAULT] * 20, *[Pace.QUOTA] * 20) == before


def test_a_share_is_held_of_what_was_found() -> None:
    """Half of it once it is known; the whole is looked for again after ten minutes."""
    line = Line(RateLearner(400.0, share=0.5, now_s=0.0), latency_s=0.001)
    line.bucket(40.0, 60.0)
    assert line.control.rate_per_s == pytest.approx(20.0, rel=0.05)
    began_s = line.now_s
    line.bucket(40.0, 400.0)
    assert line.control.rate_per_s == pytest.approx(20.0, rel=0.05)
    while line.control.rate_per_s < 30.0:
        line.bucket(40.0, 1.0)
    assert line.now_s - began_s < 610.0


def test_a_share_that_is_throttled_all_the_same_meets_chance() -> None:
    """One call in nine at half of the limit: it is eased once, and goes back as that has not helped."""
    line = Line(RateLearner(400.0, share=0.5, now_s=0.0), latency_s=0.001)
    line.bucket(40.0, 60.0)
    held = line.control.rate_per_s
    rates = [line.send(*[Pace.OK] * 8, Pace.THROTTLE) for _ in range(12)]
    assert 0.97 * held < min(rates) < held
    assert rates[-1] == held
    assert line.control.snapshot().noise > 0.05
    assert line.control.snapshot().state is RateState.HOLDING


def test_chance_is_told_from_a_limit() -> None:
    """One call in twenty throttled whatever the rate: the rate is not driven down, and it says so."""
    line = Line(RateLearner(200.0, now_s=0.0))
    line.bucket(40.0, 60.0)
    for _ in range(200):
        line.send(*[Pace.OK] * 19, Pace.THROTTLE)
    assert line.control.rate_per_s >= 35.0
    assert line.control.snapshot().noise == pytest.approx(0.05, abs=0.02)
