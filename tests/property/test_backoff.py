"""Full jitter over any attempt, base, cap and seed."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.policy.backoff import full_jitter


@given(
    attempt=st.integers(1, 10**6),
    base_s=st.floats(0.0, 1e6),
    cap_s=st.floats(0.0, 1e6),
    seed=st.integers(0, 2**32),
)
def test_delay_lies_within_its_span(attempt: int, base_s: float, cap_s: float, seed: int) -> None:
    """A delay is never negative, never above the cap and never above base · 2^(attempt − 1)."""
    delay_s = full_jitter(attempt, base_s=base_s, cap_s=cap_s, rng=random.Random(seed))
    assert 0.0 <= delay_s <= cap_s
    if attempt < 60:
        assert delay_s <= base_s * 2 ** (attempt - 1)


def test_delays_fill_the_span_evenly() -> None:
    """The jitter is full: the mean is half the span and both ends are reached."""
    rng = random.Random(1)
    delays = [full_jitter(4, base_s=1.0, cap_s=100.0, rng=rng) for _ in range(20_000)]
    assert abs(sum(delays) / len(delays) - 4.0) < 0.1
    assert min(delays) < 0.01
    assert max(delays) > 7.99
