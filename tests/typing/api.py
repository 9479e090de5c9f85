"""The public interface as a program uses it: never run, only read by mypy."""

from __future__ import annotations

from typing import assert_type

from dispatcher import (
    BatchSettled,
    CheckpointError,
    Command,
    Counts,
    Dispatcher,
    DispatcherError,
    Event,
    Inventory,
    Limits,
    Manifest,
    ManifestError,
    Receipt,
    Reconciled,
    RunStopped,
    Settings,
    Summary,
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
