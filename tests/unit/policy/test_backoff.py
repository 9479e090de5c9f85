"""Full jitter is exact arithmetic on (attempt, rng)."""

from __future__ import annotations

import random

import pytest

from dispatcher.policy.backoff import full_jitter


class HighestDraw(random.Random):
    """Chance that always draws just below 1."""

    def random(self) -> float:
        return 1.0 - 2.0**-53


@pytest.mark.parametrize(
    ("attempt", "span_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (5, 8.0), (6, 16.0), (7, 20.0), (2000, 20.0)]
)
def test_span_doubles_up_to_the_cap(attempt: int, span_s: float) -> None:
    """The longest possible wait doubles with every attempt until the cap, however many there are."""
    assert full_jitter(attempt, base_s=0.5, cap_s=20.0, rng=HighestDraw()) == pytest.approx(span_s)


def test_same_seed_same_delay() -> None:
    """Chance comes from the given source only."""
    delays = [full_jitter(3, base_s=1.0, cap_s=20.0, rng=random.Random(7)) for _ in range(2)]
    assert delays[0] == delays[1] == pytest.approx(random.Random(7).random() * 4.0)


def test_huge_base_does_not_overflow() -> None:
    """A product beyond the largest float is the cap, not an error."""
    assert full_jitter(5000, base_s=1e300, cap_s=3.0, rng=HighestDraw()) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("attempt", "base_s", "cap_s"), [(0, 1.0, 1.0), (-1, 1.0, 1.0), (1, -1.0, 1.0), (1, 1.0, -1.0)]
)
def test_nonsense_is_refused(attempt: int, base_s: float, cap_s: float) -> None:
    """Attempts count from 1 and spans are not negative."""
    with pytest.raises(ValueError):
        full_jitter(attempt, base_s=base_s, cap_s=cap_s, rng=random.Random(0))
