"""One attempt: the lease and the token window checked, the call made, its answer taken in.

Everything that learns from an answer learns here and nowhere else: the counters, the rate, the lane, the
account. What becomes of the batch is the engine's business.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dispatcher.errors import DispatcherError, PlanMismatch
from dispatcher.gate import Gate
from dispatcher.model import Answer, Created, Kind, Pace
from dispatcher.observe import Call, Hooks, LaneChanged, Progress, RateChanged, TaskReplayed

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.admission import Admission
    from dispatcher.checkpoint.base import Plan
    from dispatcher.checkpoint.writer import Writer
    from dispatcher.clock import Clock
    from dispatcher.flight import Flight
    from dispatcher.policy.lane import LanePolicy
    from dispatcher.policy.rate_control import Departure, RateController
    from dispatcher.policy.retry import RetryQuota
    from dispatcher.policy.token_window import TokenWindow
    from dispatcher.transport.base import Transport

LEASE_AGE_S = 10.0
"""A claim older than this is checked against the lease before its first send: a laptop may have slept."""
LOOK_S = 5.0
"""How long the end of a run waits for the look at its first task."""
REPLAY_SLACK_S = 2.0
"""A task this much older than the plan was made by somebody else; HTTP dates resolve one second."""


class Sender:
    """Makes the attempts of one lane."""

    def __init__(
        self,
        *,
        plan: Plan,
        account: str | None,
        transport: Transport,
        admission: Admission,
        lane: LanePolicy,
        rate: RateController,
        quota: RetryQuota,
        window: TokenWindow,
        writer: Writer,
        clock: Clock,
        hooks: Hooks,
        progress: Progress,
        on_change: Callable[[], None],
    ) -> None:
        """Send for `plan`; `on_change` is called when the lane stops flowing or a guard fails."""
        self._plan = plan
        self._account = account
        self._our_arns = ""
        self._transport = transport
        self._admission = admission
        self._lane = lane
        self._rate = rate
        self._quota = quota
        self._window = window
        self._writer = writer
        self._clock = clock
        self._hooks = hooks
        self._tell_call = hooks.call if hooks.hears_calls else None
        self._progress = progress
        self._on_change = on_change
        self._told_rate = rate.rate_per_s
        self._gate = Gate()
        self._look: asyncio.Task[None] | None = None
        self._may_replay = not lane.proven and not plan.rebuilt
        self.failure: DispatcherError | None = None

    @property
    def gate(self) -> Gate:
        """Only its holder may wait for a permit (see `admission`)."""
        return self._gate

    def may_send(self, flight: Flight) -> bool:
        """Tell whether an attempt now is inside the token window."""
        if flight.doubt_at is None:  # nearly always: nothing can have come of it, so no window has begun
            return True
        now_s = self._clock.monotonic()
        elapsed = None if flight.doubt_s is None else now_s - flight.doubt_s
        return self._window.is_open(flight.doubt_at, self._clock.wall(), elapsed)

    async def permit(self, flight: Flight) -> bool:
        """Take a slot's permit for `flight`, as the gate's holder; False when interrupted or too late."""
        if not await self._may_go(flight):
            return False
        wait_s = self._admission.reserve()
        if wait_s > 0.0:
            if not await self._admission.wait(wait_s):
                return False
            try:
                may_go = await self._may_go(flight)  # the machine may have slept while it waited
            except BaseException:
                self._admission.refund()
                raise
            if not may_go:
                self._admission.refund()
                return False
        self._admission.depart()
        return True

    async def _may_go(self, flight: Flight) -> bool:
        """Look at the lease, where the claim is old, and then at the window: the look waits for the disk."""
        if self._is_claimed_long_ago(flight):
            await self._check_lease(flight)
        return self.may_send(flight)

    def _is_claimed_long_ago(self, flight: Flight) -> bool:
        """Whether the claim is old, or a clock says that it may be.

        The monotonic clock stands still while a machine sleeps, and another host may have taken over.
        """
        now_s, now = self._clock.monotonic(), self._clock.wall()
        return now_s - flight.claimed_s > LEASE_AGE_S or not 0 <= now - flight.claimed_at <= LEASE_AGE_S

    async def _check_lease(self, flight: Flight) -> None:
        """See that the lease still holds."""
        await self._writer.check_lease()
        flight.claimed_s, flight.claimed_at = self._clock.monotonic(), self._clock.wall()

    async def send(self, flight: Flight, *, probe: bool = False) -> Answer:
        """Make the attempt that `permit` allowed."""
        sent_at, sent_s = self._clock.wall(), self._clock.monotonic()
        departure = self._rate.departed(sent_s)
        progress = self._progress
        progress.calls += 1
        if flight.attempts:
            progress.retried += 1
        progress.in_flight = self._admission.in_flight
        try:
            answer = await self._transport.create_task(flight.batch.targets, flight.client_token)
        finally:
            self._admission.arrive()
            progress.in_flight = self._admission.in_flight
        if answer.kind is Kind.NO_CREDENTIALS:
            self._unsent(flight, answer)
            return answer
        flight.returned(answer, sent_at=sent_at, sent_s=sent_s, probe=probe)
        self._learn(answer, departure)
        if self._tell_call is not None:
            self._tell_call(self._call(flight, answer, sent_at, sent_s))
        if answer.created is Created.YES:
            self._accepted(flight, answer)
        return answer

    def _call(self, flight: Flight, answer: Answer, sent_at: float, sent_s: float) -> Call:
        return Call(
            batch=flight.batch.number,
            devices=len(flight.batch.targets),
            attempt=flight.attempts,
            answer=answer.kind.value,
            task_id=answer.task_id,
            sent_at=sent_at,
            elapsed_s=self._clock.monotonic() - sent_s,
        )

    def _unsent(self, flight: Flight, answer: Answer) -> None:
        """Take a call back that never left: it is no attempt, and says nothing of the service."""
        self._progress.calls -= 1
        if flight.attempts:
            self._progress.retried -= 1
        flight.unsent(answer)
        self.observe(answer)

    def _learn(self, answer: Answer, departure: Departure) -> None:
        now_s = self._clock.monotonic()
        pace = answer.pace
        if pace is Pace.THROTTLE:
            self._progress.throttled += 1
        elif pace is Pace.FAULT:
            self._progress.faults += 1
        elif pace is Pace.OK:
            self._quota.succeeded()
        rate = self._rate.observe(now_s, pace, departure)
        if rate != self._progress.rate_per_s:
            self._admission.set_rate(rate)
            self._progress.rate_per_s = rate
            if self._hooks and abs(rate - self._told_rate) >= 0.1 * self._told_rate:
                self._told_rate = rate
                self._hooks.emit(RateChanged(run=self._plan.run, rate_per_s=round(rate, 3)))
        self._judge(answer, now_s)

    def observe(self, answer: Answer) -> None:
        """Let the lane take an answer in, and tell what came of it."""
        refusal = self._transport.refusal if answer.kind is Kind.NO_CREDENTIALS else None
        if refusal is not None:
            self.failure = self.failure or refusal
            self._on_change()
        self._judge(answer, self._clock.monotonic())

    def check_patience(self) -> None:
        """Stop the lane where its patience is over."""
        self._judge(None, self._clock.monotonic())

    def _judge(self, answer: Answer | None, now_s: float) -> None:
        lane = self._lane
        before = lane.state
        if answer is None:
            lane.check_patience(None, now_s)
        else:
            lane.observe(answer, now_s)
        if lane.state is not before:
            self.lane_changed()
        elif lane.reason != self._progress.lane_reason:
            self._progress.lane_reason = lane.reason

    def lane_changed(self) -> None:
        """Tell the world that the lane's state changed."""
        state = self._lane.state.value
        self._progress.lane_state, self._progress.lane_reason = state, self._lane.reason
        self._hooks.emit(LaneChanged(run=self._plan.run, lane=0, state=state, reason=self._lane.reason))
        if not self._lane.is_flowing:
            self._on_change()

    def _accepted(self, flight: Flight, answer: Answer) -> None:
        account = self._other_account(answer.task_arn)
        if account is not None:
            if self._account is not None:
                self.failure = self.failure or PlanMismatch(
                    f"a task was created in account {account}, but this run belongs to {self._account}",
                    hint="use the credentials the run began with, or run the manifest with another --run-key",
                )
                self._on_change()
            else:
                self._account = account
                self._background(flight, answer, account)
        elif self._may_replay:
            self._background(flight, answer, None)

    def _other_account(self, arn: str | None) -> str | None:
        """Return a task's account where it is not known to be the run's."""
        if arn is None or (self._our_arns and arn.startswith(self._our_arns)):
            return None
        account = account_of(arn)
        if account is not None and account == self._account:
            self._our_arns = ":".join(arn.split(":", 5)[:5]) + ":"  # the rest need not be taken apart
            return None
        return account

    def _background(self, flight: Flight, answer: Answer, account: str | None) -> None:
        """After the first acceptance: keep the account, and look the first task up."""
        look, self._may_replay = self._may_replay, False
        if self._look is None:
            self._look = asyncio.create_task(
                self._first_task(flight, answer, account, look=look), name="first-task"
            )

    async def _first_task(self, flight: Flight, answer: Answer, account: str | None, *, look: bool) -> None:
        try:
            if account is not None:
                await self._writer.learn(account=account)
            if not look or answer.task_id is None:
                return
            async with self._gate:
                if not await self._admission.slot() or not await self._admission.permit():
                    return
                self._admission.depart()
            try:
                view = await self._transport.describe_task(answer.task_id)
            finally:
                self._admission.arrive()
        except DispatcherError:
            return  # the writer keeps its failure, and the engine stops for it
        if isinstance(view, Answer):
            return
        skew_s = view.service_now - self._clock.wall() if view.service_now is not None else 0.0
        if view.created_at - skew_s < self._plan.planned_at - REPLAY_SLACK_S:
            self._progress.replayed += len(flight.batch.targets)
            self._hooks.emit(
                TaskReplayed(run=self._plan.run, task_id=answer.task_id, devices=len(flight.batch.targets))
            )

    async def close(self) -> None:
        """Wait for what runs in the background, but not long: at a low rate its permit may be far off."""
        if self._look is not None:
            await asyncio.wait({self._look}, timeout=LOOK_S)
            self._look.cancel()


def account_of(task_arn: str | None) -> str | None:
    """Return the account of `arn:partition:service:region:account:task/id`, or None where it has none."""
    if task_arn is None:
        return None
    parts = task_arn.split(":", 5)
    return parts[4] if len(parts) == 6 and parts[0] == "arn" and parts[4].isdigit() else None
