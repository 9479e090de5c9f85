"""A store of either kind, with the short words the contract is written in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dispatcher.checkpoint.base import Plan, Row
from dispatcher.checkpoint.memory import MemoryCheckpoint
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.model import Batch, BatchState, Counts, Lane, Outcome, Resend
from dispatcher.plan import cut

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dispatcher.checkpoint.base import Checkpoint

PLAN = Plan(
    plan_id="p1",
    run="nightly",
    command="reboot",
    region="us-west-2",
    tags={"owner": "ops"},
    intent_digest="i",
    selection_digest="s",
    inventory_digest="v",
    planned_at=900.0,
)
LANES = [Lane(index=0, region="us-west-2", account="123456789012")]


class Store:
    """A checkpoint that can be crashed: closed without a release, opened and acquired again."""

    def __init__(self, folder: Path | None) -> None:
        self.plan = PLAN
        self.lanes = LANES
        self._path = None if folder is None else folder / "run.db"
        self.now: Checkpoint = self._open()

    def _open(self) -> Checkpoint:
        if self._path is None:
            return MemoryCheckpoint()
        return SqliteCheckpoint.open(self._path, create=True)

    def begin(self, devices: int = 25) -> Checkpoint:
        """Plan and acquire, at instant 1000."""
        ids = [f"smd-{number:04d}" for number in range(devices)]
        self.now.write_plan(PLAN, LANES, cut([ids]))
        self.now.acquire("first", now=1000.0)
        return self.now

    def restart(self, *, now: float) -> Checkpoint:
        """Crash, and begin again."""
        if self._path is not None:
            self.now.close()
            self.now = self._open()
        self.now.acquire("second", now=now)
        return self.now

    def claim(self, limit: int = 100, *, now: float = 1000.0) -> list[Batch]:
        return self.now.claim(limit=limit, max_devices=None, now=now)

    def row(self, number: int) -> Row:
        return next(row for row in self.now.rows() if row.number == number)

    def states(self) -> dict[int, str]:
        return {row.number: str(row.state) for row in self.now.rows()}

    def summed(self) -> Counts:
        """Return the counts, after checking that classes sum to devices and agree with the rows."""
        counts = self.now.counts()
        classes = (counts.accepted, counts.rejected, counts.in_doubt, counts.pending, counts.cancelled)
        assert sum(classes) == counts.devices
        by_row = dict.fromkeys(("accepted", "rejected", "in_doubt", "planned", "cancelled"), 0)
        seen: list[str] = []
        for each in self.now.rows():
            by_row["in_doubt" if each.state == "sent" else str(each.state)] += len(each.targets)
            seen += each.targets
        assert tuple(by_row.values()) == classes
        assert len(seen) == len(set(seen)) == counts.devices
        return counts

    @staticmethod
    def accepted(batch: Batch, *, at: float = 1001.0) -> Outcome:
        task = f"st-{batch.number}"
        return Outcome(batch.number, BatchState.ACCEPTED, len(batch.targets), 1, at, at, task, f"arn:{task}")

    @staticmethod
    def doubt(
        batch: Batch, *, first: float = 1001.0, attempts: int = 1, resend: Resend = Resend.ALLOWED
    ) -> Outcome:
        state, size = BatchState.IN_DOUBT, len(batch.targets)
        end = first + 1.0
        return Outcome(batch.number, state, size, attempts, first, end, None, None, "Timeout", "t", resend)

    @staticmethod
    def refused(batch: Batch, state: BatchState = BatchState.REJECTED) -> Outcome:
        code = "ResourceNotFoundException"
        return Outcome(batch.number, state, len(batch.targets), 1, 1001.0, 1002.0, None, None, code, "gone")


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path if request.param == "sqlite" else None)
    yield made
    made.now.close()
