"""The walk of one lane: claim, admit, send, settle, until nothing is pending or a guard says stop.

The engine drains what the checkpoint calls pending or in doubt and knows nothing else, so a first run and
a resume are the same code. It works in phases, and only the first has any concurrency:

    flow    workers send, each in turn through one gate: slot, then batch, then permit, then departure.
            A batch whose first attempt failed goes to a retry loop of its own (tenacity), which waits
            without a slot and queues for the same gate.
    probe   the lane is paused or in an outage: one call at a time, at growing intervals, burning no
            attempts. Before it, whatever was claimed and not sent, or was only answered *not created*,
            has been given back durably: a kill in an outage leaves no needless doubt.
    trial   nothing was ever accepted and what came back is poison: one batch is taken apart to learn
            whether it is the devices or the request (wrong region, wrong account).

A phase ends when the lane changes, the operator stops the run, a guard fails, or nothing is left to take.
When all is drained, whatever this process left in doubt gets one more pass.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

import tenacity

from dispatcher.errors import DispatcherError
from dispatcher.model import BatchState, Pace, Resend
from dispatcher.plan import halves
from dispatcher.policy.backoff import full_jitter
from dispatcher.policy.lane import HELD_LIMIT, LaneState
from dispatcher.policy.verdict import Verdict, verdict_for
from dispatcher.trial import Trial, systemic_reason

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine, Iterable, Sequence

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
    from dispatcher.transport.base import Transport

MAX_SETTLING = 512
"""Batches in backoff at once before no new one is fetched: bounds memory and doubt."""
_DOUBTS = {
    Verdict.REST: Resend.ALLOWED,
    Verdict.END: Resend.NEXT_PROCESS,
    Verdict.PARK: Resend.NEVER,
}
_BACKOFF = {Pace.THROTTLE: (0.1, 2.0), Pace.QUOTA: (1.0, 30.0)}  # (base_s, cap_s)
_BACKOFF_FAULT = (0.2, 10.0)


class Engine:
    """Drives one lane's batches to their outcomes."""

    def __init__(
        self,
        *,
        lane: LanePolicy,
        admission: Admission,
        sender: Sender,
        transport: Transport,
        writer: Writer,
        feed: Feed,
        rate: RateController,
        quota: RetryQuota,
        clock: Clock,
        rng: random.Random,
        max_attempts: int,
    ) -> None:
        """Wire the parts; `max_attempts` counts a batch's answers that leave doubt."""
        self._lane = lane
        self._admission = admission
        self._sender = sender
        self._transport = transport
        self._writer = writer
        self._feed = feed
        self._rate = rate
        self._quota = quota
        self._clock = clock
        self._rng = rng
        self._max_attempts = max_attempts
        self._ready: deque[Flight] = deque()  # claimed or in doubt from before, not yet sent here
        self._due: deque[Flight] = deque()  # retries whose backoff is over and split children: sent first
        self._aside: list[Flight] = []  # taken out of their retry loop by the end of a phase
        self._waiting: deque[Flight] = deque()  # in doubt, kept through a pause
        self._held: list[Flight] = []  # poisoned before any acceptance
        self._low_water = 0
        self._live = 0  # flights of this phase that are not done
        self._settling = 0
        self._stir = asyncio.Event()  # the head of the gate has something new to look at
        self._hungry = asyncio.Event()  # the feeder may fetch
        self._halt = asyncio.Event()  # the phase is over
        self._draining = False
        self._stopped_by: DispatcherError | None = None

    # What the outside may ask

    def drain(self) -> None:
        """Stop claiming and sending; let calls in flight come home. May be called from a signal."""
        self._draining = True
        self.halt()

    def fail(self, error: DispatcherError) -> None:
        """Stop for an error that is not the lane's: the checkpoint's, or a guard's."""
        self._stopped_by = self._stopped_by or error
        self.halt()

    def halt(self) -> None:
        """End the current phase as soon as the calls in flight are home."""
        self._halt.set()
        self._stir.set()
        self._hungry.set()
        self._admission.interrupt()
        for flight in self._due:
            if flight.turn is not None and not flight.turn.done():
                flight.turn.set_result(None)

    def _resume(self) -> None:
        """Begin a phase."""
        self._halt.clear()
        self._admission.open()

    # The walk

    async def run(self) -> None:
        """Send until nothing is pending; return also when the lane stopped or the run was drained.

        Raises the `DispatcherError` of a checkpoint or guard that failed.
        """
        try:
            while not self._is_over():
                await self._phase()
            await self._let_go()
        except DispatcherError as error:
            self.fail(error)
        finally:
            await self._sender.close()
        if self._stopped_by is not None:
            raise self._stopped_by

    def _is_over(self) -> bool:
        self._stopped_by = self._stopped_by or self._writer.failure or self._sender.failure
        return self._draining or self._stopped_by is not None or self._lane.state is LaneState.STOPPED

    async def _phase(self) -> None:
        state = self._lane.state
        if state in (LaneState.PROBING, LaneState.PAUSED, LaneState.DENIED):
            await self._probe()
        elif state is LaneState.TRIAL:
            await self._trial()
        else:
            await self._flow()
            if self._lane.is_flowing and not self._is_over() and not self._halt.is_set():
                self._drained()
            elif self._must_try():
                self._begin_trial()

    def _drained(self) -> None:
        """Nothing is left to take: try what was held back, then doubts once more, then end."""
        if self._must_try():
            self._begin_trial()
        elif not self._feed.begin_final_pass():
            self._draining = True

    def _must_try(self) -> bool:
        return bool(self._held) and not self._lane.proven and self._lane.is_flowing and not self._is_over()

    def _begin_trial(self) -> None:
        self._lane.begin_trial()
        self._sender.lane_changed()

    # Flow

    async def _flow(self) -> None:
        """Send concurrently until the lane leaves its flow or nothing is left."""
        self._resume()
        self._due.extend(self._waiting)
        self._waiting.clear()
        self._live = len(self._due)
        self._settling = 0
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._feeding = self._spawn(self._fill(), "feeder")
            self._release_held()
            for number in range(self._lane.max_in_flight):
                self._spawn(self._work(), f"worker-{number}")
        left = [*self._aside, *self._ready, *self._due]
        self._aside, self._ready, self._due = [], deque(), deque()
        if not self._must_try():
            left += self._held
            self._held = []
        await self._set_aside(left)

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        return self._tasks.create_task(self._guarded(work), name=name)

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        """Let calls in flight come home when the checkpoint fails, instead of cancelling them."""
        try:
            await work
        except DispatcherError as error:
            self.fail(error)

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
                flight.turn.set_result(answer)
            else:
                await self._digest(flight, answer)
            if self._writer.is_crowded:
                await self._writer.room()

    async def _next(self) -> Flight | None:
        """Wait in line for a slot, a batch and its permit; None when the phase is over."""
        async with self._sender.gate:
            while await self._admission.slot() and (flight := await self._take()) is not None:
                if await self._sender.permit(flight):
                    return flight
                self._not_sent(flight)
            return None

    async def _take(self) -> Flight | None:
        """Return the next flight, retries before new batches; None when the phase is over."""
        while not self._halt.is_set():
            if self._due:
                return self._due.popleft()
            if self._ready:
                if len(self._ready) <= self._low_water:
                    self._hungry.set()
                return self._ready.popleft()
            if self._feeding.done() and not self._live:
                return None
            self._stir.clear()
            self._hungry.set()
            await self._stir.wait()
        return None

    def _not_sent(self, flight: Flight) -> None:
        """Put a flight back that got no permit: interrupted, or its token window has closed."""
        if flight.turn is not None:
            flight.turn.set_result(None)
        elif self._halt.is_set():
            self._ready.appendleft(flight)
        else:
            self._done()  # its doubt is on record, and only a reconcile may settle it now

    async def _digest(self, flight: Flight, answer: Answer) -> None:
        """Carry out the verdict on a batch."""
        verdict = self._verdict(flight, answer)
        if verdict is Verdict.RETRY:
            self._settling += 1
            self._spawn(self._settle(flight), f"settle-{flight.batch.number}")
            return
        await self._carry_out(flight, verdict)
        self._done()

    def _verdict(self, flight: Flight, answer: Answer) -> Verdict:
        return verdict_for(
            answer,
            targets=len(flight.batch.targets),
            tainted=flight.is_tainted,
            unknown=flight.unknown,
            max_attempts=self._max_attempts,
        )

    async def _carry_out(self, flight: Flight, verdict: Verdict) -> None:
        """Settle a flight by any verdict but RETRY."""
        if verdict is Verdict.ACCEPT:
            self._record(flight, BatchState.ACCEPTED)
            if self._held:
                self._release_held()
        elif verdict in _DOUBTS:
            self._record(flight, BatchState.IN_DOUBT, resend=_DOUBTS[verdict])
        elif not self._lane.proven:
            self._held.append(flight)
            if len(self._held) >= HELD_LIMIT:
                self.halt()
        elif verdict is Verdict.REJECT:
            self._record(flight, BatchState.REJECTED)
        else:
            children = await self._split(flight)
            self._live += len(children)
            self._due.extend(children)
            self._stir.set()

    def _record(self, flight: Flight, state: BatchState, *, resend: Resend = Resend.ALLOWED) -> None:
        self._writer.record(flight.outcome(state, self._clock.wall(), resend=resend))

    async def _split(self, flight: Flight) -> list[Flight]:
        outcome = flight.outcome(BatchState.SPLIT, self._clock.wall())
        return self._feed.flights(await self._writer.split(outcome, halves(flight.batch.targets)))

    def _release_held(self) -> None:
        """Split or reject what was held back: the lane is proven, so it was the devices."""
        if not self._lane.proven:
            return
        held, self._held = self._held, []
        for flight in held:
            assert flight.answer is not None
            self._live += 1
            self._spawn(self._digest(flight, flight.answer), f"held-{flight.batch.number}")

    def _done(self) -> None:
        self._live -= 1
        if not self._live:
            self._stir.set()

    # Retries

    async def _settle(self, flight: Flight) -> None:
        """Retry a batch that failed once, until a verdict other than RETRY or the end of the phase."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_result(lambda verdict: verdict is Verdict.RETRY),
            wait=lambda _state: self._backoff_s(flight),
            sleep=self._nap,
        )
        await self._nap(self._backoff_s(flight))
        verdict: Verdict | None = await retrying(self._again, flight)
        if verdict is None:
            self._aside.append(flight)
        else:
            await self._carry_out(flight, verdict)
        self._settling -= 1
        self._hungry.set()
        self._done()

    async def _again(self, flight: Flight) -> Verdict | None:
        """Queue for another attempt and judge its answer; None when the phase ended first."""
        if self._halt.is_set():
            return None
        flight.turn = asyncio.get_running_loop().create_future()
        self._due.append(flight)
        self._stir.set()
        answer = await flight.turn
        flight.turn = None
        if answer is not None:
            return self._verdict(flight, answer)
        return None if self._halt.is_set() else Verdict.REST  # interrupted, or its token window closed

    def _backoff_s(self, flight: Flight) -> float:
        assert flight.answer is not None
        pace = flight.answer.pace
        base_s, cap_s = _BACKOFF.get(pace, _BACKOFF_FAULT)
        delay_s = full_jitter(flight.attempts, base_s=base_s, cap_s=cap_s, rng=self._rng)
        if pace is Pace.FAULT:
            delay_s = max(delay_s, self._quota.take(self._clock.monotonic()))
        return delay_s

    async def _nap(self, delay_s: float) -> None:
        """Sleep, unless the phase ends first."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._halt.wait(), delay_s)

    # One call at a time

    async def _solo(self, flight: Flight, *, probe: bool) -> Verdict | None:
        """Make one attempt alone; None when interrupted, REST when its token window has closed."""
        async with self._sender.gate:
            if not await self._admission.slot() or not await self._sender.permit(flight):
                return None if self._halt.is_set() else Verdict.REST
        return self._verdict(flight, await self._sender.send(flight, probe=probe))

    async def _probe(self) -> None:
        """Find out whether the lane is back: one call, after the wait its state asks for."""
        self._resume()
        if self._lane.state is LaneState.DENIED:
            await self._transport.renew()
            self._lane.renewed()
        await self._nap(self._lane.probe_in_s(self._clock.monotonic()))
        self._lane.check_patience(None, self._clock.monotonic())
        if self._halt.is_set() or self._lane.state is LaneState.STOPPED:
            return
        flight = await self._probe_flight()
        if flight is None:
            self._draining = True  # nothing is left to send, so nothing needs the lane
            return
        verdict = await self._solo(flight, probe=True)
        if verdict is None or verdict is Verdict.RETRY:
            await self._set_aside([flight])
        else:
            await self._carry_out(flight, verdict)

    async def _probe_flight(self) -> Flight | None:
        """Prefer a batch in doubt: a probe in an outage may leave doubt, and must not spread it."""
        if self._waiting:
            return self._waiting.popleft()
        while not (found := await self._feed.fetch(1)):
            if not self._feed.begin_final_pass():
                return None
        return found[0]

    async def _trial(self) -> None:
        """Take the largest held batch apart: is it its devices, or is it the request itself?"""
        self._resume()
        held, self._held = self._held, []
        root = max(held, key=lambda flight: len(flight.batch.targets))
        held.remove(root)
        trial = Trial(root)
        while self._lane.state is LaneState.TRIAL and not trial.accepted and not self._halt.is_set():
            parent = trial.next_parent()
            if parent is None:
                break
            trial.branch(await self._split(parent))
            await self._try_children(trial)
        await self._conclude(trial, held)

    async def _try_children(self, trial: Trial) -> None:
        while trial.untried and not trial.accepted:
            child = trial.untried.popleft()
            verdict = await self._solo(child, probe=False)
            while verdict is Verdict.RETRY and self._lane.state is LaneState.TRIAL:
                await self._nap(self._backoff_s(child))
                verdict = await self._solo(child, probe=False)
            if verdict is Verdict.ACCEPT or verdict in _DOUBTS:
                await self._carry_out(child, verdict)
                trial.settled(accepted=verdict is Verdict.ACCEPT)
            elif verdict in (Verdict.SPLIT, Verdict.REJECT):
                trial.poisoned(child)
            else:
                trial.untried.appendleft(child)
                return

    async def _conclude(self, trial: Trial, held: Sequence[Flight]) -> None:
        """Open the lane for the rest, or undo the trial and stop the lane."""
        because = systemic_reason(trial.root)
        if trial.accepted:
            self._held = [*held, *trial.poison]
            self._due.extend(trial.untried)
        elif trial.can_undo and (trial.is_exhausted or self._lane.state is not LaneState.TRIAL):
            if trial.is_split:
                await self._writer.undo_split(trial.root.batch.number)
                await self._feed.give_back(held)
            else:
                await self._feed.give_back([trial.root, *held])
        else:
            await self._set_aside([*held, *trial.poison, *trial.untried])
        if trial.accepted or trial.is_exhausted:
            self._lane.end_trial(accepted=trial.accepted, now_s=self._clock.monotonic(), because=because)
            self._sender.lane_changed()

    # Putting down

    async def _set_aside(self, flights: Iterable[Flight]) -> None:
        """Keep what is in doubt for later, and give the rest back to the plan, durably."""
        kept: list[Flight] = []
        free: list[Flight] = []
        for flight in flights:
            (kept if flight.is_tainted else free).append(flight)
        self._waiting.extend(kept)
        await self._feed.give_back(free)

    async def _let_go(self) -> None:
        """At the end: what is still in doubt goes on record with its evidence, the rest is given back."""
        left = [*self._held, *self._due, *self._waiting]
        self._held, self._due = [], deque()
        self._waiting.clear()
        await self._set_aside(left)
        for flight in self._waiting:
            if flight.attempts:
                self._record(flight, BatchState.IN_DOUBT)
        await self._writer.flush()
