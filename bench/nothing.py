"""A checkpoint that keeps nothing: what the engine costs without one, to subtract."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from dispatcher.checkpoint.memory import MemoryCheckpoint
from dispatcher.model import Batch
from dispatcher.prepared import Prepared

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dispatcher.checkpoint.registry import Marker
    from dispatcher.checkpoint.sqlite import SqliteCheckpoint
    from dispatcher.model import Outcome


class NoCheckpoint(MemoryCheckpoint):
    """Hands batches out and counts what comes back; claims and outcomes are written nowhere."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        super().__init__()
        self._given = batches
        self._next = 0
        self.recorded = 0

    @contextmanager
    def together(self, *, now: float) -> Iterator[None]:  # noqa: ARG002
        yield

    def claim(self, *, limit: int, max_devices: int | None, now: float) -> list[Batch]:  # noqa: ARG002
        claimed = list(self._given[self._next : self._next + limit])
        self._next += len(claimed)
        return claimed

    def record(self, outcomes: Sequence[Outcome], *, now: float) -> None:  # noqa: ARG002
        self.recorded += len(outcomes)


class _NoMarker:
    """A registry that is told nothing."""

    def __init__(self, marker: Marker) -> None:
        self.record = marker.record

    def committed(self, claimed: Sequence[Batch], *, commits: int, now: float) -> None:
        """Do nothing."""


def without_checkpoint(prepared: Prepared) -> tuple[Prepared, NoCheckpoint]:
    """Return the same run on a checkpoint and a registry that keep nothing; nothing is claimed yet."""
    plan = prepared.plan
    rows = prepared.checkpoint.rows()
    store = NoCheckpoint([Batch(row.number, row.lane, row.wave, row.targets) for row in rows])
    store.write_plan(plan, prepared.checkpoint.lanes(), ())
    store.learn(rate=prepared.checkpoint.standing().learned_rate, now=plan.planned_at)
    hollow = Prepared(
        checkpoint=cast("SqliteCheckpoint", store),
        plan=plan,
        marker=cast("Marker", _NoMarker(prepared.marker)),
        locks=prepared.locks,
        counts=prepared.counts,
    )
    return hollow, store
