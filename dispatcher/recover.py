"""Getting at a run to reconcile it: its checkpoint, or the plan made anew where that is lost.

    checkpoint       what happens
    there            it is used; with a manifest, devices of parked batches are looked for in its inventory
    an older copy    all that may have been sent since counts as in doubt, and is not resent
    lost             planned anew from the manifest; all that may have been sent counts as in doubt, and is
                     not resent: batches may have been cut otherwise then
    never was        planned from the manifest; it binds nothing unless the service knows of the run

A dry run leaves everything as it is: it reads a checkpoint that is there, and plans a lost one in a file of
its own that goes again.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dispatcher.checkpoint.base import Lost
from dispatcher.checkpoint.lease import this_holder
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.errors import CheckpointError
from dispatcher.hints import command
from dispatcher.inventory import open_inventory
from dispatcher.locate import OrphanedWal, binds, check_run, discard, is_older, stored_plan
from dispatcher.prepare import Preparation, encoded
from dispatcher.spool import SortedSpool

if TYPE_CHECKING:
    from collections.abc import Collection

    from dispatcher.checkpoint.base import Checkpoint, Plan, Stored
    from dispatcher.checkpoint.lease import Locks
    from dispatcher.checkpoint.registry import Marker, Record
    from dispatcher.intent import Intent
    from dispatcher.inventory import InventoryReader
    from dispatcher.prepared import Prepared
    from dispatcher.settings import Resolved


@dataclass(slots=True)
class Recovered:
    """A run that can be reconciled."""

    stored: Stored
    store: Checkpoint | None
    """Where rulings are written; None in a dry run."""
    plan: Plan
    marker: Marker | None
    locks: Locks | None
    first_sent_at: float
    """Since when what another runner sent may be on its way: of the registry, else of the plan."""
    removed: Collection[str] | None = None
    """Devices of parked batches that the manifest does not name; None where none was read."""
    is_dry: bool = False
    scratch: Path | None = None

    @classmethod
    def of_prepared(cls, prepared: Prepared) -> Recovered:
        """Reconcile a run that is about to be sent; its lease and locks stay the caller's."""
        since = prepared.marker.record.first_sent_at
        plan, checkpoint = prepared.plan, prepared.checkpoint
        return cls(
            checkpoint, checkpoint, plan, prepared.marker, None, plan.planned_at if since is None else since
        )

    def remember(self, *, is_recut: bool, mark: int = 0) -> None:
        """Note in the registry that the run was sent, and whether batches are cut anew."""
        if self.marker is not None:
            self.marker.reconciled(first_sent_at=self.first_sent_at, mark=mark, is_recut=is_recut)

    def noted(self, *, now: float) -> None:
        """Tell the registry of what was written: a ruling that a damaged file loses must be missed."""
        if self.marker is not None and self.store is not None:
            self.marker.committed((), commits=self.store.standing().commits, now=now)

    def close(self, *, now: float) -> None:
        """Give lease, files and locks back."""
        if self.store is not None:
            with contextlib.suppress(CheckpointError):
                self.store.release(now=now)
        self.stored.close()
        if self.scratch is not None:
            for end in ("", "-wal", "-shm", "-journal"):
                self.scratch.with_name(self.scratch.name + end).unlink(missing_ok=True)
        if self.locks is not None:
            self.locks.release()


class Recovery(Preparation):
    """Prepares one run for a reconcile; synchronous, as its parent."""

    def __init__(self, settings: Resolved, *, is_dry: bool = False) -> None:
        """With `is_dry` nothing that is there is changed."""
        super().__init__(settings)
        self.is_dry = is_dry

    # reconcile MANIFEST

    def of_intent(self, intent: Intent) -> Recovered:
        """Find the run that a manifest names, or plan it anew."""
        path = self._settings.checkpoint_of(intent.run)
        record = self._registry.get(intent.run)
        if record is not None and path != Path(record.checkpoint) and Path(record.checkpoint).exists():
            raise CheckpointError(
                f"run {intent.run} has its checkpoint at {record.checkpoint}",
                hint=f"reconcile that one: {command('reconcile', record.checkpoint)}",
            )
        locks = self._lock(path, intent.run)
        is_there = path.exists() and path.stat().st_size > 0
        orphan = OrphanedWal(path)
        checkpoint: SqliteCheckpoint | None = None
        scratch = None if is_there or not self.is_dry else path.with_name(f".{path.name}.reconcile")
        try:
            if not is_there and not self.is_dry:
                orphan.set_aside()
            checkpoint = self._opened(path, scratch)
            with open_inventory(
                intent.manifest.inventory,
                base_dir=intent.manifest.base_dir,
                skip_bad_rows=self._settings.skip_bad_rows,
            ) as inventory:
                removed = self._bring_up(intent, checkpoint, record, inventory, is_there=is_there)
            return self._recovered(checkpoint, locks, removed, scratch)
        except BaseException:
            if checkpoint is not None:
                discard(checkpoint, is_new=not is_there)
            orphan.put_back()
            locks.release()
            raise

    def _opened(self, path: Path, scratch: Path | None) -> SqliteCheckpoint:
        if scratch is not None:
            scratch.unlink(missing_ok=True)
            return SqliteCheckpoint.open(scratch, create=True)
        return SqliteCheckpoint.open(path, create=not self.is_dry, read_only=self.is_dry)

    def _bring_up(
        self,
        intent: Intent,
        checkpoint: SqliteCheckpoint,
        record: Record | None,
        inventory: InventoryReader,
        *,
        is_there: bool,
    ) -> Collection[str] | None:
        """Have a plan that may be reconciled; return the devices that left parked batches."""
        plan = checkpoint.plan() if is_there else None
        check_run(intent.run, plan, checkpoint.path, hint="name its own manifest, or the checkpoint itself")
        sent = record if record is not None and record.first_sent_at is not None else None
        digest = inventory.digest()
        selected = (digest, intent.selection_digest)
        if plan is not None and not (sent and is_older(checkpoint, plan, sent)):
            if binds(checkpoint) or not intent.differs(plan, digest):
                intent.check_same(plan)
                self._check_holder(checkpoint)
                return self._removed(checkpoint, inventory)
        elif plan is not None and sent is not None and _is_only_behind(plan, sent, selected):
            intent.check_same(plan)
            self._check_holder(checkpoint)
            self._doubt(checkpoint, sent.mark, sent)
            return self._removed(checkpoint, inventory)
        self._plan_again(intent, checkpoint, sent, inventory, digest)
        return None

    def _plan_again(
        self,
        intent: Intent,
        checkpoint: SqliteCheckpoint,
        sent: Record | None,
        inventory: InventoryReader,
        digest: str,
    ) -> None:
        if self.is_dry and checkpoint.path == self._settings.checkpoint_of(intent.run):
            raise CheckpointError(
                f"{checkpoint.path} is older than what the registry remembers of run {intent.run}",
                hint="a dry run cannot show what planning anew would do; leave --dry-run off",
            )
        if sent is None:
            self._plan_anew(intent, checkpoint, inventory, digest)
            return
        intent.check_same(sent)
        if intent.manifest.system_tags is False:
            raise CheckpointError(
                f"the checkpoint of run {intent.run} cannot be rebuilt: it was sent with system_tags off, and"
                " its tasks cannot be told from others",
                hint="put the checkpoint back; else look at the service's tasks, and name the devices that"
                " have none in a manifest of another name",
            )
        self._check_holder(checkpoint)
        self._write(intent, checkpoint, inventory, digest, rebuilt=True, unsearched=True)
        last = checkpoint.last_number()
        is_same = (digest, intent.selection_digest) == (sent.inventory_digest, sent.selection_digest)
        mark = sent.reached if is_same and sent.planned == last else last
        self._doubt(checkpoint, mark, sent)
        self._notes.append("the checkpoint was lost: planned anew from the manifest")

    def _doubt(self, checkpoint: SqliteCheckpoint, mark: int, sent: Record) -> None:
        if self.is_dry and checkpoint.path == Path(sent.checkpoint):
            raise CheckpointError(
                f"{checkpoint.path} is older than what the registry remembers of run {sent.run}",
                hint="a dry run cannot show what bringing it up would do; leave --dry-run off",
            )
        assert sent.first_sent_at is not None
        checkpoint.check_pages(thoroughly=True)  # pages of different ages may lie beside each other
        lost = Lost(mark, sent.first_sent_at, held=True)
        checkpoint.acquire(encoded(this_holder()), now=self._now(), lost=lost)

    def _removed(self, checkpoint: SqliteCheckpoint, inventory: InventoryReader) -> Collection[str] | None:
        """Return the devices of parked batches that the inventory does not name."""
        parked = {device for row in checkpoint.rows() if row.removed for device in row.targets}
        if not parked:
            return parked
        with SortedSpool(checkpoint.path.parent) as spool:
            inventory.read_into(spool)
            for block in spool.sorted_blocks():
                parked.difference_update(block)
        return parked

    def _recovered(
        self,
        checkpoint: SqliteCheckpoint,
        locks: Locks,
        removed: Collection[str] | None,
        scratch: Path | None = None,
    ) -> Recovered:
        plan = stored_plan(checkpoint)
        record = self._registry.get(plan.run)
        if self.is_dry:
            since = record.first_sent_at if record is not None else None
            since = plan.planned_at if since is None else since
            return Recovered(checkpoint, None, plan, None, locks, since, removed, True, scratch)
        prepared = self._lease(checkpoint, locks, is_resumed=True)
        made = Recovered.of_prepared(prepared)
        made.locks, made.removed = locks, removed
        return made

    # reconcile RUN|CHECKPOINT

    def of_stored(self, path: Path) -> Recovered:
        """Use the checkpoint at `path`; neither manifest nor inventory is read."""
        reader = SqliteCheckpoint.open(path, read_only=True)
        try:
            plan = stored_plan(reader)
        finally:
            reader.close()
        locks = self._lock(path, plan.run)
        checkpoint: SqliteCheckpoint | None = None
        try:
            checkpoint = SqliteCheckpoint.open(path, read_only=self.is_dry)
            plan = stored_plan(checkpoint)
            self._check_place(plan)
            self._check_holder(checkpoint)
            self._check_newest(plan, checkpoint)
            return self._recovered(checkpoint, locks, None)
        except BaseException:
            if checkpoint is not None:
                checkpoint.close()
            locks.release()
            raise

    def _check_newest(self, plan: Plan, checkpoint: SqliteCheckpoint) -> None:
        """Bring an older copy up, where nothing but claims and outcomes is missing from it."""
        record = self._registry.get(plan.run)
        if record is None or record.first_sent_at is None:
            return
        if not is_older(checkpoint, plan, record):
            return
        last = Path(record.checkpoint)
        if last != checkpoint.path and last.exists():
            raise CheckpointError(
                f"{checkpoint.path} is older than what the registry remembers of run {plan.run}",
                hint=f"reconcile the newer one: {command('reconcile', str(last))}",
            )
        if not _is_only_behind(plan, record):
            raise CheckpointError(
                f"{checkpoint.path} is older than what the registry remembers of run {plan.run}, and was"
                " planned from something else",
                hint="reconcile its manifest, which plans it anew",
            )
        self._doubt(checkpoint, record.mark, record)


def _is_only_behind(plan: Plan, sent: Record, selected: tuple[str, str] | None = None) -> bool:
    """Whether an older copy lacks claims and outcomes, and no device that was sent or is `selected` now."""
    then = (plan.inventory_digest, plan.selection_digest)
    last = (sent.inventory_digest, sent.selection_digest)
    return sent.plan_id == plan.plan_id and then == last and selected in (None, then)
