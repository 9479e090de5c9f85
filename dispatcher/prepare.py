"""Before anything is sent: find, plan, edit, rebuild or refuse a run's checkpoint.

    checkpoint      registry says            what happens
    none            nothing was sent         plan anew
    a plan          the same plan            resume; an edited inventory is diffed by device
    a plan          the same, nothing sent   plan anew where manifest or settings changed: it binds nothing
    none, or older  something was sent       rebuild, if the plan is sure to come out the same and the
                                             client tokens still hold: all up to the mark is in doubt
                                             otherwise refuse, naming the last checkpoint

Whatever is refused is refused before the lease is taken over or a byte is changed.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dispatcher.checkpoint.base import Lost, Plan
from dispatcher.checkpoint.lease import Holder, Locks, check_holder, lock_paths, this_holder
from dispatcher.checkpoint.registry import Marker, Record, Registry
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.diff import Diff, check_removals, diff, edit_words
from dispatcher.errors import CheckpointError, PlanMismatch
from dispatcher.hints import adding, reconcile
from dispatcher.inventory import open_inventory
from dispatcher.locate import OrphanedWal, binds, check_newest, check_run, discard, is_older, stored_plan
from dispatcher.model import Lane
from dispatcher.plan import Fold, cut
from dispatcher.prepared import Prepared
from dispatcher.spool import SortedSpool

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.intent import Intent
    from dispatcher.inventory import InventoryReader, InventoryReport
    from dispatcher.settings import Resolved


class Preparation:
    """Prepares one run; every step is synchronous and belongs off the event loop."""

    def __init__(
        self,
        settings: Resolved,
        *,
        confirm: Callable[[str, Diff], None] | None = None,
        now: Callable[[], float] = lambda: time.time(),  # noqa: PLW0108  (asked then, not bound now)
    ) -> None:
        """`confirm` is asked before an edit is applied, and raises where it is declined."""
        self._settings = settings
        self._registry = Registry(settings.state_dir)
        self._confirm = confirm
        self._now = now
        self._notes: list[str] = []
        self._diff: dict[str, int] | None = None

    # run MANIFEST

    def of_manifest(self, intent: Intent) -> Prepared:
        """Prepare what a manifest asks for."""
        path = self._settings.checkpoint_of(intent.run)
        locks = self._lock(path, intent.run)
        checkpoint: SqliteCheckpoint | None = None
        is_there, orphan = True, OrphanedWal(path)
        try:
            record = self._registry.get(intent.run)
            is_there = path.exists() and path.stat().st_size > 0
            if not is_there:
                orphan.set_aside()
            checkpoint = SqliteCheckpoint.open(path, create=True)
            with open_inventory(
                intent.manifest.inventory,
                base_dir=intent.manifest.base_dir,
                skip_bad_rows=self._settings.skip_bad_rows,
            ) as inventory:
                resumed = self._settle_plan(intent, checkpoint, record, inventory, is_there=is_there)
            return self._lease(checkpoint, locks, is_resumed=resumed, limits=self._settings.given_limits())
        except BaseException:
            if checkpoint is not None:
                discard(checkpoint, is_new=not is_there)
            orphan.put_back()
            locks.release()
            raise

    def _settle_plan(
        self,
        intent: Intent,
        checkpoint: SqliteCheckpoint,
        record: Record | None,
        inventory: InventoryReader,
        *,
        is_there: bool,
    ) -> bool:
        """Bring the checkpoint in line with the manifest; return whether an earlier plan goes on."""
        plan = checkpoint.plan() if is_there else None
        check_run(intent.run, plan, checkpoint.path, hint="give this run its own --checkpoint")
        digest = inventory.digest()
        sent = record is not None and record.first_sent_at is not None
        stale = plan is not None and record is not None and sent and is_older(checkpoint, plan, record)
        if plan is None or stale:
            if record is not None and sent:
                self._rebuild(intent, checkpoint, record, inventory, digest, has_plan=plan is not None)
            else:
                self._plan_anew(intent, checkpoint, inventory, digest)
            return plan is not None or sent
        if not binds(checkpoint):
            if intent.differs(plan, digest):
                self._plan_anew(intent, checkpoint, inventory, digest)
                self._notes.append("nothing of the stored plan was sent yet: planned anew")
                return False
            return True
        intent.check_same(plan)
        self._check_holder(checkpoint)
        if (digest, intent.selection_digest) != (plan.inventory_digest, plan.selection_digest):
            self._edit(intent, checkpoint, plan, inventory, digest)
        return True

    def _plan_anew(
        self, intent: Intent, checkpoint: SqliteCheckpoint, inventory: InventoryReader, digest: str
    ) -> None:
        self._check_holder(checkpoint)
        old = self._registry.get(intent.run)
        if old is not None and old.first_sent_at is not None:
            # The old plan binds nothing; say so first, or a kill in between would leave two truths.
            self._registry.put(msgspec.structs.replace(old, first_sent_at=None, commits=0, mark=0))
        fold, report = self._write(intent, checkpoint, inventory, digest)
        if fold.duplicates:
            self._notes.append(f"{fold.duplicates} duplicate rows folded")
        if report.bad_rows:
            self._notes.append(f"{report.bad_rows} bad rows skipped")

    def _write(
        self,
        intent: Intent,
        checkpoint: SqliteCheckpoint,
        inventory: InventoryReader,
        digest: str,
        *,
        rebuilt: bool = False,
        unsearched: bool = False,
    ) -> tuple[Fold, InventoryReport]:
        """Read the inventory, sort it, and write plan and batches in one transaction."""
        fold = Fold()
        with SortedSpool(checkpoint.path.parent) as spool:
            report = inventory.read_into(spool)
            plan = self._plan(intent, digest, rebuilt=rebuilt, bad_rows=report.bad_rows)
            plan = msgspec.structs.replace(plan, unsearched=unsearched)
            lane = Lane(index=0, region=intent.region, account=intent.manifest.account)
            checkpoint.write_plan(plan, [lane], cut(fold.distinct(spool.sorted_blocks())))
        return fold, report

    def _plan(self, intent: Intent, digest: str, *, rebuilt: bool, bad_rows: int) -> Plan:
        manifest = intent.manifest
        return Plan(
            plan_id=uuid.uuid4().hex,
            run=intent.run,
            command=str(manifest.command),
            description=manifest.description,
            tags=dict(manifest.tags),
            region=intent.region,
            account=manifest.account,
            endpoint_url=intent.endpoint_url,
            system_tags=manifest.system_tags is not False,
            intent_digest=intent.intent_digest,
            selection_digest=intent.selection_digest,
            inventory_digest=digest,
            planned_at=self._now(),
            rebuilt=rebuilt,
            bad_rows=bad_rows,
            limits=self._settings.given_limits(),
        )

    def _rebuild(
        self,
        intent: Intent,
        checkpoint: SqliteCheckpoint,
        record: Record,
        inventory: InventoryReader,
        digest: str,
        *,
        has_plan: bool,
    ) -> None:
        """Replace a lost checkpoint, or bring an old one up to the registry's mark; or refuse."""
        last = Path(record.checkpoint)
        if last != checkpoint.path and last.exists():
            raise CheckpointError(
                f"run {intent.run} has its checkpoint at {last}",
                hint=f"give another --run-key for a new run; to go on, {adding('--checkpoint', str(last))}",
            )
        intent.check_same(record)
        assert record.first_sent_at is not None
        why = None
        if digest != record.inventory_digest or intent.selection_digest != record.selection_digest:
            why = "the inventory is not the one that was planned"
        elif record.is_recut:
            why = "batches were cut anew after planning, or may have been on another host"
        elif not 0 <= self._now() - record.first_sent_at < self._settings.token_window_s:
            why = f"the first call is older than token_window_s ({self._settings.token_window_s:g} s)"
        if why is not None:
            state = "is older than what the registry remembers" if has_plan else "is gone"
            raise CheckpointError(
                f"the checkpoint of run {intent.run} {state} and cannot be rebuilt: {why}",
                hint=f"was {last} moved? Put it back; if it is lost: {reconcile()}",
            )
        self._check_holder(checkpoint)
        stored = checkpoint.plan() if has_plan else None
        if stored is not None:
            checkpoint.check_pages(thoroughly=True)  # pages of different ages may lie beside each other
        if stored is None or stored.plan_id != record.plan_id:
            if stored is not None and binds(checkpoint):
                raise CheckpointError(
                    f"{checkpoint.path} holds another plan of run {intent.run} than was sent last",
                    hint=f"was {last} moved? Put it back; if it is lost: {reconcile()}",
                )
            self._write(intent, checkpoint, inventory, digest, rebuilt=True)
        lost = Lost(record.mark, record.first_sent_at)
        checkpoint.acquire(encoded(this_holder()), now=self._now(), lost=lost)
        self._notes.append(
            f"the checkpoint was {'older than the registry' if has_plan else 'lost'}: rebuilt, and every"
            f" unsettled batch up to {record.mark} counts as in doubt"
        )

    def _edit(
        self,
        intent: Intent,
        checkpoint: SqliteCheckpoint,
        plan: Plan,
        inventory: InventoryReader,
        digest: str,
    ) -> None:
        """Diff by device, ask, and apply."""
        fold = Fold()
        folder = checkpoint.path.parent
        with SortedSpool(folder) as spool:
            report = inventory.read_into(spool)
            found = diff(fold.distinct(spool.sorted_blocks()), checkpoint.rows(), folder=folder)
        try:
            self._diff = found.as_json()
            _check_searched(plan, self._diff)
            check_removals(found, self._settings)
            changes = sum(count for what, count in self._diff.items() if what != "kept")
            if changes and self._confirm is not None:
                self._confirm(intent.run, found)
            edited = msgspec.structs.replace(
                plan,
                inventory_digest=digest,
                selection_digest=intent.selection_digest,
                bad_rows=report.bad_rows,
            )
            checkpoint.acquire(encoded(this_holder()), now=self._now())
            self._remember(checkpoint, edited, is_recut=changes > 0)  # first: a crash must not find it unsaid
            checkpoint.edit(edited, work=found.work(), added=cut(found.new_blocks()), now=self._now())
        finally:
            found.close()
        if self._confirm is None:
            self._notes.append(f"the manifest was edited: {edit_words(found)}")

    # resume RUN|CHECKPOINT

    def of_checkpoint(self, path: Path) -> Prepared:
        """Prepare to drain a stored plan; reads neither manifest nor inventory."""
        reader = SqliteCheckpoint.open(path, read_only=True)
        try:
            plan = stored_plan(reader)
        finally:
            reader.close()
        locks = self._lock(path, plan.run)
        checkpoint: SqliteCheckpoint | None = None
        try:
            checkpoint = SqliteCheckpoint.open(path)
            plan = stored_plan(checkpoint)
            self._check_place(plan)
            check_newest(checkpoint, path, plan, self._registry.get(plan.run))
            self._check_holder(checkpoint)
            return self._lease(checkpoint, locks, is_resumed=True)
        except BaseException:
            if checkpoint is not None:
                with contextlib.suppress(CheckpointError):
                    checkpoint.close()
            locks.release()
            raise

    def _check_place(self, plan: Plan) -> None:
        asked = self._settings
        for what in ("endpoint_url", "region"):
            now, then = getattr(asked, what), getattr(plan, what)
            if now not in (None, then):
                raise PlanMismatch(
                    f"run {plan.run} was planned for {what} {then or 'of AWS'}, not {now}",
                    hint=f"resume it without that (origin: {asked.origins[what]}),"
                    " or run its manifest with another --run-key",
                )

    # both

    def _lock(self, path: Path, run: str) -> Locks:
        locks = Locks(lock_paths(path, self._settings.state_dir, run))
        locks.take(allow_network=self._settings.allow_network_fs)
        return locks

    def _check_holder(self, checkpoint: SqliteCheckpoint) -> None:
        standing = checkpoint.standing()
        note = check_holder(
            standing,
            this_holder(),
            take_over=self._settings.take_over,
            in_doubt=checkpoint.counts().in_doubt if standing.holder else 0,
        )
        if note:
            self._notes.append(note)

    def _lease(
        self,
        checkpoint: SqliteCheckpoint,
        locks: Locks,
        *,
        is_resumed: bool,
        limits: dict[str, int | float] | None = None,
    ) -> Prepared:
        checkpoint.acquire(encoded(this_holder()), now=self._now())
        plan = stored_plan(checkpoint)
        if limits is not None and limits != plan.limits:
            plan = msgspec.structs.replace(plan, limits=limits)
            checkpoint.amend(plan, now=self._now())
        record = self._remember(checkpoint, plan)
        return Prepared(
            checkpoint=checkpoint,
            plan=plan,
            marker=Marker(self._registry, record),
            locks=locks,
            counts=checkpoint.counts(),
            is_resumed=is_resumed,
            notes=self._notes,
            diff=self._diff,
        )

    def _remember(self, checkpoint: SqliteCheckpoint, plan: Plan, *, is_recut: bool = False) -> Record:
        """Write the registry's record of this plan; what another host cut anew before is unknown here."""
        old = self._registry.get(plan.run)
        standing = checkpoint.standing()
        was_sent = old is not None and (old.plan_id == plan.plan_id or plan.rebuilt)
        is_new = standing.mark == 0 and not was_sent
        planned = checkpoint.last_number() if is_new else old.planned if old and was_sent else 0
        record = Record(
            run=plan.run,
            checkpoint=str(checkpoint.path),
            plan_id=plan.plan_id,
            intent_digest=plan.intent_digest,
            selection_digest=plan.selection_digest,
            inventory_digest=plan.inventory_digest,
            token_version=plan.token_version,
            endpoint_url=plan.endpoint_url,
            region=plan.region,
            planned_at=plan.planned_at,
            first_sent_at=old.first_sent_at if old and was_sent else None,
            commits=standing.commits,
            mark=standing.mark,
            is_recut=is_recut or bool(old.is_recut if old and was_sent else standing.mark),
            planned=0 if is_recut else planned,
            # A claim that a crash kept from the registry is a doubt by now, and resent without a new claim.
            reached=max(old.reached if old and was_sent else 0, checkpoint.highest_outcome(planned)),
        )
        if record.first_sent_at is None and standing.mark:
            record = msgspec.structs.replace(record, first_sent_at=plan.planned_at)
        if record != old:
            self._registry.put(record)
        return record


def encoded(holder: Holder) -> str:
    """Return a holder as the lease keeps it."""
    return msgspec.json.encode(holder).decode()


def _check_searched(plan: Plan, found: dict[str, int]) -> None:
    """Refuse new devices where the lost checkpoint may have known them."""
    new = found["added"] + found["returned"]
    if plan.unsearched and new:
        raise CheckpointError(
            f"the checkpoint of run {plan.run} was lost, and the service's tasks were never listed to the end"
            f" since: the {new} devices that the manifest has gained may have their task already",
            hint=f"first reconcile it: {reconcile()}",
        )
