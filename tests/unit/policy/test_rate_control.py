"""The protocol of rate control, and the two simple controllers."""

from __future__ import annotations

import math

import pytest

from dispatcher.model import Pace
from dispatcher.policy.rate_control import Aimd, FixedRate, RateSnapshot, RateState


def test_a_fixed_rate_learns_nothing() -> None:
    """It is the ceiling, whatever is answered."""
    control = FixedRate(12.5)
    for pace in Pace:
        assert control.observe(1.0, pace, control.departed(0.9)) == 12.5
    assert control.rate_per_s == control.snapshot().rate_per_s == 12.5
    assert control.snapshot().service_per_s is None


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_must_be_a_rate(rate: float) -> None:
    """Positive and finite, or an error."""
    with pytest.raises(ValueError, match="must be positive and finite"):
        FixedRate(rate)
    with pytest.raises(ValueError, match="must be positive and finite"):
        Aimd(rate)
    with pytest.raises(ValueError, match="must be positive and finite"):
        Aimd(10.0, rate)


def test_aimd_adds_and_cuts() -> None:
    """Two calls/s per accepted call, a seventh off at a throttle, then two per second."""
    control = Aimd(400.0)
    for at_s in range(1, 6):
        control.observe(float(at_s), Pace.OK, (at_s - 0.1, 0))
    assert control.rate_per_s == 20.0
    assert control.snapshot().service_per_s is None
    assert control.observe(6.0, Pace.THROTTLE, (5.9, 0)) == 17.0
    assert control.observe(7.0, Pace.OK, (6.9, 0)) == pytest.approx(17.0 + 2.0 / 17.0)
    assert control.snapshot().service_per_s == control.rate_per_s


def test_aimd_cuts_once_a_round() -> None:
    """Throttled calls that left before the cut do not cut again."""
    control = Aimd(400.0, 100.0)
    for index in range(5):
        assert control.observe(1.0 + index / 100, Pace.THROTTLE, (0.9, 0)) == 85.0
    assert control.observe(1.2, Pace.THROTTLE, (1.1, 0)) == pytest.approx(72.25)


def test_aimd_keeps_to_floor_and_ceiling() -> None:
    """Whatever comes, the rate is between the two; faults and quotas change nothing."""
    control = Aimd(30.0, 29.0)
    for at_s in range(100):
        control.observe(float(at_s), Pace.OK, (at_s - 0.1, 0))
    assert control.rate_per_s == 30.0
    assert control.observe(200.0, Pace.FAULT, (199.0, 0)) == 30.0
    for at_s in range(200, 300):
        control.observe(float(at_s), Pace.THROTTLE, (at_s - 0.1, 0))
    assert control.rate_per_s == 0.5


@pytest.mark.parametrize(
    ("snapshot", "said"),
    [
        (
            RateSnapshot(rate_per_s=20.0, ceiling_per_s=400.0, state=RateState.SEARCHING),
            "searching, 20/s; no throttle yet; ceiling 400/s",
        ),
        (
            RateSnapshot(rate_per_s=10.0, ceiling_per_s=10.0, state=RateState.AT_CEILING),
            "at the ceiling, 10/s; no throttle yet; ceiling 10/s",
        ),
        (
            RateSnapshot(rate_per_s=40.2, ceiling_per_s=400.0, state=RateState.HOLDING, service_per_s=40.7),
            "service throttled at 41/s; holding 40/s; ceiling 400/s",
        ),
        (
            RateSnapshot(
                rate_per_s=1.25,
                ceiling_per_s=10.0,
                state=RateState.HOLDING,
                service_per_s=2.5,
                share=0.5,
                noise=0.03,
            ),
            "service throttled at 2.5/s; holding 1.25/s, 50 % of it; 3 % throttled at any rate; ceiling 10/s",
        ),
    ],
)
def test_it_says_why_it_is_not_faster(snapshot: RateSnapshot, said: str) -> None:
    """What was learnt, what it does, and the operator's ceiling, in one line."""
    assert snapshot.why() == said
