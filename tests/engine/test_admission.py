"""Admission in virtual time: order, bound, prompt interruption, thousands of waiters."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

from dispatcher.admission import Admission
from dispatcher.gate import Gate
from dispatcher.policy.lane import LanePolicy
from dispatcher.policy.token_bucket import TokenBucket

_spec = importlib.util.spec_from_file_location("engine_conftest", Path(__file__).with_name("conftest.py"))
assert _spec is not None
assert _spec.loader is not None
_bench: Any = importlib.util.module_from_spec(_spec)
__import__("sys").modules["engine_conftest"] = _bench
_spec.loader.exec_module(_bench)


def run(work: Any) -> Any:
    with asyncio.Runner(loop_factory=_bench.VirtualTimeLoop) as runner:
        return runner.run(work())


def admission(rate: float, *, burst: float = 1, window: int = 10_000) -> Admission:
    bucket = TokenBucket(rate, burst, now_s=asyncio.get_running_loop().time())
    lane = LanePolicy(patience_s=3600, max_in_flight=window, now_s=0.0, proven=True)
    return Admission(bucket=bucket, lane=lane, clock=_bench.VirtualClock())


def test_ten_thousand_waiters_leave_in_order_at_the_rate() -> None:
    """First come, first served, and never faster than the bucket."""

    async def work() -> list[tuple[int, float]]:
        gate, door = Gate(), admission(100.0)
        left: list[tuple[int, float]] = []

        async def wait(number: int) -> None:
            async with gate:
                assert await door.slot()
                assert await door.permit()
                left.append((number, asyncio.get_running_loop().time()))

        async with asyncio.TaskGroup() as tasks:
            for number in range(10_000):
                tasks.create_task(wait(number))
        return left

    left = run(work)
    assert [number for number, _ in left] == list(range(10_000))
    assert abs(left[-1][1] - 100.0) < 0.1


def test_cancelled_waiters_leave_nothing_behind() -> None:
    """All of ten thousand are gone at once, and the next one gets the next permit."""

    async def work() -> float:
        gate, door = Gate(), admission(1.0)

        async def wait() -> None:
            async with gate:
                await door.permit()

        waiting = [asyncio.create_task(wait()) for _ in range(10_000)]
        await asyncio.sleep(0.5)
        for task in waiting:
            task.cancel()
        assert all(
            isinstance(r, asyncio.CancelledError)
            for r in await asyncio.gather(*waiting, return_exceptions=True)
        )
        async with gate:
            assert await door.permit()
        return asyncio.get_running_loop().time()

    assert abs(run(work) - 1.0) < 1e-6


def test_interrupt_sends_the_waiter_away_and_refunds() -> None:
    """An interrupted wait takes no permit."""

    async def work() -> None:
        door = admission(0.1)
        waiter = asyncio.create_task(door.permit())
        await asyncio.sleep(1)
        door.interrupt()
        assert await waiter is False
        assert asyncio.get_running_loop().time() == 1
        door.open()
        assert await door.permit()
        assert abs(asyncio.get_running_loop().time() - 10.0) < 1e-6

    run(work)


def test_the_window_opens_when_a_call_is_back() -> None:
    """A slot is waited for, and given by the next arrival."""

    async def work() -> None:
        door = admission(1000.0, window=1)
        assert await door.slot()
        door.depart()
        waiter = asyncio.create_task(door.slot())
        await asyncio.sleep(1)
        assert not waiter.done()
        door.arrive()
        assert await waiter
        assert "in_flight=0/1" in repr(door)

    run(work)
