"""The debt ledger by hand-checked figures; tests/property/test_token_bucket.py holds the bound."""

from __future__ import annotations

import math

import pytest

from dispatcher.policy.token_bucket import TokenBucket


def test_debt_queues_callers_in_order() -> None:
    """Callers that reserve together are told instants one spacing apart."""
    bucket = TokenBucket(10.0, 2.0, now_s=100.0, level=2.0)
    assert [bucket.reserve(100.0) for _ in range(5)] == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.3])
    assert bucket.level == pytest.approx(-3.0)


def test_a_new_bucket_is_empty() -> None:
    """Unless told otherwise there is nothing to burst with: a restart adds no calls."""
    bucket = TokenBucket(4.0, 10.0, now_s=0.0)
    assert bucket.level == 0.0
    assert bucket.reserve(0.0) == pytest.approx(0.25)


def test_a_pause_gathers_at_most_the_burst() -> None:
    """However long nobody calls, burst permits are free and no more."""
    bucket = TokenBucket(10.0, 3.0, now_s=0.0)
    assert [bucket.reserve(1e6) for _ in range(4)] == pytest.approx([0.0, 0.0, 0.0, 0.1])


def test_a_refund_gives_the_instant_to_the_next_caller() -> None:
    """A cancelled head leaves no hole in the queue."""
    bucket = TokenBucket(10.0, 1.0, now_s=0.0)
    assert bucket.reserve(0.0) == pytest.approx(0.1)
    bucket.refund()
    assert bucket.level == 0.0
    assert bucket.reserve(0.05) == pytest.approx(0.05)


def test_a_refund_never_exceeds_the_burst() -> None:
    """Giving back a permit to a full bucket mints nothing."""
    bucket = TokenBucket(10.0, 2.0, now_s=0.0, level=2.0)
    bucket.reserve(0.0)
    bucket.reserve(5.0)
    for _ in range(2):
        bucket.refund()
    assert bucket.level == pytest.approx(2.0)


def test_asking_anew_is_exact() -> None:
    """Reserve, refund and reserve again tells the same delay, so a gate may poll its head."""
    bucket = TokenBucket(3.0, 5.0, now_s=0.0)
    first = bucket.reserve(0.1)
    for _ in range(1000):
        bucket.refund()
        assert bucket.reserve(0.1) == first


def test_a_rate_change_accrues_the_past_at_the_old_rate() -> None:
    """One second at 10/s and one at 2/s make twelve permits."""
    bucket = TokenBucket(10.0, 100.0, now_s=0.0)
    bucket.set_rate(1.0, 2.0)
    assert bucket.level == pytest.approx(10.0)
    assert [bucket.reserve(2.0) for _ in range(13)][-2:] == pytest.approx([0.0, 0.5])
    assert bucket.rate_per_s == 2.0


def test_a_late_departure_does_not_earn_a_permit_twice() -> None:
    """With burst 1 a head that left late is followed one spacing after it at the earliest."""
    bucket = TokenBucket(1.0, 1.0, now_s=0.0)
    assert bucket.reserve(0.0) == pytest.approx(1.0)
    left_at_s = 5.0  # the loop stalled
    assert bucket.reserve(left_at_s) == pytest.approx(1.0)


def test_a_clock_that_steps_back_mints_nothing() -> None:
    """The same interval is never paid for twice, and the delay reaches the old instant again."""
    bucket = TokenBucket(1.0, 5.0, now_s=100.0)
    assert bucket.reserve(103.0) == 0.0
    assert bucket.level == pytest.approx(2.0)
    assert bucket.reserve(90.0) == pytest.approx(13.0)
    bucket.set_rate(95.0, 2.0)
    assert bucket.level == pytest.approx(1.0)
    assert [bucket.reserve(103.0) for _ in range(2)] == pytest.approx([0.0, 0.5])


def test_telling_the_departure_keeps_the_whole_burst() -> None:
    """A waiting call that is known to have left on time costs an idle lane nothing."""
    told, untold = (TokenBucket(1.0, 2.0, now_s=0.0) for _ in range(2))
    assert told.reserve(0.0) == untold.reserve(0.0) == pytest.approx(1.0)
    told.departed(1.0)
    assert [told.reserve(60.0) for _ in range(3)] == pytest.approx([0.0, 0.0, 1.0])
    assert [untold.reserve(60.0) for _ in range(3)] == pytest.approx([0.0, 1.0, 2.0])


def test_a_cost_takes_several_permits() -> None:
    """A reservation may weigh more than one permit, up to the burst."""
    bucket = TokenBucket(2.0, 3.0, now_s=0.0, level=2.0)
    assert bucket.reserve(0.0, cost=3.0) == pytest.approx(0.5)
    bucket.refund(3.0)
    assert bucket.level == pytest.approx(2.0)


@pytest.mark.parametrize("cost", [0.0, -1.0, 3.1, math.nan])
def test_an_unaffordable_cost_is_refused(cost: float) -> None:
    """A cost above the burst could never be met, and one of nothing is a mistake."""
    bucket = TokenBucket(2.0, 3.0, now_s=0.0)
    with pytest.raises(ValueError):
        bucket.reserve(0.0, cost=cost)
    assert bucket.level == 0.0


def test_millions_of_reservations_do_not_drift() -> None:
    """After half a million waits of a tenth the last instant is still exact."""
    bucket = TokenBucket(10.0, 1.0, now_s=0.0)
    now_s = 0.0
    for _ in range(500_000):
        now_s += bucket.reserve(now_s)
    assert now_s == pytest.approx(50_000.0, abs=1e-4)


@pytest.mark.parametrize(
    ("rate_per_s", "burst", "level"),
    [
        (0.0, 1.0, 0.0),
        (-1.0, 1.0, 0.0),
        (math.nan, 1.0, 0.0),
        (math.inf, 1.0, 0.0),
        (1.0, 0.99, 0.0),
        (1.0, math.nan, 0.0),
        (1.0, 2.0, 2.5),
        (1.0, 2.0, -math.inf),
    ],
)
def test_nonsense_is_refused(rate_per_s: float, burst: float, level: float) -> None:
    """A rate is positive and finite, a burst at least one, a level at most the burst."""
    with pytest.raises(ValueError):
        TokenBucket(rate_per_s, burst, now_s=0.0, level=level)


def test_a_bad_rate_change_leaves_the_bucket_alone() -> None:
    """A refused rate changes nothing."""
    bucket = TokenBucket(1.0, 1.0, now_s=0.0)
    with pytest.raises(ValueError):
        bucket.set_rate(5.0, 0.0)
    assert (bucket.rate_per_s, bucket.level, bucket.burst) == (1.0, 0.0, 1.0)


def test_repr_is_a_status_line() -> None:
    """The repr tells level, burst and rate."""
    assert repr(TokenBucket(10.0, 4.0, now_s=0.0, level=1.5)) == "<TokenBucket 1.500 of 4 at 10/s>"
