"""Group commit: when a block is written, in what order, and what a failure means."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import pytest

from dispatcher.checkpoint.base import Plan
from dispatcher.checkpoint.memory import MemoryCheckpoint
from dispatcher.checkpoint.writer import (
    BLOCK_AGE_S,
    BLOCK_ROWS,
    MAX_WAITING,
    InlineOffload,
    ThreadOffload,
    Writer,
)
from dispatcher.errors import CheckpointError, CheckpointIo
from dispatcher.model import Batch, BatchState, Lane, Outcome
from dispatcher.plan import cut
from tests.simulation.loop import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from dispatcher.errors import DispatcherError

T = TypeVar("T")
PLAN = Plan(
    plan_id="p",
    run="nightly",
    command="reboot",
    region="us-west-2",
    intent_digest="i",
    selection_digest="s",
    inventory_digest="v",
    planned_at=900.0,
)


class FrozenClock:
    """Always the same instant."""

    def monotonic(self) -> float:
        return 5.0

    def wall(self) -> float:
        return 1000.0


class HeldOffload(InlineOffload):
    """Runs a call only when the test lets it through: a disk that stalls."""

    def __init__(self) -> None:
        self.gate = asyncio.Semaphore(0)

    async def run(self, call: Callable[[], T]) -> T:
        await self.gate.acquire()
        return call()


class RecordingCheckpoint(MemoryCheckpoint):
    """Notes the order of what is asked of it, and fails at the call it is told to."""

    def __init__(self, fail: Exception | None = None) -> None:
        super().__init__()
        self.said: list[object] = []
        self.fail = fail

    def record(self, outcomes: Sequence[Outcome], *, now: float) -> None:
        if self.fail is not None:
            raise self.fail
        super().record(outcomes, now=now)
        self.said.append([outcome.batch for outcome in outcomes])

    def claim(self, *, limit: int, max_devices: int | None, now: float) -> list[Batch]:
        self.said.append("claim")
        return super().claim(limit=limit, max_devices=max_devices, now=now)


class Bench:
    """A writer over a memory checkpoint with its first batches claimed."""

    def __init__(self, *, fail: Exception | None = None, offload: InlineOffload | None = None) -> None:
        self.checkpoint = RecordingCheckpoint(fail)
        self.checkpoint.write_plan(
            PLAN, [Lane(index=0, region="us-west-2")], cut([[f"d{n:06d}" for n in range(30 * BLOCK_ROWS)]])
        )
        self.checkpoint.acquire("me", now=1000.0)
        self.batches = self.checkpoint.claim(limit=3 * BLOCK_ROWS, max_devices=None, now=1000.0)
        self.checkpoint.said.clear()
        self.durable: list[int] = []
        self.failures: list[DispatcherError] = []
        self.marked: list[int] = []
        self.writer = Writer(
            self.checkpoint,
            clock=FrozenClock(),
            offload=offload or InlineOffload(),
            mark=lambda batches: self.marked.extend(batch.number for batch in batches),
            on_durable=self.told,
            on_failure=self.failures.append,
        )

    def told(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            assert self.checkpoint._kept[outcome.batch].outcome.task_id == outcome.task_id
            self.durable.append(outcome.batch)

    def hand_in(self, start: int, count: int) -> None:
        for batch in self.batches[start : start + count]:
            self.writer.record(
                Outcome(batch.number, BatchState.ACCEPTED, 10, 1, 1.0, 1.0, f"st-{batch.number}", "arn")
            )


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(test())


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_full_block_is_written_at_once() -> None:
    """The last outcome of a block starts a commit; until it came, the others wait for their timer."""

    async def test() -> None:
        bench = Bench()
        bench.hand_in(0, BLOCK_ROWS - 1)
        await settle()
        assert bench.durable == []
        bench.hand_in(BLOCK_ROWS - 1, 1)
        await settle()
        assert bench.durable == [batch.number for batch in bench.batches[:BLOCK_ROWS]]
        assert len(bench.checkpoint.said) == 1
        await bench.writer.close()

    run(test)


def test_an_old_outcome_is_written_without_company() -> None:
    """A single outcome becomes durable by its timer alone."""

    async def test() -> None:
        done = asyncio.Event()
        bench = Bench()
        bench.writer._on_durable = lambda outcomes: done.set()
        bench.hand_in(0, 1)
        await asyncio.wait_for(done.wait(), 5.0)
        assert bench.checkpoint.said == [[1]]
        await bench.writer.close()

    run(test)


def test_order_is_kept() -> None:
    """A claim, split or give-back never overtakes outcomes handed in before it, nor each other."""

    async def test() -> None:
        offload = HeldOffload()
        bench = Bench(offload=offload)
        bench.hand_in(0, 2)
        first = asyncio.create_task(bench.writer.claim(limit=1, max_devices=None))
        await settle()
        bench.hand_in(2, 1)
        second = asyncio.create_task(bench.writer.claim(limit=1, max_devices=None))
        await settle()
        assert (bench.durable, bench.marked) == ([], [])
        offload.gate.release()
        found = [batch.number for batch in await first]
        assert (bench.durable, bench.marked) == ([1, 2], found)
        offload.gate.release()
        found += [batch.number for batch in await second]
        assert (bench.durable, bench.marked) == ([1, 2, 3], found)
        assert bench.checkpoint.said == [[1, 2], "claim", [3], "claim"]
        await bench.writer.close()

    run(test)


def test_outcomes_that_come_in_during_a_commit_have_an_age_of_their_own() -> None:
    """They gather for the next block instead of chasing the last: commits are what costs."""

    async def test() -> None:
        offload = HeldOffload()
        bench = Bench(offload=offload)
        bench.hand_in(0, BLOCK_ROWS)
        await settle()
        bench.hand_in(BLOCK_ROWS, 3)
        offload.gate.release()
        offload.gate.release()
        await settle()
        assert [len(block) for block in bench.checkpoint.said if isinstance(block, list)] == [BLOCK_ROWS]
        await bench.writer.close()
        assert [len(block) for block in bench.checkpoint.said if isinstance(block, list)] == [BLOCK_ROWS, 3]

    run(test)


def test_a_cancelled_caller_loses_no_commit() -> None:
    """The turn of a cancelled caller is finished and its outcomes are told."""

    async def test() -> None:
        offload = HeldOffload()
        bench = Bench(offload=offload)
        bench.hand_in(0, 1)
        flush = asyncio.create_task(bench.writer.flush())
        await settle()
        flush.cancel()
        await settle()
        assert flush.cancelled()
        offload.gate.release()
        await settle()
        assert bench.durable == [1]
        await bench.writer.close()

    run(test)


@pytest.mark.parametrize("error", [CheckpointIo("no space left"), ZeroDivisionError("a bug")])
def test_a_failure_is_final_and_told_once(error: Exception) -> None:
    """The first error, foreseen or not, is kept, told once and raised by everything after it."""

    async def test() -> None:
        bench = Bench(fail=error)
        bench.hand_in(0, BLOCK_ROWS)
        await settle()
        assert len(bench.failures) == 1
        assert bench.writer.failure is bench.failures[0]
        assert "no space left" in str(bench.failures[0]) or "a bug" in str(bench.failures[0])
        bench.checkpoint.fail = None
        for call in (
            bench.writer.flush,
            lambda: bench.writer.claim(limit=1, max_devices=None),
            lambda: bench.writer.give_back([2_000]),
            bench.writer.check_lease,
        ):
            with pytest.raises(CheckpointError) as raised:
                await call()
            assert raised.value is bench.writer.failure
        bench.hand_in(BLOCK_ROWS, 1)
        await bench.writer.close()
        assert (bench.durable, len(bench.failures)) == ([], 1)
        assert bench.checkpoint.said == []

    run(test)


def test_a_block_before_a_failed_claim_is_told() -> None:
    """Outcomes that were committed count as durable, though the claim behind them failed."""

    async def test() -> None:
        bench = Bench()

        def refuse(_batches: Sequence[Batch]) -> None:
            raise CheckpointIo("the registry is on a full disk")

        bench.writer._mark = refuse
        bench.hand_in(0, 2)
        with pytest.raises(CheckpointIo, match="full disk"):
            await bench.writer.claim(limit=1, max_devices=None)
        assert bench.durable == [1, 2]
        assert len(bench.failures) == 1
        await bench.writer.close()

    run(test)


def test_a_crowd_waits_for_room() -> None:
    """At the bound of waiting outcomes workers are told to wait, and one commit makes room."""

    async def test() -> None:
        offload = HeldOffload()
        bench = Bench(offload=offload)
        bench.hand_in(0, MAX_WAITING)
        assert bench.writer.is_crowded
        offload.gate.release()  # the flush that is under way
        offload.gate.release()  # and the turn of whoever waits
        await bench.writer.room()
        assert not bench.writer.is_crowded
        assert len(bench.durable) == MAX_WAITING
        await bench.writer.close()

    run(test)


def test_a_thread_keeps_the_loop_free() -> None:
    """Over a thread the same holds: everything handed in is durable after a close."""

    async def test() -> None:
        offload = ThreadOffload()
        bench = Bench(offload=offload)  # type: ignore[arg-type]
        bench.hand_in(0, 700)
        await bench.writer.close()
        offload.close()
        assert sorted(bench.durable) == list(range(1, 701))

    run(test)


def test_what_cannot_be_told_is_a_failure() -> None:
    """Nobody waits for a flush that the timer began: an error in telling must end the run, not go unheard."""

    async def test() -> None:
        bench = Bench()

        def forgetful(_outcomes: Sequence[Outcome]) -> None:
            raise MemoryError

        bench.writer._on_durable = forgetful
        bench.hand_in(0, BLOCK_ROWS)
        await settle()
        assert len(bench.failures) == 1
        assert "MemoryError" in str(bench.failures[0])
        with pytest.raises(CheckpointError, match="cannot be told"):
            await bench.writer.flush()
        await bench.writer.close()

    run(test)


def test_every_commit_of_outcomes_is_marked() -> None:
    """The registry hears of a block, a split and a give-back, and of nothing that tells of no batch."""

    async def test() -> None:
        bench = Bench()
        marks: list[list[int]] = []
        bench.writer._mark = lambda batches: marks.append([batch.number for batch in batches])
        await bench.writer.check_lease()
        await bench.writer.flush()
        assert marks == []
        bench.hand_in(0, 2)
        await bench.writer.flush()
        await bench.writer.give_back([bench.batches[2].number])
        claimed = await bench.writer.claim(limit=2, max_devices=None)
        assert marks == [[], [], [batch.number for batch in claimed]]
        await bench.writer.close()

    run(test)


def test_what_comes_after_a_claim_has_its_own_age() -> None:
    """A claim writes what waits; the timer of that must not cut the next block short."""

    async def test() -> None:
        bench = Bench()
        bench.hand_in(0, 3)
        await asyncio.sleep(0.6 * BLOCK_AGE_S)
        await bench.writer.claim(limit=1, max_devices=None)
        bench.hand_in(3, 3)
        await asyncio.sleep(0.6 * BLOCK_AGE_S)
        assert len(bench.durable) == 3
        await asyncio.sleep(0.6 * BLOCK_AGE_S)
        assert len(bench.durable) == 6
        await bench.writer.close()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(test())


def test_blocks_that_gather_during_a_commit_follow_at_once() -> None:
    """More than a block waits when a commit ends: the next one does not wait for its age."""

    async def test() -> None:
        offload = HeldOffload()
        bench = Bench(offload=offload)
        bench.hand_in(0, BLOCK_ROWS)
        await settle()
        bench.hand_in(BLOCK_ROWS, 2 * BLOCK_ROWS)
        for _ in range(2):
            offload.gate.release()
            await settle()
        assert len(bench.durable) == 3 * BLOCK_ROWS
        await bench.writer.close()

    run(test)


def test_closing_waits_for_a_turn_whose_caller_is_gone() -> None:
    """A cancelled give-back is still under way when the run ends."""

    async def test() -> None:
        offload = HeldOffload()
        bench = Bench(offload=offload)
        giving = asyncio.create_task(bench.writer.give_back([bench.batches[0].number]))
        await settle()
        giving.cancel()
        await settle()
        closing = asyncio.create_task(bench.writer.close())
        await settle()
        assert not closing.done()
        offload.gate.release()
        await closing
        assert bench.batches[0].number not in bench.checkpoint._claims

    run(test)


def test_a_loop_that_ends_takes_its_turns_along() -> None:
    """A turn that is cancelled itself, as a closing loop does, leaves no complaint."""

    async def test() -> None:
        bench = Bench(offload=HeldOffload())
        flush = asyncio.create_task(bench.writer.flush())
        await settle()
        for turn in list(bench.writer._turns):
            turn.cancel()
        await asyncio.gather(flush, return_exceptions=True)
        assert flush.cancelled()

    run(test)
