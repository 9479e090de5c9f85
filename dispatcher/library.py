"""The library's front door: `open_dispatcher`, and the runs it starts, resumes and reports.

    async with open_dispatcher(Settings(region="us-west-2")) as dispatcher:
        summary = await dispatcher.run(Manifest.load("reboot.yaml"), on_event=print)

Blocking work (planning, the checkpoint) happens on threads; nothing here is global.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dispatcher.checkpoint.backup import back_up
from dispatcher.clock import SystemClock
from dispatcher.errors import DispatcherError, UsageError
from dispatcher.intent import Intent
from dispatcher.listening import Listeners
from dispatcher.locate import find_checkpoint, named
from dispatcher.model import Command, Summary
from dispatcher.prepare import Preparation
from dispatcher.preview import Preview, preview
from dispatcher.reconciling import MAX_PAGES, before_fresh, before_resume, check_account, reconcile
from dispatcher.recover import Recovery
from dispatcher.report import open_reader, receipts
from dispatcher.run import Run
from dispatcher.settings import Resolved, Settings, check
from dispatcher.status import Status, UnreadableRun, read_runs, read_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator

    from prometheus_client import CollectorRegistry

    from dispatcher.checkpoint.backup import Backup
    from dispatcher.checkpoint.base import Plan
    from dispatcher.diff import Diff
    from dispatcher.manifest import Manifest
    from dispatcher.metrics import Metrics
    from dispatcher.model import Receipt
    from dispatcher.observe import Hook
    from dispatcher.prepared import Prepared
    from dispatcher.reconciled import Reconciled
    from dispatcher.recover import Recovered
    from dispatcher.transport.base import Transport

    OpenTransport = Callable[[Plan, Resolved], Awaitable[Transport]]

T = TypeVar("T")


class Dispatcher:
    """Runs manifests by one set of settings; see `open_dispatcher`.

    It belongs to the event loop that it was opened on; only `drain` may be called from other threads. Any
    number of runs may go on at once. Cancelling a call is safe: what was sent is on record.
    """

    def __init__(
        self, settings: Settings, *, open_transport: OpenTransport, metrics: Metrics | None = None
    ) -> None:
        """Use `settings`; `open_transport` makes the connection of a lane. Needs a running loop."""
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._metrics = metrics
        self._settings = settings
        self._open_transport = open_transport
        self._clock = SystemClock()
        self._runs: set[Run] = set()

    @property
    def metrics_url(self) -> str | None:
        """Where metrics are served; None where they are not."""
        return None if self._metrics is None else self._metrics.url

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
            on_event: called with every event, off the loop, or awaited on it; see `observe.Hook`.
            confirm: asked before an edited manifest is applied; raises to decline.
            before: called, in a thread, with the planned run before anything is sent; raises to decline.

        Raises:
            UsageError: the manifest, its inventory or a setting is wrong (exit code 2).
            RunStopped: a guard stopped the run (3); the error's `summary` has the counts.
            CheckpointError: the checkpoint cannot be used (4).
        """
        self._check_place()
        settings = self._settings.resolve(manifest)
        region = settings.region
        if region is None:
            region = await asyncio.to_thread(_chain_region, settings)
        intent = Intent.of(manifest, settings, region)
        preparation = Preparation(settings, confirm=confirm, now=self._clock.wall)
        with _about(intent.run):
            prepared = await _in_thread(lambda: preparation.of_manifest(intent), undo=_give_back)
            return await self._drive(prepared, settings, on_event, before)

    async def resume(
        self, run: str, *, on_event: Hook | None = None, before: Callable[[Run], None] | None = None
    ) -> Summary:
        """Drain the stored plan of `run`, a run id or a checkpoint's path; raises as `run` does."""
        self._check_place()
        settings = self._settings.resolve()
        path = find_checkpoint(run, settings)
        with _about(path.stem if run == str(path) else named(run, settings)):
            stored = Preparation(settings, now=self._clock.wall)
            prepared = await _in_thread(lambda: stored.of_checkpoint(path), undo=_give_back)
        plan = prepared.plan
        settings = self._settings.resolve(command=Command(plan.command), stored=plan.limits)
        with _about(plan.run):
            return await self._drive(prepared, settings, on_event, before)

    async def _drive(
        self,
        prepared: Prepared,
        settings: Resolved,
        on_event: Hook | None,
        before: Callable[[Run], None] | None,
    ) -> Summary:
        try:
            await before_resume(prepared, settings, self._clock, self._open_transport)
        except BaseException:
            prepared.abandon(now=self._clock.wall())
            raise
        name, metrics = prepared.plan.run, self._metrics
        async with Listeners(name, on_event=on_event, metrics=metrics, tracing=settings.tracing) as listeners:
            run = Run(prepared, settings, listeners.hooks, self._clock)
            self._runs.add(run)
            try:
                listeners.follow(run)
                if run.is_complete():
                    return run.already_complete()
                transport = await self._ready(run, prepared, before)
                try:
                    return await run.go(transport)
                finally:
                    await transport.close()
            finally:
                self._runs.discard(run)
                run.close()

    async def _ready(self, run: Run, prepared: Prepared, before: Callable[[Run], None] | None) -> Transport:
        """Ask, connect and check the account; where any of it fails, the lease is given back."""
        try:
            if before is not None:
                await asyncio.to_thread(before, run)  # it may ask, and the loop must hear a signal meanwhile
            transport = await self._open_transport(run.plan, run.settings)
            try:
                await check_account(run.account, run.plan.run, transport)
                if run.may_be_known_elsewhere:
                    await before_fresh(prepared, run.settings, self._clock, transport)
            except BaseException:
                await transport.close()
                raise
        except BaseException:
            run.abandon()
            raise
        return transport

    def drain(self, *, run: str | None = None, exit_code: int = 130) -> None:
        """Stop `run`, or every run, gently: calls in flight come home, the rest stays planned.

        The run then ends with `RunInterrupted` and `exit_code`. May be called from any thread, and so from
        an `on_event` hook.
        """
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if not here:
            self._loop.call_soon_threadsafe(lambda: self.drain(run=run, exit_code=exit_code))
            return
        for live in tuple(self._runs):
            if run is None or live.plan.run == run:
                live.drain(exit_code)

    def _check_place(self) -> None:
        """A loop, a lock and a database connection are no good in another thread or after a fork."""
        if asyncio.get_running_loop() is not self._loop or os.getpid() != self._pid:
            raise UsageError(
                "this dispatcher was opened on another event loop or in another process",
                hint="open one where it is used",
            )

    async def plan(self, manifest: Manifest) -> Preview:
        """Say what a run of `manifest` would do; writes nothing, asks no network. Raises as `run` does."""
        settings = self._settings.resolve(manifest)
        return await asyncio.to_thread(preview, manifest, settings)

    async def status(self, run: str) -> Status:
        """Say how `run` stands, from its checkpoint; also while it is live, here or elsewhere.

        Raises:
            UsageError: no run or checkpoint is called so.
            CheckpointError: it cannot be read.
        """
        checkpoint = find_checkpoint(run, self._settings.resolve())
        return await asyncio.to_thread(read_status, checkpoint, self._settings)

    async def runs(self) -> list[Status | UnreadableRun]:
        """Say how every run stands that the state folder knows of."""
        return await asyncio.to_thread(read_runs, self._settings)

    async def reconcile(
        self, run: str | Manifest, *, dry_run: bool = False, max_pages: int = MAX_PAGES
    ) -> Reconciled:
        """Settle what is in doubt by what the service lists; nothing is sent.

        Args:
            run: a run id or a checkpoint's path; or a manifest, which also rebuilds a lost checkpoint.
            dry_run: find out what it would do, and write nothing.
            max_pages: how many pages of ListTasks are read at the most.

        Raises:
            UsageError: there is no such run, or the manifest or a setting is wrong (2).
            RunStopped: the service cannot be asked (3); what was settled before stays so.
            CheckpointError: the checkpoint cannot be used (4).
        """
        recovered, settings = await self._recovered(run, dry_run=dry_run)
        with _about(recovered.plan.run):
            try:
                transport = await self._open_transport(recovered.plan, settings)
                try:
                    expected = recovered.plan.account or recovered.stored.standing().account
                    await check_account(expected, recovered.plan.run, transport)
                    return await reconcile(recovered, settings, transport, self._clock, max_pages=max_pages)
                finally:
                    await transport.close()
            finally:
                recovered.close(now=self._clock.wall())

    async def _recovered(self, run: str | Manifest, *, dry_run: bool) -> tuple[Recovered, Resolved]:
        settings = self._settings.resolve(None if isinstance(run, str) else run)
        recovery = Recovery(settings, is_dry=dry_run)
        if not isinstance(run, str):
            region = settings.region
            if region is None:
                region = await asyncio.to_thread(_chain_region, settings)
            intent = Intent.of(run, settings, region)
            with _about(intent.run):
                return await asyncio.to_thread(recovery.of_intent, intent), settings
        path = find_checkpoint(run, settings)
        with _about(path.stem if run == str(path) else named(run, settings)):
            found = await asyncio.to_thread(recovery.of_stored, path)
        plan = found.plan
        return found, self._settings.resolve(command=Command(plan.command), stored=plan.limits)

    async def receipts(self, run: str, *, states: Collection[str] | None = None) -> AsyncIterator[Receipt]:
        """Yield one receipt per device of `run`; `states` filters by class."""
        reader = open_reader(find_checkpoint(run, self._settings.resolve()))
        try:
            rows = receipts(reader, states=states)
            while block := await _in_thread(lambda: _take(rows, 1_000)):
                for receipt in block:
                    yield receipt
        finally:
            reader.close()

    async def backup(self, run: str, path: str | Path) -> Backup:
        """Copy the checkpoint of `run` to `path`, a new file or a folder; also while the run is live.

        Raises:
            UsageError: `path` exists, or its folder does not.
            CheckpointError: the checkpoint cannot be read, or the copy not written.
        """
        checkpoint = find_checkpoint(run, self._settings.resolve())
        return await asyncio.to_thread(back_up, checkpoint, Path(path))


@contextlib.asynccontextmanager
async def open_dispatcher(
    settings: Settings | None = None,
    *,
    open_transport: OpenTransport | None = None,
    registry: CollectorRegistry | None = None,
) -> AsyncIterator[Dispatcher]:
    """Open a dispatcher; at the end its runs are drained.

    Args:
        settings: what holds for all its runs.
        open_transport: replaces the network, for tests and simulations.
        registry: a Prometheus registry to report to; `settings.metrics` serves it, or one of our own.

    Raises:
        UsageError: metrics or spans are asked for and their extra is not installed, or the endpoint cannot
            be served.
    """
    settings = settings or Settings()
    metrics = _metrics(settings.resolve(), registry)
    try:
        dispatcher = Dispatcher(
            settings, open_transport=open_transport or open_sdk_transport, metrics=metrics
        )
        try:
            yield dispatcher
        finally:
            dispatcher.drain()
    finally:
        if metrics is not None:
            await asyncio.to_thread(metrics.close)


def _metrics(settings: Resolved, registry: CollectorRegistry | None) -> Metrics | None:
    """Make the metrics that are asked for; what nobody asks for is not even imported."""
    if settings.tracing:
        from dispatcher.tracing import check_installed

        check_installed()
    if settings.metrics is None and registry is None:
        return None
    from dispatcher.metrics import Metrics

    metrics = Metrics(registry)
    if settings.metrics is not None:
        try:
            metrics.serve(settings.metrics)
        except UsageError:
            metrics.close()
            raise
    return metrics


async def open_sdk_transport(plan: Plan, settings: Resolved) -> Transport:
    """Open the transport that is asked for; importing the SDK takes half a second, so it is done here."""
    from dispatcher.transport.aiobotocore import AiobotocoreTransport

    kind = AiobotocoreTransport  # `auto` too, until the other one has soaked
    if settings.transport == "wire":
        from dispatcher.transport.wire import WireTransport

        kind = WireTransport
    transport = kind(
        plan,
        max_in_flight=settings.max_in_flight,
        attempt_timeout_s=settings.attempt_timeout_s,
        profile=settings.profile,
    )
    await transport.open()
    return transport


@contextlib.contextmanager
def _about(run: str) -> Iterator[None]:
    """Name the run in whatever error leaves."""
    try:
        yield
    except DispatcherError as error:
        error.run = run
        raise


def _chain_region(settings: Resolved) -> str:
    from dispatcher.transport.aiobotocore import configured_region

    region = configured_region(settings.profile)
    if region is None:
        hint = "set `region` in the manifest, or give --region, or set AWS_REGION"
        raise UsageError("no region is set", hint=hint)
    check({"region": region}, "the AWS configuration")
    return region


async def _in_thread(work: Callable[[], T], *, undo: Callable[[T], object] | None = None) -> T:
    """Do `work` in a thread. No thread can be stopped: cancelled, wait for its end and `undo` what it did."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None and undo is not None:
            undo(task.result())
        raise


def _give_back(prepared: Prepared) -> None:
    with contextlib.suppress(DispatcherError):
        prepared.checkpoint.release(now=time.time())
    prepared.close()


def _take(rows: Iterator[Receipt], count: int) -> list[Receipt]:
    return list(itertools.islice(rows, count))
