"""A live run beats: what another process can read of it, also while nothing settles."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from dispatcher.model import Answer, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.run import Run
    from tests.engine.conftest import Bench

    Make = Callable[..., Bench]

AWAY = Answer(kind=Kind.UNREACHABLE, code="EndpointConnectionError", message="refused")


def test_the_heart_beats_through_an_outage(bench: Make) -> None:
    """Ten minutes without the service: the heartbeat is never older than a beat, and says why."""
    made = bench(100, fate=lambda _n, _t, _k, now: AWAY if 1.0 <= now < 601.0 else None)
    made.pulse_s = 2.0
    seen: list[tuple[float, Any]] = []

    async def watch(_run: Run) -> None:
        while True:
            await asyncio.sleep(7.0)
            standing = made.checkpoint.standing()
            seen.append((made.clock.wall() - standing.heartbeat_at, standing.pulse))

    summary, error = made.go(during=watch, rate_per_s=5.0)
    assert error is None
    assert summary.counts.accepted == 100
    assert max(age for age, _ in seen) <= 2.0
    assert "probing" in {pulse.lane_state for _, pulse in seen}
    assert made.checkpoint.standing().pulse.calls == summary.calls


def test_the_last_beat_of_an_ended_run_has_no_call_on_the_wire(bench: Make) -> None:
    """What is home is home: `status` and the metrics of a run that ended tell of no call in flight."""
    made = bench(500, latency_s=0.5)
    made.pulse_s = 2.0
    _, error = made.go(rate_per_s=100.0)
    assert error is None
    assert made.checkpoint.standing().pulse.in_flight == 0


def test_a_killed_process_leaves_the_rate_it_learnt(bench: Make) -> None:
    """Not only a clean end: the next process starts from what the service allowed."""
    made = bench(4_000)
    made.pulse_s = 2.0
    made.service.fate = _bucket(20.0)
    learnt: list[float | None] = []

    async def look(run: Run) -> None:
        await asyncio.sleep(12.0)
        learnt.append(made.checkpoint.standing().learned_rate)
        run.drain()

    made.go(during=look, rate_per_s=200.0, rate_control="learn")
    assert learnt[0] is not None
    assert 12.0 < learnt[0] < 28.0


def test_a_share_of_what_was_found_is_used(bench: Make) -> None:
    """A service of 20/s and a share of a half: 10/s once it is known, and the pulse says why."""
    made = bench(9_000)
    made.pulse_s = 2.0
    made.service.fate = _bucket(20.0)
    seen: list[Any] = []

    async def look(run: Run) -> None:
        await asyncio.sleep(40.0)
        seen.append(made.checkpoint.standing().pulse)
        run.drain()

    made.go(during=look, rate_per_s=200.0, rate_control="learn", share=0.5)
    assert 9.0 < seen[0].rate_per_s < 11.0
    assert 18.0 < seen[0].service_per_s < 22.0
    assert "50 % of it" in seen[0].rate_why


def _bucket(rate_per_s: float) -> Callable[..., Answer | None]:
    """A service that admits `rate_per_s` and no more."""
    state = {"level": 5.0, "at": 0.0}

    def fate(_number: int, _targets: Any, _token: str, now: float) -> Answer | None:
        state["level"] = min(5.0, state["level"] + (now - state["at"]) * rate_per_s)
        state["at"] = now
        if state["level"] < 1.0:
            return Answer(kind=Kind.THROTTLED, code="ThrottlingException", message="slow down")
        state["level"] -= 1.0
        return None

    return fate
