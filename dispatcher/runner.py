"""The library's front door: `open_dispatcher`, and the runs it starts, resumes and reports.

    async with open_dispatcher(Settings(region="us-west-2")) as dispatcher:
        summary = await dispatcher.run(Manifest.load("reboot.yaml"), on_event=print)
        async for receipt in dispatcher.receipts(summary.run): ...

Blocking work (planning, the checkpoint) happens on threads; nothing here is global.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from typing import TYPE_CHECKING

from dispatcher.admission import Admission
from dispatcher.checkpoint.writer import ThreadOffload, Writer
from dispatcher.clock import Clock, SystemClock
from dispatcher.engine import Engine
from dispatcher.errors import DispatcherError, PlanMismatch, RunInterrupted, RunStopped, UsageError
from dispatcher.feed import Feed
from dispatcher.model import Command, Summary
from dispatcher.observe import BatchSettled, Hooks, Progress, RunEnded, RunStarted
from dispatcher.plan import ClientTokens
from dispatcher.policy.lane import LanePolicy, LaneState
from dispatcher.policy.rate_control import Aimd, FixedRate, RateController
from dispatcher.policy.retry import RetryQuota
from dispatcher.policy.token_bucket import TokenBucket
from dispatcher.policy.token_window import TokenWindow
from dispatcher.prepare import Intent, Preparation, Prepared, find_checkpoint
from dispatcher.report import CLASS_OF, instant, open_reader, receipts
from dispatcher.sender import Sender
from dispatcher.settings import Resolved, Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence

    from dispatcher.checkpoint.base import Plan
    from dispatcher.diff import Diff
    from dispatcher.manifest import Manifest
    from dispatcher.model import Counts, Outcome, Receipt
    from dispatcher.observe import Hook
    from dispatcher.transport.base import Transport

    OpenTransport = Callable[[Plan, Resolved], Awaitable[Transport]]


class Run:
    """One run under way in this process; `drain` stops it gently."""

    def __init__(self, prepared: Prepared, settings: Resolved, hooks: Hooks, clock: Clock) -> None:
        """Hold a prepared run; `go` sends it."""
        self._prepared = prepared
        self._settings = settings
        self._hooks = hooks
        self._clock = clock
        self._engine: Engine | None = None
        self._drain_code: int | None = None
        self.plan = prepared.plan
        self.progress = Progress(base=prepared.counts)
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
    def account(self) -> str | None:
        """The account the run belongs to, as far as it is known."""
        return self.plan.account or self._prepared.checkpoint.standing().account

    @property
    def settings(self) -> Resolved:
        """What holds for this run."""
        return self._settings

    def is_complete(self) -> bool:
        """Whether nothing is pending and nothing is in doubt that may still be resent."""
        if self.counts.pending:
            return False
        newest = self._prepared.checkpoint.newest_doubt()
        return newest is None or not _window(self._settings).is_open(newest, self._clock.wall(), None)

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
        offload = ThreadOffload()
        writer = Writer(
            prepared.checkpoint,
            clock=clock,
            offload=offload,
            mark=lambda batches: prepared.marker.claimed(batches, now=clock.wall()),
            on_durable=self._settled,
            on_failure=lambda error: self._engine.fail(error) if self._engine else None,
        )
        rate = _rate_controller(settings, prepared.checkpoint.standing().learned_rate, clock)
        lane = LanePolicy(
            patience_s=settings.patience_s,
            max_in_flight=settings.max_in_flight,
            now_s=clock.monotonic(),
            proven=prepared.counts.accepted > 0,
        )
        self._engine = self._wire(writer, transport, rate, lane)
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
            await writer.learn(rate=rate.rate_per_s)
        except DispatcherError as failure:
            error = failure
        finally:
            with contextlib.suppress(DispatcherError):
                await writer.close()
            offload.close()
        return self._end(lane, error)

    def _wire(self, writer: Writer, transport: Transport, rate: RateController, lane: LanePolicy) -> Engine:
        settings, clock, prepared = self._settings, self._clock, self._prepared
        now_s = clock.monotonic()
        # A fresh run may begin with its burst; a resumed one starts empty: together they keep the bound.
        level = 0.0 if prepared.marker.record.first_sent_at is not None else float(settings.burst)
        bucket = TokenBucket(rate.rate_per_s, settings.burst, now_s=now_s, level=level)
        admission = Admission(bucket=bucket, lane=lane, clock=clock)
        quota = RetryQuota(now_s=now_s)
        self.progress.rate_per_s = rate.rate_per_s
        engine: Engine
        sender = Sender(
            plan=prepared.plan,
            account=self.account,
            transport=transport,
            admission=admission,
            lane=lane,
            rate=rate,
            quota=quota,
            window=_window(settings),
            writer=writer,
            clock=clock,
            hooks=self._hooks,
            progress=self.progress,
            on_change=lambda: engine.halt(),  # noqa: PLW0108  (it is made below)
        )
        feed = Feed(
            writer=writer,
            tokens=ClientTokens(prepared.plan),
            clock=clock,
            max_attempts=settings.max_attempts,
            max_devices=settings.limit,
        )
        engine = Engine(
            lane=lane,
            admission=admission,
            sender=sender,
            transport=transport,
            writer=writer,
            feed=feed,
            rate=rate,
            quota=quota,
            clock=clock,
            rng=random.Random(),
            max_attempts=settings.max_attempts,
        )
        return engine

    def _settled(self, outcomes: Sequence[Outcome]) -> None:
        """Count and tell what has just become durable."""
        settled = self.progress.settled
        for outcome in outcomes:
            name = CLASS_OF.get(outcome.state)
            if name is not None:
                settled[name] = settled.get(name, 0) + outcome.devices
            if self._hooks:
                self._hooks.emit(
                    BatchSettled(
                        run=self.plan.run,
                        batch=outcome.batch,
                        state=outcome.state,
                        devices=outcome.devices,
                        task_id=outcome.task_id,
                        error_code=outcome.code,
                    )
                )

    def _end(self, lane: LanePolicy, error: DispatcherError | None) -> Summary:
        """Judge how the run stands, write it down, and raise where it was stopped."""
        checkpoint = self._prepared.checkpoint
        now = self._clock.wall()
        summary = self.summary()
        if error is None and lane.state is LaneState.STOPPED:
            error = RunStopped(f"the run was stopped: {lane.reason}", hint=resume_hint(self.plan.run))
        if error is None and self._drain_code is not None:
            error = RunInterrupted(
                "interrupted; nothing is lost", exit_code=self._drain_code, hint=resume_hint(self.plan.run)
            )
        if error is not None:
            summary.exit, summary.error = error.exit_code, error.one_line()
            error.summary = summary
        with contextlib.suppress(DispatcherError):
            finished = error is None and not summary.counts.pending
            checkpoint.finish(summary.exit if finished else None, now=now)
            checkpoint.release(now=now)
        self._hooks.emit(RunEnded(run=self.plan.run, exit=summary.exit, reason=summary.error))
        if error is not None:
            raise error
        return summary

    def summary(self) -> Summary:
        """Return how the whole run stands, and what this process did."""
        checkpoint, progress = self._prepared.checkpoint, self.progress
        counts = self.counts
        with contextlib.suppress(DispatcherError):
            counts = checkpoint.counts()
        summary = Summary(
            run=self.plan.run,
            counts=counts,
            replayed=progress.replayed,
            calls=progress.calls,
            throttled=progress.throttled,
            retried=progress.retried,
            elapsed_s=time.monotonic() - self.started_s,
        )
        bad = counts.in_doubt or counts.rejected > checkpoint.removed_rejected()
        if counts.pending:  # only --limit ends a run early without an error: judge what it sent
            bad = bool(progress.settled.get("rejected") or progress.settled.get("in_doubt"))
        summary.exit = 1 if bad else 0
        return summary

    def already_complete(self) -> Summary:
        """Return the summary of a run that needs nothing more, and give the lease back."""
        checkpoint = self._prepared.checkpoint
        summary = self.summary()
        summary.already_complete, summary.elapsed_s = True, 0.0
        now = self._clock.wall()
        checkpoint.finish(summary.exit, now=now)
        summary.completed_at = instant(checkpoint.standing().finished_at)
        checkpoint.release(now=now)
        return summary

    def abandon(self) -> None:
        """Give the lease back without having sent anything."""
        with contextlib.suppress(DispatcherError):
            self._prepared.checkpoint.release(now=self._clock.wall())

    def close(self) -> None:
        """Close the checkpoint and drop the locks."""
        self._prepared.close()


class Dispatcher:
    """Runs manifests by one set of settings; see `open_dispatcher`."""

    def __init__(self, settings: Settings, *, open_transport: OpenTransport) -> None:
        """Use `settings`; `open_transport` makes the connection of a lane."""
        self._settings = settings
        self._open_transport = open_transport
        self._clock = SystemClock()
        self._runs: set[Run] = set()

    async def run(
        self,
        manifest: Manifest,
        *,
        on_event: Hook | None = None,
        confirm: Callable[[str, Diff], None] | None = None,
        before: Callable[[Run], None] | None = None,
    ) -> Summary:
        """Start or resume what `manifest` asks for, and return its summary.

        Args:
            manifest: the intent.
            on_event: called with every `observe.Event`.
            confirm: asked before an edited manifest is applied; raises to decline.
            before: called with the planned run before anything is sent; raises to decline.

        Raises:
            UsageError: the manifest, its inventory or a setting is wrong (exit code 2).
            RunStopped: a guard stopped the run (3); the error's `summary` has the counts.
            CheckpointError: the checkpoint cannot be used (4).
        """
        settings = self._settings.resolve(manifest)
        region = settings.region
        if region is None:
            region = await asyncio.to_thread(_chain_region, settings)
        intent = Intent.of(manifest, settings, region)
        preparation = Preparation(settings, confirm=confirm)
        prepared = await asyncio.to_thread(preparation.of_manifest, intent)
        return await self._drive(prepared, settings, on_event, before)

    async def resume(
        self, run: str, *, on_event: Hook | None = None, before: Callable[[Run], None] | None = None
    ) -> Summary:
        """Drain the stored plan of `run`, a run id or a checkpoint's path; raises as `run` does."""
        settings = self._settings.resolve()
        path = find_checkpoint(run, settings)
        prepared = await asyncio.to_thread(Preparation(settings).of_checkpoint, path)
        settings = self._settings.resolve(command=Command(prepared.plan.command), stored=prepared.plan.limits)
        return await self._drive(prepared, settings, on_event, before)

    async def _drive(
        self,
        prepared: Prepared,
        settings: Resolved,
        on_event: Hook | None,
        before: Callable[[Run], None] | None,
    ) -> Summary:
        run = Run(prepared, settings, Hooks((on_event,) if on_event else ()), self._clock)
        self._runs.add(run)
        try:
            if run.is_complete():
                return run.already_complete()
            transport = await self._ready(run, before)
            try:
                return await run.go(transport)
            finally:
                await transport.close()
        finally:
            self._runs.discard(run)
            run.close()

    async def _ready(self, run: Run, before: Callable[[Run], None] | None) -> Transport:
        """Ask, connect and check the account; where any of it fails, the lease is given back."""
        try:
            if before is not None:
                before(run)
            transport = await self._open_transport(run.plan, run.settings)
            try:
                await _check_account(run, transport)
            except BaseException:
                await transport.close()
                raise
        except BaseException:
            run.abandon()
            raise
        return transport

    def drain(self, exit_code: int = 130) -> None:
        """Stop every run of this dispatcher gently."""
        for run in self._runs:
            run.drain(exit_code)

    async def receipts(self, run: str, *, states: Collection[str] | None = None) -> AsyncIterator[Receipt]:
        """Yield one receipt per device of `run`; `states` filters by class."""
        reader = open_reader(find_checkpoint(run, self._settings.resolve()))
        try:
            rows = receipts(reader, states=states)
            while block := await asyncio.to_thread(_take, rows, 1_000):
                for receipt in block:
                    yield receipt
        finally:
            reader.close()


@contextlib.asynccontextmanager
async def open_dispatcher(
    settings: Settings | None = None, *, open_transport: OpenTransport | None = None
) -> AsyncIterator[Dispatcher]:
    """Open a dispatcher. `open_transport` replaces the network, for tests and simulations."""
    dispatcher = Dispatcher(settings or Settings(), open_transport=open_transport or open_sdk_transport)
    try:
        yield dispatcher
    finally:
        dispatcher.drain()


async def open_sdk_transport(plan: Plan, settings: Resolved) -> Transport:
    """Open the reference transport; importing the SDK takes half a second, so it is done here."""
    from dispatcher.transport.aiobotocore import AiobotocoreTransport

    transport = AiobotocoreTransport(
        plan,
        max_in_flight=settings.max_in_flight,
        attempt_timeout_s=settings.attempt_timeout_s,
        profile=settings.profile,
    )
    await transport.open()
    return transport


async def _check_account(run: Run, transport: Transport) -> None:
    """On real endpoints: refuse credentials of another account than the run's, before anything is sent."""
    identity = getattr(transport, "identity", None)
    account = await identity() if identity is not None else None
    expected = run.account
    if account is not None and expected is not None and account != expected:
        raise PlanMismatch(
            f"these credentials are of account {account}, run {run.plan.run} belongs to {expected}",
            hint="use the credentials it began with (--profile), or another --run-key",
        )


def _rate_controller(settings: Resolved, learned: float | None, clock: Clock) -> RateController:
    if settings.rate_control == "fixed":
        return FixedRate(settings.rate_per_s)
    return Aimd(settings.rate_per_s, start_per_s=learned, now_s=clock.monotonic())


def _window(settings: Resolved) -> TokenWindow:
    """The token window less a margin: a call may take as long as its deadline to reach the service."""
    margin_s = min(settings.attempt_timeout_s, settings.token_window_s / 4)
    return TokenWindow(settings.token_window_s - margin_s)


def _chain_region(settings: Resolved) -> str:
    from dispatcher.transport.aiobotocore import configured_region

    region = configured_region(settings.profile)
    if region is None:
        hint = "set `region` in the manifest, or give --region, or set AWS_REGION"
        raise UsageError("no region is set", hint=hint)
    return region


def _take(rows: Iterator[Receipt], count: int) -> list[Receipt]:
    return list(itertools.islice(rows, count))


def resume_hint(run: str) -> str:
    """Return the exact next command."""
    return f"resume it with: dispatcher resume {run}"
