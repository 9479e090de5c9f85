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

from typing import TYPE_CHECKING

from dispatcher.errors import DispatcherError
from dispatcher.flow import DOUBTS
from dispatcher.model import Kind
from dispatcher.policy.lane import LaneState
from dispatcher.policy.verdict import Verdict
from dispatcher.trial import Trial, systemic_reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.admission import Admission
    from dispatcher.checkpoint.writer import Writer
    from dispatcher.clock import Clock
    from dispatcher.feed import Feed
    from dispatcher.flight import Flight
    from dispatcher.flow import Flow
    from dispatcher.policy.lane import LanePolicy
    from dispatcher.sender import Sender
    from dispatcher.transport.base import Transport


class Engine:
    """Drives one lane's batches to their outcomes, phase by phase."""

    def __init__(
        self,
        *,
        flow: Flow,
        lane: LanePolicy,
        admission: Admission,
        sender: Sender,
        transport: Transport,
        writer: Writer,
        feed: Feed,
        clock: Clock,
    ) -> None:
        """Wire the parts."""
        self._flow = flow
        self._lane = lane
        self._admission = admission
        self._sender = sender
        self._transport = transport
        self._writer = writer
        self._feed = feed
        self._clock = clock
        self._draining = False
        self._stopped_by: DispatcherError | None = None

    def drain(self) -> None:
        """Stop claiming and sending; let calls in flight come home. May be called from a signal."""
        self._draining = True
        self._flow.halt()

    def fail(self, error: DispatcherError) -> None:
        """Stop for an error that is not the lane's: the checkpoint's, or a guard's."""
        self._stopped_by = self._stopped_by or error
        self._flow.halt()

    async def run(self) -> None:
        """Send until nothing is pending; return also when the lane stopped or the run was drained.

        Raises the `DispatcherError` of a checkpoint or guard that failed.
        """
        try:
            while not self._is_over():
                await self._phase()
            await self._flow.let_go()
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
            await self._flow.run()
            if self._lane.is_flowing and not self._is_over() and not self._flow.is_halted:
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
        return (
            bool(self._flow.held) and not self._lane.proven and self._lane.is_flowing and not self._is_over()
        )

    def _begin_trial(self) -> None:
        self._lane.begin_trial()
        self._sender.lane_changed()

    # One call at a time

    async def _solo(self, flight: Flight, *, probe: bool) -> Verdict | None:
        """Make one attempt alone; None when interrupted, REST when its token window has closed."""
        async with self._sender.gate:
            if not await self._admission.slot() or not await self._sender.permit(flight):
                return None if self._flow.is_halted else Verdict.REST
        return self._flow.verdict(flight, await self._sender.send(flight, probe=probe))

    async def _probe(self) -> None:
        """Find out whether the lane is back: one call, after the wait its state asks for."""
        self._flow.resume()
        if self._lane.state is LaneState.DENIED and not await self._renew():
            return
        await self._flow.nap(self._lane.probe_in_s(self._clock.monotonic()))
        self._sender.check_patience()
        if self._flow.is_halted or self._lane.state is LaneState.STOPPED:
            return
        if self._lane.lacks_credentials and not await self._renew():
            return
        flight = await self._probe_flight()
        if flight is None:
            self._draining = True  # nothing is left to send, so nothing needs the lane
            return
        verdict = await self._solo(flight, probe=True)
        if verdict is None or verdict is Verdict.RETRY:
            await self._flow.set_aside([flight])
        else:
            await self._flow.carry_out(flight, verdict)

    async def _renew(self) -> bool:
        """Fetch credentials and clock anew, and tell whether there are any; the next refusal is final."""
        try:
            answer = await self._flow.unless_halted(self._transport.renew())
        except TimeoutError:
            return False
        self._lane.renewed()
        if answer is not None:
            self._sender.observe(answer)
        return answer is None

    async def _probe_flight(self) -> Flight | None:
        """Prefer a batch in doubt: a probe in an outage may leave doubt, and must not spread it."""
        if self._flow.waiting:
            return self._flow.waiting.popleft()
        while not (found := await self._feed.fetch(1)):
            if not self._feed.begin_final_pass():
                return None
        return found[0]

    async def _trial(self) -> None:
        """Take the largest held batch apart: is it its devices, or is it the request itself?"""
        self._flow.resume()
        held, self._flow.held = self._flow.held, []
        root = max(held, key=lambda flight: len(flight.batch.targets))
        held.remove(root)
        trial = Trial(root)
        while self._lane.state is LaneState.TRIAL and not trial.accepted and not self._flow.is_halted:
            parent = trial.next_parent()
            if parent is None:
                break
            trial.branch(await self._flow.split(parent))
            await self._try_children(trial)
        await self._conclude(trial, held)

    async def _try_children(self, trial: Trial) -> None:
        while trial.untried and not trial.accepted:
            child = trial.untried.popleft()
            verdict = await self._solo(child, probe=False)
            while verdict is Verdict.RETRY and self._lane.state is LaneState.TRIAL:
                denied = child.answer is not None and child.answer.kind in (Kind.DENIED, Kind.EXPIRED)
                if denied or self._lane.lacks_credentials:
                    await self._renew()
                await self._flow.nap(self._flow.backoff_s(child))
                verdict = await self._solo(child, probe=False)
            if verdict is Verdict.ACCEPT or verdict in DOUBTS:
                await self._flow.carry_out(child, verdict)
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
            self._flow.held = [*held, *trial.poison]
            self._flow.due.extend(trial.untried)
        elif trial.can_undo and (trial.is_exhausted or self._lane.state is not LaneState.TRIAL):
            if trial.is_split:
                await self._writer.undo_split(trial.root.batch.number)
                await self._feed.give_back(held)
            else:
                await self._feed.give_back([trial.root, *held])
        else:
            await self._flow.set_aside([*held, *trial.poison, *trial.untried])
        if trial.accepted or trial.is_exhausted:
            self._lane.end_trial(accepted=trial.accepted, now_s=self._clock.monotonic(), because=because)
            self._sender.lane_changed()
