"""The rules of rate control one by one; tests/property/test_rate_control.py runs them together."""

from __future__ import annotations

import math

import pytest

from dispatcher.model import Pace
from dispatcher.policy.rate_control import Aimd, FixedRate, RateController, RateSnapshot


def answer(
    control: Aimd, pace: Pace, *, from_s: float, count: int, gap_s: float, latency_s: float = 0.01
) -> float:
    """Feed `count` answers, one every `gap_s` from `from_s`; return the rate afterwards."""
    for index in range(count):
        now_s = from_s + index * gap_s
        control.observe(now_s, pace, sent_at_s=now_s - latency_s)
    return control.rate_per_s


def test_it_starts_at_25_or_at_the_ceiling() -> None:
    """A cold start searches from 25/s, never above the ceiling."""
    assert Aimd(400.0, now_s=0.0).rate_per_s == 25.0
    assert Aimd(3.0, now_s=0.0).rate_per_s == 3.0
    assert Aimd(0.2, now_s=0.0).rate_per_s == 0.2


def test_search_adds_per_accepted_call() -> None:
    """While searching, each accepted call adds 2.5/s, up to the ceiling."""
    control = Aimd(60.0, now_s=0.0)
    assert answer(control, Pace.OK, from_s=1.0, count=4, gap_s=0.02) == pytest.approx(35.0)
    assert answer(control, Pace.OK, from_s=1.1, count=50, gap_s=0.02) == 60.0


def test_search_is_braked_by_latency() -> None:
    """At 0.4 s of latency 8 calls in flight are 20/s: beyond that the search waits for proof."""
    control = Aimd(400.0, 10.0, now_s=0.0)
    cold = Aimd(400.0, now_s=0.0)
    assert answer(cold, Pace.OK, from_s=1.0, count=10, gap_s=0.04, latency_s=0.4) == 25.0
    assert not control.snapshot().searching


def test_a_warm_start_is_probed_from() -> None:
    """A learnt rate is trusted: 0.02/s per accepted call instead of a search."""
    control = Aimd(400.0, 40.0, now_s=0.0)
    assert answer(control, Pace.OK, from_s=1.0, count=50, gap_s=0.025) == pytest.approx(41.0)
    assert Aimd(30.0, 40.0, now_s=0.0).rate_per_s == 30.0
    assert Aimd(30.0, 0.01, now_s=0.0).rate_per_s == 0.5


def test_one_round_cuts_once() -> None:
    """Throttled calls that left before the cut do not cut again, one that left after it does."""
    control = Aimd(400.0, 40.0, now_s=0.0)
    first = control.observe(1.0, Pace.THROTTLE, sent_at_s=0.8)
    assert first == pytest.approx(0.92 * 40.0)
    for index in range(8):
        assert control.observe(1.0 + index * 0.02, Pace.THROTTLE, sent_at_s=0.85 + index * 0.02) == first
    assert control.observe(1.4, Pace.THROTTLE, sent_at_s=1.2) < first
    assert control.snapshot().cuts == 2


def test_a_search_ignores_single_throttles() -> None:
    """One throttle, or one in ten, neither cuts nor ends a search."""
    control = Aimd(400.0, now_s=0.0)
    for index in range(200):
        now_s = 1.0 + index * 0.01
        pace = Pace.THROTTLE if index % 10 == 0 else Pace.OK
        control.observe(now_s, pace, sent_at_s=now_s - 0.01)
    assert control.rate_per_s >= 100.0  # all that is used
    assert control.snapshot().searching
    assert control.snapshot().cuts == 0


def test_a_search_ends_at_what_is_delivered() -> None:
    """Three throttles and an accepted call in 60 ms: down to the delivery rate of 20.8/s."""
    control = Aimd(400.0, now_s=0.0)
    answer(control, Pace.OK, from_s=1.0, count=6, gap_s=0.02)
    paces = [Pace.THROTTLE, Pace.THROTTLE, Pace.OK, Pace.THROTTLE]
    for index, pace in enumerate(paces):
        control.observe(2.0 + index * 0.02, pace, sent_at_s=1.99 + index * 0.02)
    assert control.rate_per_s == pytest.approx(1.25 / 0.06)
    assert not control.snapshot().searching


def test_half_and_half_cuts_below_the_rate_of_the_first_suspect() -> None:
    """Every second call throttled is B = 1: 92 % of the rate 0.2 s ago, not half of today's."""
    control = Aimd(400.0, now_s=0.0)
    answer(control, Pace.OK, from_s=1.0, count=4, gap_s=0.05, latency_s=0.2)  # 35/s at 1.15 s
    for index in range(7):
        pace = Pace.OK if index % 2 else Pace.THROTTLE
        control.observe(1.2 + index * 0.03, pace, sent_at_s=1.0 + index * 0.03)
    assert control.rate_per_s == pytest.approx(0.92 * 25.0)


def test_single_throttles_do_not_cut_below_the_proven_rate() -> None:
    """40/s proven, then one in 33 throttled for 30 s: the rate never falls below 92 % of it."""
    control = Aimd(400.0, 40.0, now_s=0.0)
    answer(control, Pace.OK, from_s=0.0, count=80, gap_s=0.025)
    for index in range(1_200):
        now_s = 2.0 + index * 0.025
        pace = Pace.THROTTLE if index % 33 == 0 else Pace.OK
        assert control.observe(now_s, pace, sent_at_s=now_s - 0.01) >= 0.92 * 0.97 * 40.0


def test_throttles_in_a_row_go_down_to_the_delivery_rate() -> None:
    """Five accepted calls in half a second between two throttles: the second cut goes to 10.5/s."""
    control = Aimd(400.0, 30.0, now_s=0.0)
    control.observe(1.0, Pace.THROTTLE, sent_at_s=0.9)
    answer(control, Pace.OK, from_s=1.05, count=5, gap_s=0.05, latency_s=0.1)
    assert control.observe(1.5, Pace.THROTTLE, sent_at_s=1.4) == pytest.approx(10.5)


def test_a_storm_ends_at_the_floor_and_recovers() -> None:
    """Nothing but throttles leads to 0.5/s, and acceptance leads back by search within seconds."""
    control = Aimd(400.0, 40.0, now_s=0.0)
    assert answer(control, Pace.THROTTLE, from_s=1.0, count=60, gap_s=2.1) == 0.5
    now_s, steps = 125.0, 0  # the storm's last answer came at 124.9 s
    while control.rate_per_s < 40.0:
        now_s += 1.0 / control.rate_per_s
        control.observe(now_s, Pace.OK, sent_at_s=now_s - 0.02)
        steps += 1
    assert now_s < 125.0 + 25.0
    assert steps < 40


@pytest.mark.parametrize("pace", [Pace.FAULT, Pace.QUOTA])
def test_faults_and_quota_say_nothing(pace: Pace) -> None:
    """Neither a fault nor an exhausted quota moves the rate."""
    control = Aimd(400.0, now_s=0.0)
    assert answer(control, pace, from_s=1.0, count=50, gap_s=0.02) == 25.0


def test_a_rate_that_is_not_used_does_not_grow() -> None:
    """A lane fed with 5 calls a second stays where it was: 16 answers, then no step more."""
    control = Aimd(400.0, now_s=0.0)
    early = answer(control, Pace.OK, from_s=1.0, count=20, gap_s=0.2)
    assert answer(control, Pace.OK, from_s=6.0, count=500, gap_s=0.2) == early


def test_a_fixed_rate_learns_nothing() -> None:
    """The fixed controller always allows the ceiling."""
    control: RateController = FixedRate(7.0)
    assert control.observe(1.0, Pace.THROTTLE, sent_at_s=0.5) == control.rate_per_s == 7.0
    assert control.snapshot() == RateSnapshot(rate_per_s=7.0, ceiling_per_s=7.0, searching=False, cuts=0)


def test_the_snapshot_is_a_value() -> None:
    """A snapshot tells rate, ceiling, phase and cuts, and does not move afterwards."""
    control = Aimd(400.0, 50.0, now_s=0.0)
    before = control.snapshot()
    control.observe(1.0, Pace.THROTTLE, sent_at_s=0.9)
    assert before == RateSnapshot(rate_per_s=50.0, ceiling_per_s=400.0, searching=False, cuts=0)
    assert control.snapshot() == RateSnapshot(rate_per_s=46.0, ceiling_per_s=400.0, searching=False, cuts=1)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_nonsense_is_refused(rate: float) -> None:
    """Ceiling and start are positive and finite."""
    with pytest.raises(ValueError):
        Aimd(rate, now_s=0.0)
    with pytest.raises(ValueError):
        Aimd(10.0, rate, now_s=0.0)
    with pytest.raises(ValueError):
        FixedRate(rate)
