"""A run that may be sent, in this process's hands."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dispatcher.errors import CheckpointError

if TYPE_CHECKING:
    from dispatcher.checkpoint.base import Checkpoint, Plan
    from dispatcher.checkpoint.lease import Locks
    from dispatcher.checkpoint.registry import Marker
    from dispatcher.model import Counts


@dataclass(slots=True)
class Prepared:
    """A run that may be sent: leased, planned, with its registry record."""

    checkpoint: Checkpoint
    plan: Plan
    marker: Marker
    locks: Locks
    counts: Counts
    is_resumed: bool = False
    notes: list[str] = field(default_factory=list)
    """Sentences for the operator: planned anew, edited, rebuilt, taken over."""
    diff: dict[str, int] | None = None

    def abandon(self, *, now: float) -> None:
        """Give everything back without having sent anything."""
        with contextlib.suppress(CheckpointError):
            self.checkpoint.release(now=now)
        self.close()

    def close(self) -> None:
        """Give files and locks back; the lease row is the caller's to release."""
        try:
            self.checkpoint.close()
        finally:
            self.locks.release()
