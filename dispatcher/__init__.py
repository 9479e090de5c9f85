"""Bulk CreateTask for AWS Snow Device Management: every device exactly once, with a receipt.

async with open_dispatcher(Settings(region="us-west-2")) as dispatcher:
    summary = await dispatcher.run(Manifest.load("reboot.yaml"), on_event=print)
    async for receipt in dispatcher.receipts(summary.run): ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from dispatcher.library import Dispatcher, open_dispatcher
    from dispatcher.manifest import Inventory, Limits, Manifest
    from dispatcher.model import Command, Counts, Receipt, Summary
    from dispatcher.observe import (
        BatchSettled,
        Event,
        LaneChanged,
        RateChanged,
        RunEnded,
        RunStarted,
        TaskReplayed,
    )
    from dispatcher.reconciled import Broken, Reconciled
    from dispatcher.settings import Settings

__all__ = [
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
    "Event",
    "Inventory",
    "LaneChanged",
    "Limits",
    "Manifest",
    "ManifestError",
    "PlanMismatch",
    "RateChanged",
    "Receipt",
    "Reconciled",
    "RunEnded",
    "RunInterrupted",
    "RunStarted",
    "RunStopped",
    "Settings",
    "Summary",
    "TaskReplayed",
    "UsageError",
    "open_dispatcher",
]

_HOMES = {
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
        "LaneChanged",
        "RateChanged",
        "RunEnded",
        "RunStarted",
        "TaskReplayed",
    ),
    "dispatcher.reconciled": (
        "Broken",
        "Reconciled",
    ),
    "dispatcher.settings": ("Settings",),
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
