"""One run in this process: wired, sent, judged and written down."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING

from dispatcher.admission import Admission
from dispatcher.checkpoint.writer import Offload, ThreadOffload, Writer
from dispatcher.engine import Engine
from dispatcher.errors import DispatcherError, RunInterrupted, RunStopped
from dispatcher.feed import Feed
from dispatcher.flow import Flow
from dispatcher.hints import resume
from dispatcher.model import DEVICE_CLASSES, MAX_TARGETS, BatchState, Summary
from dispatcher.observe import BatchSettled, Hooks, Progress, RunEnded, RunStarted
from dispatcher.plan import ClientTokens
from dispatcher.policy.lane import LanePolicy, LaneState
from dispatcher.policy.rate_control import Aimd, FixedRate, RateController, RateSnapshot
from dispatcher.policy.rate_learner import RateLearner
from dispatcher.policy.retry import RetryQuota
from dispatcher.policy.token_bucket import TokenBucket
from dispatcher.policy.token_window import TokenWindow
from dispatcher.pulse import PULSE_S, Pulser
from dispatcher.report import CLASS_OF, instant
from dispatcher.sender import Sender

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from dispatcher.checkpoint.base import Plan
    from dispatcher.clock import Clock
    from dispatcher.model import Counts, Outcome
    from dispatcher.prepared import Prepared
    from dispatcher.settings import Resolved
    from dispatcher.transport.base import Transport

    OpenTransport = Callable[[Plan, Resolved], Awaitable[Transport]]


class Run:
    """One run under way in this process; `drain` stops it gently."""

    def __init__(
        self,
        prepared: Prepared,
        settings: Resolved,
        hooks: Hooks,
        clock: Clock,
        *,
        offload: Offload | None = None,
        rng: random.Random | None = None,
        pulse_s: float | None = PULSE_S,
    ) -> None:
        """Hold a prepared run; `go` sends it. The rest is for virtual time and replays."""
        self._pulse_s = pulse_s
        self._offload = offload
        self._rng = rng or random.Random()
        self._prepared = prepared
        self._began_at = clock.wall()
        self._doubting: set[int] = set()
        self._settings = settings
        self._hooks = hooks
        self._clock = clock
        self._engine: Engine | None = None
        self._rate: RateController | None = None
        self._drain_code: int | None = None
        self._last = prepared.counts, 0
        self._is_closed = False
        self.plan = prepared.plan
        self.progress = Progress(base=prepared.counts, in_doubt=prepared.counts.in_doubt)
        self.started_s = time.monotonic()

    @property
    def counts(self) -> Counts:
        """Counts of the whole run when this process began."""
        return self._prepared.counts

    @property
    def notes(self) -> Sequence[str]:
        """What preparing the run has to say to the operator."""
        return self._prepared.notes

    @property
    def is_resumed(self) -> bool:
        return self._prepared.is_resumed

    @property
    def may_be_known_elsewhere(self) -> bool:
        """Whether nothing here tells of a call of this run, and the service could be asked for one."""
        counts = self.counts
        unknown = not (counts.accepted or counts.in_doubt or counts.rejected)
        return unknown and self.plan.system_tags and self._settings.reconcile

    @property
    def account(self) -> str | None:
        """The account the run belongs to, as far as it is known."""
        return self.plan.account or self._prepared.checkpoint.standing().account

    @property
    def settings(self) -> Resolved:
        """What holds for this run."""
        return self._settings

    @property
    def forecast_s(self) -> float:
        """Seconds that what this process sets out to send takes at the ceiling, if nothing fails."""
        devices = self.counts.pending + self.counts.in_doubt
        devices = min(devices, self._settings.limit or devices)
        return round(-(-devices // MAX_TARGETS) / self._settings.rate_per_s, 1)

    @property
    def pace(self) -> RateSnapshot | None:
        """What is believed of the service's rate; None before anything is sent."""
        return None if self._rate is None else self._rate.snapshot()

    def is_complete(self) -> bool:
        """Whether nothing is pending and nothing is in doubt that may still be resent."""
        if self.counts.pending:
            return False
        newest = self._prepared.checkpoint.newest_doubt()
        window = TokenWindow(self._settings.resend_window_s)
        return newest is None or not window.is_open(newest, self._clock.wall(), None)

    def drain(self, exit_code: int = 130) -> None:
        """Stop claiming and sending, let calls in flight come home, and end with `exit_code`."""
        if self._drain_code is None:
            self._drain_code = exit_code
        if self._engine is not None:
            self._engine.drain()

    async def go(self, transport: Transport) -> Summary:
        """Send until the run is drained. Raises `DispatcherError`, with `summary`, where it was stopped."""
        prepared, clock, settings = self._prepared, self._clock, self._settings
        self.started_s = time.monotonic()
        offload = self._offload or ThreadOffload()
        writer = Writer(
            prepared.checkpoint,
            clock=clock,
            offload=offload,
            mark=lambda claimed: prepared.marker.committed(
                claimed, commits=prepared.checkpoint.standing().commits, now=clock.wall()
            ),
            on_durable=self._settled,
            on_failure=lambda error: self._engine.fail(error) if self._engine else None,
        )
        rate = self._rate = _rate_controller(settings, prepared.checkpoint.standing().learned_rate, clock)
        lane = LanePolicy(
            patience_s=settings.patience_s,
            max_in_flight=settings.max_in_flight,
            now_s=clock.monotonic(),
            proven=prepared.counts.accepted > 0,
        )
        self._engine = self._wire(writer, transport, rate, lane)
        pulser = self._pulser(writer, rate, lane)
        beating = asyncio.create_task(pulser.beat_until_cancelled(self._pulse_s)) if self._pulse_s else None
        error: DispatcherError | None = None
        try:
            if self._drain_code is not None:
                self._engine.drain()
            self._hooks.emit(
                RunStarted(
                    run=self.plan.run,
                    devices=self.counts.devices,
                    pending=self.counts.pending,
                    in_doubt=self.counts.in_doubt,
                    resumed=self.is_resumed,
                )
            )
            await self._engine.run()
        except DispatcherError as failure:
            error = failure
        finally:
            if beating is not None:
                beating.cancel()
            with contextlib.suppress(DispatcherError):
                await pulser.beat()
            with contextlib.suppress(DispatcherError):
                await writer.close()
            offload.close()
        return self._end(lane, error)

    def _pulser(self, writer: Writer, rate: RateController, lane: LanePolicy) -> Pulser:
        settings = self._settings
        return Pulser(
            writer=writer,
            progress=self.progress,
            rate=rate,
            lane=lane,
            began_at=self._began_at,
            ceiling_per_s=settings.rate_per_s,
            forecast_s=self.forecast_s,
            on_beat=self._progressed if self._hooks else None,
        )

    def _progressed(self) -> None:
        self._hooks.emit(self.progress.event(self.plan.run))

    def _wire(self, writer: Writer, transport: Transport, rate: RateController, lane: LanePolicy) -> Engine:
        settings, clock, prepared = self._settings, self._clock, self._prepared
        now_s = clock.monotonic()
        # Empty, for a first run too: whatever the network does to the first calls, their arrivals keep the
        # bound, and a run with its restarts keeps it together.
        bucket = TokenBucket(rate.rate_per_s, settings.burst, now_s=now_s)
        admission = Admission(bucket=bucket, lane=lane, clock=clock)
        quota = RetryQuota(now_s=now_s)
        self.progress.rate_per_s = rate.rate_per_s
        flow: Flow
        engine: Engine
        sender = Sender(
            plan=prepared.plan,
            account=self.account,
            transport=transport,
            admission=admission,
            lane=lane,
            rate=rate,
            quota=quota,
            window=TokenWindow(settings.resend_window_s),
            writer=writer,
            clock=clock,
            hooks=self._hooks,
            progress=self.progress,
            on_change=lambda: flow.halt(),  # noqa: PLW0108  (it is made below)
        )
        feed = Feed(
            writer=writer,
            tokens=ClientTokens(prepared.plan),
            clock=clock,
            max_attempts=settings.max_attempts,
            max_devices=settings.limit,
        )
        flow = Flow(
            lane=lane,
            admission=admission,
            sender=sender,
            writer=writer,
            feed=feed,
            rate=rate,
            quota=quota,
            clock=clock,
            rng=self._rng,
            max_attempts=settings.max_attempts,
            on_error=lambda error: engine.fail(error),  # noqa: PLW0108  (it is made below)
        )
        engine = Engine(
            flow=flow,
            lane=lane,
            admission=admission,
            sender=sender,
            transport=transport,
            writer=writer,
            feed=feed,
            clock=clock,
        )
        return engine

    def _settled(self, outcomes: Sequence[Outcome]) -> None:
        """Count and tell what has just become durable."""
        tells = bool(self._hooks)
        for outcome in outcomes:
            self._tally(outcome)
            if tells:
                self._hooks.emit(
                    BatchSettled(
                        run=self.plan.run,
                        batch=outcome.batch,
                        state=outcome.state,
                        devices=outcome.devices,
                        device_ids=outcome.targets,
                        attempts=outcome.attempts,
                        task_id=outcome.task_id,
                        error_code=outcome.code,
                        error_message=outcome.message,
                    )
                )

    def _tally(self, outcome: Outcome) -> None:
        progress, doubting = self.progress, self._doubting
        name = CLASS_OF.get(outcome.state)
        if name is not None:
            progress.settled[name] = progress.settled.get(name, 0) + outcome.devices
        if outcome.state is BatchState.IN_DOUBT:
            if outcome.batch not in doubting and not self._is_old_doubt(outcome):
                doubting.add(outcome.batch)
                progress.in_doubt += outcome.devices
        elif outcome.batch in doubting or self._is_old_doubt(outcome):
            doubting.discard(outcome.batch)
            progress.in_doubt -= outcome.devices

    def _is_old_doubt(self, outcome: Outcome) -> bool:
        """Whether the batch was in doubt already when this process began: it was sent before."""
        return outcome.first_sent_at is not None and outcome.first_sent_at < self._began_at

    def _end(self, lane: LanePolicy, error: DispatcherError | None) -> Summary:
        """Judge how the run stands, write it down, and raise where it was stopped."""
        checkpoint = self._prepared.checkpoint
        now = self._clock.wall()
        summary = self.summary()
        if error is None and lane.state is LaneState.STOPPED:
            error = RunStopped(
                f"the run was stopped: {lane.reason}",
                hint=f"put that right, then run the manifest again, or {resume_hint(self.plan.run)}",
            )
        if error is None and self._drain_code is not None:
            error = RunInterrupted(
                "interrupted; nothing is lost", exit_code=self._drain_code, hint=resume_hint(self.plan.run)
            )
        if error is not None:
            summary.exit, summary.error = error.exit_code, error.one_line()
            error.summary = summary
        with contextlib.suppress(DispatcherError):
            finished = error is None and not summary.counts.pending
            checkpoint.finish(None, now=now)  # it ends now, whenever it ended before
            checkpoint.finish(summary.exit if finished else None, now=now)
            checkpoint.release(now=now)
        counts = summary.counts
        classes = {name: getattr(counts, name) for name in DEVICE_CLASSES}
        self._hooks.emit(RunEnded(run=self.plan.run, exit=summary.exit, reason=summary.error, **classes))
        if error is not None:
            raise error
        return summary

    def summary(self) -> Summary:
        """Return how the whole run stands, and what this process did."""
        progress = self.progress
        counts, removed = self._counted()
        summary = Summary(
            run=self.plan.run,
            counts=counts,
            replayed=progress.replayed,
            calls=progress.calls,
            throttled=progress.throttled,
            retried=progress.retried,
            elapsed_s=time.monotonic() - self.started_s,
            faults=progress.faults,
            forecast_s=self.forecast_s,
            ceiling_per_s=self._settings.rate_per_s,
            allowed_per_s=progress.rate_per_s,
        )
        bad = counts.in_doubt or counts.rejected > removed
        if counts.pending:  # only --limit ends a run early without an error: judge what it sent
            bad = counts.in_doubt or counts.rejected > self.counts.rejected
        summary.exit = 1 if bad else 0
        return summary

    def _counted(self) -> tuple[Counts, int]:
        """Return the counts, and how many rejected devices left the manifest; the last ones once closed."""
        if not self._is_closed:
            with contextlib.suppress(DispatcherError):
                checkpoint = self._prepared.checkpoint
                self._last = checkpoint.counts(), checkpoint.removed_rejected()
        return self._last

    def already_complete(self) -> Summary:
        """Return the summary of a run that needs nothing more, and give the lease back."""
        checkpoint = self._prepared.checkpoint
        summary = self.summary()
        summary.already_complete, summary.elapsed_s = True, 0.0
        now = self._clock.wall()
        checkpoint.finish(summary.exit, now=now)
        summary.completed_at = instant(checkpoint.standing().finished_at)
        summary.notes = tuple(self.notes)
        checkpoint.release(now=now)
        return summary

    def abandon(self) -> None:
        """Give the lease back without having sent anything."""
        with contextlib.suppress(DispatcherError):
            self._prepared.checkpoint.release(now=self._clock.wall())

    def close(self) -> None:
        """Close the checkpoint and drop the locks; counts stay."""
        self._counted()
        self._is_closed = True
        self._prepared.close()


def _rate_controller(settings: Resolved, learned: float | None, clock: Clock) -> RateController:
    if settings.rate_control == "fixed":
        return FixedRate(settings.rate_per_s)
    if settings.rate_control == "aimd":
        return Aimd(settings.rate_per_s, learned)
    return RateLearner(settings.rate_per_s, learned, share=settings.share, now_s=clock.monotonic())


def resume_hint(run: str) -> str:
    """Return the exact next command."""
    return f"resume it with: {resume(run)}"
