"""The gate in virtual time: one at a time, nobody starves, and no turn is lost to a cancellation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from dispatcher.gate import Gate
from tests.simulation.loop import VirtualTimeLoop


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await work()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(whole())


async def enter(gate: Gate) -> None:
    """Come in, and leave at once."""
    async with gate:
        pass


def test_a_newcomer_takes_a_free_gate_before_the_line_wakes() -> None:
    """What it is for: a release and the next entry need no turn of the loop between them."""

    async def work() -> None:
        gate = Gate()
        order: list[str] = []

        async def wait() -> None:
            async with gate:
                order.append("waiter")

        async with gate:
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(1.0)
        async with gate:
            order.append("newcomer")
        await waiting
        assert order == ["newcomer", "waiter"]

    run(work)


def test_nobody_is_passed_over_twice() -> None:
    """A waiter that found the gate taken when it woke comes before every newcomer."""

    async def work() -> None:
        gate = Gate()
        order: list[str] = []

        async def enter(name: str, hold_s: float) -> None:
            async with gate:
                order.append(name)
                await asyncio.sleep(hold_s)

        async with asyncio.TaskGroup() as tasks:
            async with gate:
                tasks.create_task(enter("waiter", 0.0))
                await asyncio.sleep(1.0)
            async with gate:  # passes it over
                await asyncio.sleep(1.0)
            await enter("newcomer", 0.0)
        assert order == ["waiter", "newcomer"]

    run(work)


@pytest.mark.parametrize("is_woken", [False, True], ids=["in line", "woken"])
def test_a_cancelled_turn_is_the_next_ones(is_woken: bool) -> None:
    """Whoever is cancelled in line, or on its way in, keeps nobody out."""

    async def work() -> None:
        gate = Gate()

        async with gate:
            first, second = asyncio.create_task(enter(gate)), asyncio.create_task(enter(gate))
            await asyncio.sleep(1.0)
            if not is_woken:
                first.cancel()
        if is_woken:
            first.cancel()
        await second
        assert first.cancelled()
        await enter(gate)

    run(work)


def test_a_cancelled_promise_keeps_no_newcomer_out() -> None:
    """Who was passed over and gives up takes the promise with it."""

    async def work() -> None:
        gate = Gate()

        async with gate:
            waiter = asyncio.create_task(enter(gate))
            await asyncio.sleep(1.0)
        async with gate:
            await asyncio.sleep(1.0)
            waiter.cancel()
        await enter(gate)
        assert waiter.cancelled()

    run(work)


@pytest.mark.parametrize("seed", range(50))
def test_one_at_a_time_and_everyone_in_the_end(seed: int) -> None:
    """Whoever comes, holds, leaves and is cancelled whenever: one inside at most, and nobody is left over."""

    async def work() -> None:
        gate, rng = Gate(), random.Random(seed)
        inside = done = 0

        async def visit() -> None:
            nonlocal inside, done
            for _ in range(20):
                await asyncio.sleep(rng.choice((0.0, 0.0, 0.001, 0.002)))
                async with gate:
                    inside += 1
                    try:
                        assert inside == 1
                        if rng.random() < 0.5:
                            await asyncio.sleep(rng.choice((0.0, 0.001)))
                    finally:
                        inside -= 1
            done += 1

        visitors = [asyncio.create_task(visit()) for _ in range(20)]
        cancelled = rng.sample(visitors, 8)
        for visitor in cancelled:
            await asyncio.sleep(rng.choice((0.0, 0.001)))
            visitor.cancel()
        await asyncio.gather(*visitors, return_exceptions=True)
        assert done == 20 - sum(visitor.cancelled() for visitor in visitors)
        assert done >= 12

    run(work)
