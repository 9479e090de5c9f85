"""The public interface as a program uses it: never run, only read by mypy."""

from __future__ import annotations

from typing import assert_type

from prometheus_client import CollectorRegistry

from dispatcher import (
    Backup,
    BatchSettled,
    CheckpointCorrupt,
    CheckpointError,
    CheckpointIo,
    CheckpointLeased,
    Command,
    Counts,
    Dispatcher,
    DispatcherError,
    Doubt,
    Event,
    EventsMissed,
    Hook,
    Inventory,
    LaneChanged,
    Limits,
    Manifest,
    ManifestError,
    PlanMismatch,
    Preview,
    RateChanged,
    Receipt,
    Reconciled,
    RunEnded,
    RunInterrupted,
    RunProgressed,
    RunStarted,
    RunStopped,
    Settings,
    Status,
    Summary,
    TaskReplayed,
    UnreadableRun,
    UsageError,
    open_dispatcher,
)


async def run_a_file() -> None:
    """The example of the documents."""
    async with open_dispatcher(Settings(region="us-west-2")) as dispatcher:
        assert_type(dispatcher, Dispatcher)
        summary = await dispatcher.run(Manifest.load("reboot.yaml"), on_event=print)
        assert_type(summary, Summary)
        assert_type(summary.counts, Counts)
        assert_type(summary.exit, int)
        async for receipt in dispatcher.receipts(summary.run):
            assert_type(receipt, Receipt)
            assert_type(receipt.task_id, str | None)


async def resume_with_everything() -> int:
    """Settings, a hook of one's own, a filter, and every error."""

    def hear(event: Event) -> None:
        assert_type(event.text(), str)
        if isinstance(event, BatchSettled):
            assert_type(event.task_id, str | None)

    settings = Settings(profile="ops", rate_per_s=20, burst=5, max_in_flight=128, limit=50, yes=True)
    try:
        async with open_dispatcher(settings) as dispatcher:
            summary = await dispatcher.resume("night", on_event=hear)
            async for receipt in dispatcher.receipts("night", states={"rejected", "in_doubt"}):
                print(receipt.device_id, receipt.error_code)
    except ManifestError as error:
        assert_type(error.line, int | None)
        return error.exit_code
    except (UsageError, CheckpointError, RunStopped) as error:
        assert_type(error.hint, str | None)
        return error.exit_code
    except DispatcherError as error:
        assert_type(error.one_line(), str)
        return error.exit_code
    return summary.exit


async def settle_what_is_in_doubt(manifest: Manifest) -> bool:
    """By run or by manifest; what stays in doubt is told by reason."""
    async with open_dispatcher(Settings(assume_absent=False)) as dispatcher:
        assert_type(await dispatcher.reconcile("night", dry_run=True), Reconciled)
        found = await dispatcher.reconcile(manifest, max_pages=100)
    assert_type(found.doubts, dict[str, int])
    return found.exit == 0 and not found.broken


def build_a_manifest(devices: list[str]) -> Manifest:
    """A manifest need not come from a file."""
    return Manifest(
        name="night",
        command=Command.REBOOT,
        inventory=Inventory(targets=devices),
        limits=Limits(rate_per_s=5, token_window_s=300),
        tags={"owner": "ops"},
    )


async def look_and_stop(path: str) -> None:
    """What a program asks of runs beside running them, and its metrics."""
    async with open_dispatcher(registry=CollectorRegistry()) as dispatcher:
        assert_type(dispatcher.metrics_url, str | None)
        preview = await dispatcher.plan(Manifest.load(path))
        assert_type(preview, Preview)
        assert_type(preview.devices, int)
        status = await dispatcher.status("night")
        assert_type(status, Status)
        assert_type(status.doubt, Doubt)
        assert_type(await dispatcher.runs(), list[Status | UnreadableRun])
        assert_type(await dispatcher.backup("night", path), Backup)
        dispatcher.drain()
        dispatcher.drain(run="night", exit_code=75)
        try:
            await dispatcher.resume("night")
        except RunInterrupted as stopped:
            assert_type(stopped.exit_code, int)
        except (CheckpointCorrupt, CheckpointIo, CheckpointLeased, PlanMismatch) as refused:
            assert_type(refused.run, str | None)


async def hear_with_a_coroutine() -> None:
    """A hook may be a coroutine function; `Hook` is the type of both."""

    async def hear(event: Event) -> None:
        match event:
            case RunStarted():
                assert_type(event.resumed, bool)
            case RunProgressed():
                assert_type(event.rate_per_s, float)
            case RateChanged():
                assert_type(event.rate_per_s, float)
            case LaneChanged():
                assert_type(event.reason, str | None)
            case TaskReplayed():
                assert_type(event.task_id, str)
            case EventsMissed():
                assert_type(event.count, int)
            case RunEnded():
                assert_type(event.exit, int)

    hooks: list[Hook] = [hear, print]
    async with open_dispatcher(Settings(metrics="9464", tracing=True)) as dispatcher:
        for hook in hooks:
            await dispatcher.run(Manifest.load("reboot.yaml"), on_event=hook)
