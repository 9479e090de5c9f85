"""Bulk CreateTask for AWS Snow Device Management: every device exactly once, with a receipt.

async with open_dispatcher(Settings(region="us-west-2")) as dispatcher:
    summary = await dispatcher.run(Manifest.load("reboot.yaml"), on_event=print)
    async for receipt in dispatcher.receipts(summary.run): ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dispatcher.checkpoint.backup import Backup
    from dispatcher.errors import (
        CheckpointCorrupt,
        CheckpointError,
        CheckpointIo,
        CheckpointLeased,
        DispatcherError,
        ManifestError,
        PlanMismatch,
        RunInterrupted,
        RunStopped,
        UsageError,
    )
    from dispatcher.library import (
        Dispatcher,
        open_dispatcher,
    )
    from dispatcher.manifest import (
        Inventory,
        Limits,
        Manifest,
    )
    from dispatcher.model import (
        Command,
        Counts,
        Receipt,
        Summary,
    )
    from dispatcher.observe import (
        BatchSettled,
        Event,
        EventsMissed,
        Hook,
        LaneChanged,
        RateChanged,
        RunEnded,
        RunProgressed,
        RunStarted,
        TaskReplayed,
    )
    from dispatcher.preview import Preview
    from dispatcher.reconciled import Broken, Reconciled
    from dispatcher.settings import Settings
    from dispatcher.status import (
        Doubt,
        Status,
        UnreadableRun,
    )

__all__ = [
    "Backup",
    "BatchSettled",
    "Broken",
    "CheckpointCorrupt",
    "CheckpointError",
    "CheckpointIo",
    "CheckpointLeased",
    "Command",
    "Counts",
    "Dispatcher",
    "DispatcherError",
    "Doubt",
    "Event",
    "EventsMissed",
    "Hook",
    "Inventory",
    "LaneChanged",
    "Limits",
    "Manifest",
    "ManifestError",
    "PlanMismatch",
    "Preview",
    "RateChanged",
    "Receipt",
    "Reconciled",
    "RunEnded",
    "RunInterrupted",
    "RunProgressed",
    "RunStarted",
    "RunStopped",
    "Settings",
    "Status",
    "Summary",
    "TaskReplayed",
    "UnreadableRun",
    "UsageError",
    "open_dispatcher",
]

_HOMES = {
    "dispatcher.checkpoint.backup": ("Backup",),
    "dispatcher.errors": (
        "CheckpointCorrupt",
        "CheckpointError",
        "CheckpointIo",
        "CheckpointLeased",
        "DispatcherError",
        "ManifestError",
        "PlanMismatch",
        "RunInterrupted",
        "RunStopped",
        "UsageError",
    ),
    "dispatcher.library": (
        "Dispatcher",
        "open_dispatcher",
    ),
    "dispatcher.manifest": (
        "Inventory",
        "Limits",
        "Manifest",
    ),
    "dispatcher.model": (
        "Command",
        "Counts",
        "Receipt",
        "Summary",
    ),
    "dispatcher.observe": (
        "BatchSettled",
        "Event",
        "EventsMissed",
        "Hook",
        "LaneChanged",
        "RateChanged",
        "RunEnded",
        "RunProgressed",
        "RunStarted",
        "TaskReplayed",
    ),
    "dispatcher.preview": ("Preview",),
    "dispatcher.reconciled": (
        "Broken",
        "Reconciled",
    ),
    "dispatcher.settings": ("Settings",),
    "dispatcher.status": (
        "Doubt",
        "Status",
        "UnreadableRun",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `dispatcher --help` needs none of them."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'dispatcher' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
