"""A resend is safe only while both clocks say that the token is young."""

from __future__ import annotations

import math

import pytest

from dispatcher.policy.token_window import TokenWindow

WINDOW = TokenWindow(600.0)


@pytest.mark.parametrize(
    ("age_s", "elapsed_s", "is_open"),
    [
        (0.0, 0.0, True),
        (599.0, 599.0, True),
        (600.0, 1.0, False),  # a laptop slept: wall time went on, monotonic time did not
        (1.0, 600.0, False),  # the wall clock was set back
        (599.0, None, True),  # sent by a process that is gone
        (600.0, None, False),
        (-0.001, 1.0, False),  # stepped back behind the first attempt
        (-0.001, None, False),
        (1.0, -1.0, False),
        (math.nan, 1.0, False),
        (1.0, math.nan, False),
    ],
)
def test_the_older_age_counts(age_s: float, elapsed_s: float | None, is_open: bool) -> None:
    """The larger of both ages decides, and a negative or unknowable age counts as expired."""
    assert WINDOW.is_open(1_000_000.0 - age_s, 1_000_000.0, elapsed_s) is is_open


def test_without_doubt_it_is_open() -> None:
    """A batch with no attempt in doubt may always be sent."""
    assert WINDOW.is_open(None, 5.0, None)
    assert TokenWindow(0.0).is_open(None, 5.0, 7.0)


def test_a_window_of_zero_never_resends() -> None:
    """Zero seconds mean that doubt is left to reconcile at once."""
    assert not TokenWindow(0.0).is_open(5.0, 5.0, 0.0)


@pytest.mark.parametrize("window_s", [-1.0, math.nan])
def test_nonsense_is_refused(window_s: float) -> None:
    """A window is not negative."""
    with pytest.raises(ValueError):
        TokenWindow(window_s)
