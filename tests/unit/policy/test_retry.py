"""The retry quota delays, never drops, and does not slow honest recovery."""

from __future__ import annotations

import math
import random

import pytest

from dispatcher.policy.retry import RetryQuota


def test_a_full_quota_lets_a_hundred_retries_go_at_once() -> None:
    """500 units at 5 a retry are 100 retries; the next waits for the trickle of 10 a second."""
    quota = RetryQuota(now_s=50.0)
    assert [quota.take(50.0) for _ in range(100)] == [0.0] * 100
    assert [quota.take(50.0) for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    assert quota.balance == -15.0


def test_successes_pay_for_one_retry_in_five() -> None:
    """Five successes give back what one retry costs."""
    quota = RetryQuota(now_s=0.0, capacity=5.0)
    assert quota.take(0.0) == 0.0
    for _ in range(5):
        quota.succeeded()
    assert quota.take(0.0) == 0.0
    assert quota.take(0.0) == pytest.approx(0.1)


def test_time_refills_no_further_than_the_capacity() -> None:
    """A long quiet spell does not save up more than the capacity, nor do successes."""
    quota = RetryQuota(now_s=0.0, capacity=50.0)
    for _ in range(500):
        quota.succeeded()
    quota.take(1e6)
    assert quota.balance == 45.0


def test_a_clock_that_steps_back_pays_nothing() -> None:
    """The same second is not credited twice."""
    quota = RetryQuota(now_s=100.0, capacity=5.0)
    assert quota.take(100.0) == 0.0
    assert quota.take(40.0) == pytest.approx(0.1)
    assert quota.take(100.0) == pytest.approx(0.2)


def test_five_percent_faults_are_never_delayed() -> None:
    """At 1,000 calls a second with 5 % faults in clusters, no retry ever waits."""
    rng = random.Random(5)
    quota = RetryQuota(now_s=0.0)
    for call in range(200_000):
        if rng.random() < 0.05:
            assert quota.take(call / 1000.0) == 0.0
        else:
            quota.succeeded()


def test_an_outage_ends_in_the_trickle() -> None:
    """With nothing succeeding, released retries never exceed 100 plus 10 a second."""
    quota = RetryQuota(now_s=0.0)
    released: list[float] = []
    for step in range(2_000):
        now_s = step / 200.0
        released.append(now_s + quota.take(now_s))
    for rank, at_s in enumerate(sorted(released), start=1):
        assert rank <= 100 + 10.0 * at_s + 1e-6


def test_a_storm_keeps_retries_to_a_share_of_the_successes() -> None:
    """From the start to any instant: retries ≤ 100 + successes / 5 + 10 · t."""
    rng = random.Random(9)
    quota = RetryQuota(now_s=0.0)
    released: list[float] = []
    succeeded: list[float] = []
    for step in range(20_000):
        now_s = step / 1000.0
        if rng.random() < 0.5:
            released.append(now_s + quota.take(now_s))
        else:
            quota.succeeded()
            succeeded.append(now_s)
    released.sort()
    for rank in range(0, len(released), 50):
        at_s = released[rank]
        successes = sum(1 for s in succeeded if s <= at_s)
        assert rank + 1 <= 100 + successes / 5.0 + 10.0 * at_s + 1e-6


@pytest.mark.parametrize(
    ("capacity", "cost", "trickle_per_s"),
    [
        (0.0, 5.0, 1.0),
        (5.0, 0.0, 1.0),
        (5.0, 5.0, 0.0),
        (4.0, 5.0, 1.0),
        (math.inf, 5.0, 1.0),
        (5.0, 5.0, math.nan),
    ],
)
def test_nonsense_is_refused(capacity: float, cost: float, trickle_per_s: float) -> None:
    """Every figure is positive and finite, and the capacity pays for at least one retry."""
    with pytest.raises(ValueError):
        RetryQuota(now_s=0.0, capacity=capacity, cost=cost, trickle_per_s=trickle_per_s)


def test_repr_is_a_status_line() -> None:
    """The repr tells what is left."""
    assert repr(RetryQuota(now_s=0.0)) == "<RetryQuota 500 of 500>"
