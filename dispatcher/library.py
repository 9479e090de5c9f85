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
from pathlib import Path
from typing import TYPE_CHECKING

from dispatcher.checkpoint.backup import back_up
from dispatcher.clock import SystemClock
from dispatcher.errors import DispatcherError, PlanMismatch, UsageError
from dispatcher.intent import Intent
from dispatcher.locate import find_checkpoint
from dispatcher.model import Command, Summary
from dispatcher.observe import Hooks
from dispatcher.prepare import Preparation, Prepared
from dispatcher.report import open_reader, receipts
from dispatcher.run import Run
from dispatcher.settings import Resolved, Settings, check

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator

    from dispatcher.checkpoint.backup import Backup
    from dispatcher.checkpoint.base import Plan
    from dispatcher.diff import Diff
    from dispatcher.manifest import Manifest
    from dispatcher.model import Receipt
    from dispatcher.observe import Hook
    from dispatcher.transport.base import Transport

    OpenTransport = Callable[[Plan, Resolved], Awaitable[Transport]]


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
            before: called, in a thread, with the planned run before anything is sent; raises to decline.

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
        preparation = Preparation(settings, confirm=confirm, now=self._clock.wall)
        with _about(intent.run):
            prepared = await asyncio.to_thread(preparation.of_manifest, intent)
            return await self._drive(prepared, settings, on_event, before)

    async def resume(
        self, run: str, *, on_event: Hook | None = None, before: Callable[[Run], None] | None = None
    ) -> Summary:
        """Drain the stored plan of `run`, a run id or a checkpoint's path; raises as `run` does."""
        settings = self._settings.resolve()
        path = find_checkpoint(run, settings)
        with _about(path.stem if run == str(path) else run):
            preparation = Preparation(settings, now=self._clock.wall)
            prepared = await asyncio.to_thread(preparation.of_checkpoint, path)
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
                await asyncio.to_thread(before, run)  # it may ask, and the loop must hear a signal meanwhile
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


@contextlib.contextmanager
def _about(run: str) -> Iterator[None]:
    """Name the run in whatever error leaves."""
    try:
        yield
    except DispatcherError as error:
        error.run = run
        raise


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


def _chain_region(settings: Resolved) -> str:
    from dispatcher.transport.aiobotocore import configured_region

    region = configured_region(settings.profile)
    if region is None:
        hint = "set `region` in the manifest, or give --region, or set AWS_REGION"
        raise UsageError("no region is set", hint=hint)
    check({"region": region}, "the AWS configuration")
    return region


def _take(rows: Iterator[Receipt], count: int) -> list[Receipt]:
    return list(itertools.islice(rows, count))
