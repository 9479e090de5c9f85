"""A deadline tells a silent service from a loop that stood still."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from dispatcher.transport.deadline import GRACE_S, deadline
from tests.engine.conftest import VirtualTimeLoop


def within(loop_work: Callable[[VirtualTimeLoop], Awaitable[float]]) -> float:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualTimeLoop)
        return runner.run(_awaited(loop_work(loop)))


async def _awaited(work: Awaitable[float]) -> float:
    return await work


async def timed_out(loop: VirtualTimeLoop, call: Awaitable[object], total_s: float = 2.0) -> float:
    """Return when the deadline struck."""
    with pytest.raises(TimeoutError):
        async with deadline(total_s):
            await call
    return loop.time()


def test_a_silent_service_is_given_up_in_time() -> None:
    """No grace is given where the loop went on."""
    assert within(lambda loop: timed_out(loop, asyncio.sleep(60))) == 2.0


def test_an_answer_that_came_during_a_stall_is_taken() -> None:
    """The loop stands still past the deadline; what has arrived is read first."""

    async def work(loop: VirtualTimeLoop) -> float:
        answer: asyncio.Future[str] = loop.create_future()
        loop.call_at(1.0, answer.set_result, "here")
        async with deadline(2.0):
            await asyncio.sleep(0)
            loop.virtual_s += 30.0
            assert await answer == "here"
        return loop.time()

    assert within(work) == 30.0


def test_a_stall_is_forgiven_once() -> None:
    """Silence after a stall ends after the grace."""

    async def work(loop: VirtualTimeLoop) -> float:
        loop.call_at(1.0, lambda: setattr(loop, "virtual_s", 30.0))
        return await timed_out(loop, asyncio.sleep(600))

    assert within(work) == 30.0 + GRACE_S


def test_a_block_that_ends_in_time_leaves_no_timer() -> None:
    """Nothing is left that would wake the loop later."""

    async def work(loop: VirtualTimeLoop) -> float:
        async with deadline(50.0):
            await asyncio.sleep(1)
        assert not [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        return loop.time()

    assert within(work) == 1.0
