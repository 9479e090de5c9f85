"""The one phase with any concurrency: workers send, and a batch that failed once retries on its own.

Workers line up at one gate, and whoever is at its head waits for a slot, takes the next batch, waits for
its permit and departs; so exactly one batch waits for a permit, retries go before new batches, and the
order is first come, first served. A first attempt costs no task and no retry machinery; a batch that failed
goes to a tenacity loop, which waits without a slot and queues for the same gate.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, TypeVar

import tenacity

from dispatcher.errors import DispatcherError
from dispatcher.model import BatchState, Pace, Resend
from dispatcher.plan import halves
from dispatcher.policy.backoff import full_jitter
from dispatcher.policy.lane import HELD_LIMIT, LaneState
from dispatcher.policy.verdict import Verdict, verdict_for

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine, Iterable

    from dispatcher.admission import Admission
    from dispatcher.checkpoint.writer import Writer
    from dispatcher.clock import Clock
    from dispatcher.feed import Feed
    from dispatcher.flight import Flight
    from dispatcher.model import Answer
    from dispatcher.policy.lane import LanePolicy
    from dispatcher.policy.rate_control import RateController
    from dispatcher.policy.retry import RetryQuota
    from dispatcher.sender import Sender

T = TypeVar("T")

LEAST_NAP_S = 0.001
"""What a loop's timers resolve: one that fires early must not spin."""
MAX_SETTLING = 512
"""Batches in backoff at once before no new one is fetched: bounds memory and doubt."""
DOUBTS = {
    Verdict.REST: Resend.ALLOWED,
    Verdict.END: Resend.NEXT_PROCESS,
    Verdict.PARK: Resend.NEVER,
}
_BACKOFF = {Pace.THROTTLE: (0.1, 2.0), Pace.QUOTA: (1.0, 30.0)}  # (base_s, cap_s)
_BACKOFF_FAULT = (0.2, 10.0)


class Flow:
    """Sends a lane's batches concurrently, and holds what is between a claim and an outcome."""

    def __init__(
        self,
        *,
        lane: LanePolicy,
        admission: Admission,
        sender: Sender,
        writer: Writer,
        feed: Feed,
        rate: RateController,
        quota: RetryQuota,
        clock: Clock,
        rng: random.Random,
        max_attempts: int,
        on_error: Callable[[DispatcherError], None],
    ) -> None:
        """Wire the parts; `max_attempts` counts a batch's answers that leave doubt."""
        self._lane = lane
        self._admission = admission
        self._sender = sender
        self._writer = writer
        self._feed = feed
        self._rate = rate
        self._quota = quota
        self._clock = clock
        self._rng = rng
        self._max_attempts = max_attempts
        self._on_error = on_error
        self.due: deque[Flight] = deque()
        """Retries whose backoff is over, and split children: sent before anything new."""
        self.waiting: deque[Flight] = deque()
        """In doubt, kept through a pause."""
        self.held: list[Flight] = []
        """Poisoned before any acceptance; neither split nor rejected until the lane is proven."""
        self._ready: deque[Flight] = deque()  # claimed or in doubt from before, not yet sent here
        self._aside: list[Flight] = []  # taken out of their retry loop by the end of the phase
        self._low_water = 0
        self._live = 0  # flights of this phase that are not done
        self._settling = 0
        self._stir = asyncio.Event()  # the head of the gate has something new to look at
        self._hungry = asyncio.Event()  # the feeder may fetch
        self._halt = asyncio.Event()  # the phase is over

    @property
    def is_halted(self) -> bool:
        """Whether the current phase was told to end."""
        return self._halt.is_set()

    def halt(self) -> None:
        """End the current phase as soon as the calls in flight are home."""
        self._halt.set()
        self._stir.set()
        self._hungry.set()
        self._admission.interrupt()
        # A retry's own loop takes it aside; were it left in line as well, it would be sent and settled twice.
        retries = [flight for flight in self.due if flight.turn is not None]
        self.due = deque(flight for flight in self.due if flight.turn is None)
        for flight in retries:
            flight.end_turn(None)

    def resume(self) -> None:
        """Begin a phase."""
        self._halt.clear()
        self._admission.open()

    async def run(self) -> None:
        """Send concurrently until the lane leaves its flow or nothing is left."""
        self.resume()
        self.due.extend(self.waiting)
        self.waiting.clear()
        self._live = len(self.due)
        self._settling = 0
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._feeding = self._spawn(self._fill(), "feeder")
            self._release_held()
            for number in range(self._lane.max_in_flight):
                self._spawn(self._work(), f"worker-{number}")
        left = [*self._aside, *self._ready, *self.due]
        self._aside, self._ready, self.due = [], deque(), deque()
        if self._lane.proven or not self._lane.is_flowing:
            left += self.held
            self.held = []
        await self.set_aside(left)

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        return self._tasks.create_task(self._guarded(work), name=name)

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        """Let calls in flight come home when the checkpoint fails, instead of cancelling them."""
        try:
            await work
        except DispatcherError as error:
            self._on_error(error)

    async def _fill(self) -> None:
        """Keep some batches ready: the next block is fetched when half of the last is sent."""
        self._hungry.set()
        try:
            while not self._halt.is_set():
                await self._hungry.wait()
                self._hungry.clear()
                crowded = self._settling >= MAX_SETTLING or len(self._ready) > self._low_water
                if crowded or self._halt.is_set():
                    continue
                flights = await self._feed.fetch(self._feed.block(self._rate.rate_per_s))
                if not flights:
                    return
                self._low_water = len(flights) // 2
                self._live += len(flights)
                self._ready.extend(flights)
                self._stir.set()
        finally:
            self._stir.set()

    async def _work(self) -> None:
        """Send batch after batch; there is one worker per slot of the window."""
        while (flight := await self._next()) is not None:
            answer = await self._sender.send(flight)
            if flight.turn is not None:
                flight.end_turn(answer)
            elif (verdict := self.verdict(flight, answer)) is Verdict.ACCEPT:
                self._accept(flight)  # nearly always, and nothing to wait for
                self._done()
            else:
                await self._digest(flight, verdict)
            if self._writer.is_crowded:
                await self._writer.room()

    async def _next(self) -> Flight | None:
        """Wait in line for a slot, a batch and its permit; None when the phase is over."""
        async with self._sender.gate:
            while await self._admission.slot():
                flight = self._at_hand() or await self._take()
                if flight is None:
                    return None
                try:
                    if await self._sender.permit(flight):
                        return flight
                except BaseException:
                    flight.end_turn(None)  # its retry loop must not wait for a worker that is gone
                    raise
                self._not_sent(flight)
            return None

    def _at_hand(self) -> Flight | None:
        """Return the next flight, retries before new batches; None when there is none now."""
        if self.due:
            return self.due.popleft()
        if not self._ready:
            return None
        if len(self._ready) <= self._low_water:
            self._hungry.set()
        return self._ready.popleft()

    async def _take(self) -> Flight | None:
        """Wait for the next flight; None when the phase is over."""
        while not self._halt.is_set():
            if flight := self._at_hand():
                return flight
            if self._feeding.done() and not self._live:
                return None
            self._stir.clear()
            self._hungry.set()
            await self._stir.wait()
        return None

    def _not_sent(self, flight: Flight) -> None:
        """Put a flight back that got no permit: interrupted, or its token window has closed."""
        if flight.turn is not None:
            flight.end_turn(None)
        elif self._halt.is_set():
            self._ready.appendleft(flight)
        else:
            if flight.attempts:  # else what an earlier process recorded stands
                self._record(flight, BatchState.IN_DOUBT)
            self._done()  # only a reconcile may settle it now

    async def _digest(self, flight: Flight, verdict: Verdict) -> None:
        """Carry out the verdict on a batch."""
        if verdict is Verdict.RETRY:
            self._settling += 1
            self._spawn(self._settle(flight), f"settle-{flight.batch.number}")
            return
        await self.carry_out(flight, verdict)
        self._done()

    def verdict(self, flight: Flight, answer: Answer) -> Verdict:
        return verdict_for(
            answer,
            targets=len(flight.batch.targets),
            tainted=flight.is_tainted,
            unknown=flight.unknown,
            max_attempts=self._max_attempts,
        )

    async def carry_out(self, flight: Flight, verdict: Verdict) -> None:
        """Settle a flight by any verdict but RETRY."""
        if verdict is Verdict.ACCEPT:
            self._accept(flight)
        elif verdict in DOUBTS:
            self._record(flight, BatchState.IN_DOUBT, resend=DOUBTS[verdict])
        elif not self._lane.proven:
            self.held.append(flight)
            if len(self.held) >= HELD_LIMIT:
                self.halt()
        elif verdict is Verdict.REJECT:
            self._record(flight, BatchState.REJECTED)
        else:
            children = await self.split(flight)
            self._live += len(children)
            self.due.extend(children)
            self._stir.set()

    def _accept(self, flight: Flight) -> None:
        self._record(flight, BatchState.ACCEPTED)
        if self.held:
            self._release_held()

    def _record(self, flight: Flight, state: BatchState, *, resend: Resend = Resend.ALLOWED) -> None:
        self._writer.record(flight.outcome(state, self._clock.wall(), resend=resend))

    async def split(self, flight: Flight) -> list[Flight]:
        outcome, at = flight.outcome(BatchState.SPLIT, self._clock.wall()), self._feed.instant()
        return self._feed.flights(await self._writer.split(outcome, halves(flight.batch.targets)), at)

    def _release_held(self) -> None:
        """Split or reject what was held back: the lane is proven, so it was the devices."""
        if not self._lane.proven:
            return
        held, self.held = self.held, []
        for flight in held:
            assert flight.answer is not None
            self._live += 1
            self._spawn(
                self._digest(flight, self.verdict(flight, flight.answer)), f"held-{flight.batch.number}"
            )

    def _done(self) -> None:
        self._live -= 1
        if not self._live:
            self._stir.set()

    # Retries

    async def _settle(self, flight: Flight) -> None:
        """Retry a batch that failed once, until a verdict other than RETRY or the end of the phase."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_result(lambda verdict: verdict is Verdict.RETRY),
            wait=lambda _state: self.backoff_s(flight),
            sleep=self.nap,
        )
        await self.nap(self.backoff_s(flight))
        verdict: Verdict | None = await retrying(self._again, flight)
        if verdict is None:
            self._aside.append(flight)
        else:
            await self.carry_out(flight, verdict)
        self._settling -= 1
        self._hungry.set()
        self._done()

    async def _again(self, flight: Flight) -> Verdict | None:
        """Queue for another attempt and judge its answer; None when the phase ended first."""
        if self._halt.is_set():
            return None
        flight.turn = asyncio.get_running_loop().create_future()
        self.due.append(flight)
        self._stir.set()
        answer = await flight.turn
        flight.turn = None
        if answer is not None:
            return self.verdict(flight, answer)
        return None if self._halt.is_set() else Verdict.REST  # interrupted, or its token window closed

    def backoff_s(self, flight: Flight) -> float:
        assert flight.answer is not None
        pace = flight.answer.pace
        base_s, cap_s = _BACKOFF.get(pace, _BACKOFF_FAULT)
        attempts = max(1, flight.attempts)  # none was made where there were no credentials
        delay_s = full_jitter(attempts, base_s=base_s, cap_s=cap_s, rng=self._rng)
        if pace is Pace.FAULT:
            delay_s = max(delay_s, self._quota.take(self._clock.monotonic()))
        return delay_s

    async def nap(self, delay_s: float) -> None:
        """Sleep, unless the phase or the lane's patience ends first."""
        until_s = self._clock.monotonic() + delay_s
        while not self._halt.is_set() and (left_s := until_s - self._clock.monotonic()) > 0:
            patience_s = self._lane.patience_left_s(self._clock.monotonic())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._halt.wait(), min(left_s, max(patience_s, LEAST_NAP_S)))
            self._sender.check_patience()  # others may have renewed it meanwhile
            if self._lane.state is LaneState.STOPPED:
                return

    async def unless_halted(self, work: Coroutine[None, None, T]) -> T:
        """Return what `work` returns; raises TimeoutError where the phase or the patience ends first."""
        doing, halted = asyncio.ensure_future(work), asyncio.ensure_future(self._halt.wait())
        try:
            patience_s = self._lane.patience_left_s(self._clock.monotonic())
            await asyncio.wait({doing, halted}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            self._sender.check_patience()
            raise TimeoutError
        finally:
            doing.cancel()
            halted.cancel()

    # Putting down

    async def set_aside(self, flights: Iterable[Flight]) -> None:
        """Keep what is in doubt for later, and give the rest back to the plan, durably."""
        kept: list[Flight] = []
        free: list[Flight] = []
        for flight in flights:
            (kept if flight.is_tainted else free).append(flight)
        self.waiting.extend(kept)
        await self._feed.give_back(free)

    async def let_go(self) -> None:
        """At the end: what is still in doubt goes on record with its evidence, the rest is given back."""
        left = [*self.held, *self.due, *self.waiting]
        self.held, self.due = [], deque()
        self.waiting.clear()
        await self.set_aside(left)
        for flight in self.waiting:
            if flight.attempts:
                self._record(flight, BatchState.IN_DOUBT)
        await self._writer.flush()
