"""The way from the event loop to the checkpoint: off the loop, and outcomes by the block.

Workers hand in outcomes and go on; a block is written when 2,048 are waiting or the oldest waits 100 ms, in
one statement and one commit. Counters, events and receipts advance in `on_durable`, after the commit.
Order is kept: a claim, a split or a give-back never overtakes outcomes that were handed in before it.

The first error is final. It is kept in `failure`, everything after it raises it again, and `on_failure`
tells the engine at once, so that nothing more is sent.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from dispatcher.errors import CheckpointError, DispatcherError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from dispatcher.checkpoint.base import Checkpoint, Pulse
    from dispatcher.clock import Clock
    from dispatcher.model import Batch, Doubt, Outcome

BLOCK_ROWS = 2_048
BLOCK_AGE_S = 0.1
"""A block is due at 2,048 rows, twice a claim's, or 100 ms, as long as a claim reaches ahead (ADR 13)."""
MAX_WAITING = 4_000
"""Outcomes that may wait for a commit before workers wait too: what a stalled disk can cost in memory."""

T = TypeVar("T")


class Offload(Protocol):
    """Runs a blocking call somewhere else, one at a time and in order."""

    async def run(self, call: Callable[[], T]) -> T: ...

    def close(self) -> None: ...


class ThreadOffload:
    """One thread of its own: the checkpoint's connection is never used by two at once."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    async def run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def close(self) -> None:
        self._executor.shutdown(wait=True)


class InlineOffload:
    """On the loop itself: for virtual time, where a thread would not advance the clock."""

    async def run(self, call: Callable[[], T]) -> T:
        return call()

    def close(self) -> None:
        """Nothing to close."""


class Writer:
    """Group commit over a `Checkpoint`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        clock: Clock,
        offload: Offload,
        mark: Callable[[Sequence[Batch]], None] = lambda _batches: None,
        on_durable: Callable[[Sequence[Outcome]], None] = lambda _outcomes: None,
        on_failure: Callable[[DispatcherError], None] = lambda _error: None,
    ) -> None:
        """Write to `checkpoint`; `mark` tells the registry of a commit, and of what it claimed."""
        self._checkpoint = checkpoint
        self._clock = clock
        self._offload = offload
        self._mark = mark
        self._on_durable = on_durable
        self._on_failure = on_failure
        self._waiting: list[Outcome] = []
        self._order = asyncio.Lock()
        self._turns: set[asyncio.Future[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        self.failure: DispatcherError | None = None

    @property
    def is_crowded(self) -> bool:
        """Whether so many outcomes wait that workers should wait for `room`."""
        return len(self._waiting) >= MAX_WAITING

    async def room(self) -> None:
        """Wait for the next commit."""
        await self.flush()

    def record(self, outcome: Outcome) -> None:
        """Hand in an outcome; it is durable when `on_durable` gets it."""
        waiting = self._waiting
        waiting.append(outcome)
        if len(waiting) >= BLOCK_ROWS:
            self._start_flush()
        elif self._timer is None and self._flushing is None:
            self._start_timer()

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(BLOCK_AGE_S, self._start_flush)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_flush(self) -> None:
        self._stop_timer()
        if self._flushing is None and self._waiting:
            self._flushing = asyncio.create_task(self._flush_waiting(), name="checkpoint-flush")

    async def _flush_waiting(self) -> None:
        try:
            await self._ordered(_nothing)
            while len(self._waiting) >= BLOCK_ROWS:
                await self._ordered(_nothing)
        except DispatcherError:
            pass  # kept in `failure`, told by on_failure, raised by the next call
        finally:
            self._flushing = None
            if self._waiting and self.failure is None:
                self._start_timer()  # what came in meanwhile has its own age

    async def flush(self) -> None:
        """Wait until everything handed in so far is durable."""
        await self._ordered(_nothing)

    async def _ordered(
        self, action: Callable[[Checkpoint, float], T], claimed: Callable[[T], Sequence[Batch]] | None = None
    ) -> T:
        """Write what waits and run `action` in one transaction, then mark it, as one turn of the queue.

        With `claimed`, which picks the claimed batches from the result, the action itself is worth a mark.
        The turn is shielded: a cancelled caller must not leave a commit that nobody takes notice of.
        """
        turn = asyncio.ensure_future(self._turn(action, claimed))
        self._turns.add(turn)
        turn.add_done_callback(self._turn_ended)
        return await asyncio.shield(turn)

    def _turn_ended(self, turn: asyncio.Future[Any]) -> None:
        self._turns.discard(turn)
        if not turn.cancelled():
            turn.exception()  # kept in `failure`; whoever asked may be gone

    async def _turn(
        self, action: Callable[[Checkpoint, float], T], claimed: Callable[[T], Sequence[Batch]] | None
    ) -> T:
        async with self._order:
            if self.failure is not None:
                raise self.failure
            block, self._waiting = self._waiting, []
            self._stop_timer()  # what comes in from here on has its own age
            durable: list[Outcome] = []
            try:
                return await self._offload.run(lambda: self._write(block, durable, action, claimed))
            except DispatcherError as error:
                self._fail(error)
                raise
            except Exception as error:
                # A bug. Unless it is final too, its block would be lost and nobody would be told.
                failure = CheckpointError(f"the checkpoint failed ({type(error).__name__}: {error})")
                self._fail(failure)
                raise failure from error
            finally:
                if durable:  # also where all was committed and only the registry's mark failed
                    self._tell(durable)

    def _tell(self, durable: Sequence[Outcome]) -> None:
        try:
            self._on_durable(durable)
        except Exception as error:  # a bug, or no memory: nobody waits for a flush, so it would go unheard
            self._fail(CheckpointError(f"what was written cannot be told ({type(error).__name__}: {error})"))
            raise self.failure from error  # type: ignore[misc]

    def _fail(self, error: DispatcherError) -> None:
        self.failure = error
        self._on_failure(error)

    def _write(
        self,
        block: Sequence[Outcome],
        durable: list[Outcome],
        action: Callable[[Checkpoint, float], T],
        claimed: Callable[[T], Sequence[Batch]] | None,
    ) -> T:
        now = self._clock.wall()
        with self._checkpoint.together(now=now):
            if block:
                self._checkpoint.record(block, now=now)
            result = action(self._checkpoint, now)
        durable += block
        if block or claimed is not None:
            self._mark(claimed(result) if claimed is not None else ())
        return result

    async def claim(self, *, limit: int, max_devices: int | None) -> list[Batch]:
        """Claim the next batches: durable in the checkpoint, then in the registry, then returned."""
        return await self._ordered(
            lambda checkpoint, now: checkpoint.claim(limit=limit, max_devices=max_devices, now=now),
            _all,
        )

    async def split(self, outcome: Outcome, parts: Sequence[tuple[str, ...]]) -> list[Batch]:
        """Split a poisoned batch; its children are planned and claimed."""
        return await self._ordered(lambda checkpoint, now: checkpoint.split(outcome, parts, now=now), _all)

    async def give_back(self, numbers: Sequence[int], *, sent: Collection[int] = ()) -> None:
        """Return batches that were not sent, or were only answered *not created* (`sent`), to planned."""
        await self._ordered(lambda checkpoint, now: checkpoint.give_back(numbers, sent=sent, now=now), _none)

    async def undo_split(self, number: int) -> None:
        """Return a split batch to planned."""
        await self._ordered(lambda checkpoint, now: checkpoint.undo_split(number, now=now), _none)

    async def doubts(self, *, after: int, limit: int) -> list[Doubt]:
        """Read batches in doubt that may be resent."""
        return await self._ordered(lambda checkpoint, _now: checkpoint.doubts(after=after, limit=limit))

    async def check_lease(self) -> None:
        """Raise `CheckpointLeased` where another runner took over."""
        await self._ordered(lambda checkpoint, now: checkpoint.check_lease(now=now))

    async def learn(
        self, *, account: str | None = None, rate: float | None = None, pulse: Pulse | None = None
    ) -> None:
        """Keep what was learnt of the service, and how this process fares."""
        await self._ordered(
            lambda checkpoint, now: checkpoint.learn(account=account, rate=rate, pulse=pulse, now=now)
        )

    async def close(self) -> None:
        """Write what waits, as far as that can be done, and stop."""
        if self._flushing is not None:
            await self._flushing
        self._stop_timer()
        if self._waiting and self.failure is None:
            await self.flush()
        while self._turns:  # of callers that were cancelled
            await asyncio.wait(self._turns)


def _all(batches: Sequence[Batch]) -> Sequence[Batch]:
    return batches


def _none(_result: object) -> Sequence[Batch]:
    return ()


def _nothing(_checkpoint: Checkpoint, _now: float) -> None:
    """An empty turn: only what waits is written."""
