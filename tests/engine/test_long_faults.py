"""Faults that last, and clocks that jump, in virtual time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dispatcher.model import Answer, Kind

NOTHING = Answer(kind=Kind.NO_REPLY, code="Timeout")
THROTTLED = Answer(kind=Kind.THROTTLED, code="ThrottlingException")
STICKY = Answer(kind=Kind.NO_REPLY, code="InternalServerException")

Make = Callable[..., Any]


def test_ten_minutes_without_a_network_make_no_storm(bench: Make) -> None:
    """Nothing comes back for ten minutes: at most one probe at a time, ten seconds apart; then it goes on."""
    made = bench(3_000, fate=lambda _n, _t, _k, now: NOTHING if 1 <= now < 601 else None)
    summary, error = made.go(rate_per_s=100, token_window_s=3_600)
    made.check(summary)
    assert error is None
    assert summary.counts.accepted == 3_000
    probes = [at for at, _, _ in made.service.calls if 30 <= at < 601]
    assert 40 <= len(probes) <= 80
    assert all(later - earlier >= 5 for earlier, later in itertools.pairwise(probes))


def test_five_minutes_of_throttles_lose_nothing(bench: Make) -> None:
    """Every call is throttled: the rate falls to its floor, no attempt is burnt, and the run ends."""
    made = bench(1_000, fate=lambda _n, _t, _k, now: THROTTLED if 1 <= now < 301 else None)
    summary, error = made.go(rate_per_s=200, rate_control="aimd")
    made.check(summary)
    assert error is None
    assert summary.counts.accepted == 1_000
    during = [at for at, _, _ in made.service.calls if 31 <= at < 301]
    assert len(during) <= 2 * 270, "at most about two a second"


def test_a_sticky_500_never_gets_another_token(bench: Make) -> None:
    """A service that answers a token with 500 for ever is asked with that token, and then no more."""
    made = bench(100, fate=lambda number, targets, _k, _now: STICKY if "smd-00042" in targets else None)
    summary, error = made.go(max_attempts=4)
    made.check(summary)
    assert error is None
    assert (summary.counts.accepted, summary.counts.in_doubt) == (90, 10)
    assert len({token for _, targets, token in made.service.calls if "smd-00042" in targets}) == 1


@pytest.mark.parametrize("jump_s", [-3_600.0, 3_600.0, 30 * 86_400.0])
def test_a_wall_clock_that_jumps_moves_no_departure(bench: Make, jump_s: float) -> None:
    """Summer time, a leap or a wrong NTP server: pacing goes by the monotonic clock."""

    def fate(number: int, _targets: Sequence[str], _token: str, _now: float) -> None:
        if number == 20:
            made.clock.skew_s += jump_s

    made = bench(1_000, fate=fate)
    summary, error = made.go(rate_per_s=50, burst=5)
    made.check(summary)
    assert error is None
    assert summary.counts.accepted == 1_000
    times = [at for at, _, _ in made.service.calls]
    assert all(times[i + 55] - times[i] >= 0.99 for i in range(len(times) - 55)), "at most 50 + 5 a second"
