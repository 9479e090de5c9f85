"""Settling doubt against the service: list the run's tasks, match them with the batches, write it down.

    list      pages of ListTasks; a task of the run carries its tag, and its client token in another
    match     by client token: a token is a hash of the intent and of the devices, so equal tokens are equal
              devices. Tasks under tokens of no batch (the plan was cut otherwise then) are described, and
              matched device by device
    doubt     a task of a batch that was never claimed here, or of devices in no batch, shows that another
              runner knew more: then all that is unsettled may have been sent
    rule      `policy.reconcile` decides batch by batch; rulings are written by the block

Nothing is sent. Every block is one transaction and every ruling follows from what is stored and listed, so
being killed at any moment and begun again comes out the same.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import msgspec

from dispatcher.checkpoint.base import Lost
from dispatcher.errors import PlanMismatch
from dispatcher.model import BatchState, Command, FoundTask
from dispatcher.plan import ClientTokens
from dispatcher.policy.reconcile import View, conflicts, decide
from dispatcher.policy.token_window import TokenWindow
from dispatcher.reconciled import Broken, Reconciled, account_of
from dispatcher.tasks_of_run import TasksOfRun, gather

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.checkpoint.base import Plan, Row, Stored
    from dispatcher.checkpoint.writer import Offload
    from dispatcher.clock import Clock
    from dispatcher.lookup import Lookup
    from dispatcher.model import Counts, Ruling
    from dispatcher.recover import Recovered
    from dispatcher.settings import Resolved

BLOCK = 500
"""Rulings a transaction."""
MAX_BROKEN = 100
"""Broken words that are told one by one; all are counted."""


class Reconciliation:
    """One reconcile of one run."""

    def __init__(
        self, recovered: Recovered, settings: Resolved, lookup: Lookup, clock: Clock, *, offload: Offload
    ) -> None:
        """Settle `recovered` by what `lookup` reads; blocking work goes to `offload`."""
        self._recovered = recovered
        self._stored: Stored = recovered.stored
        self._plan: Plan = recovered.plan
        self._settings = settings
        self._lookup = lookup
        self._clock = clock
        self._offload = offload
        self._own: dict[int, list[FoundTask]] = {}
        self._others: dict[str, list[FoundTask]] = {}
        self._result = Reconciled(run=self._plan.run, dry_run=recovered.is_dry)

    async def go(self, *, max_pages: int) -> Reconciled:
        """Look everything up and settle it. Raises `RunStopped` where the service cannot be asked."""
        result, began_s = self._result, self._clock.monotonic()
        before = await self._offload.run(self._stored.counts)
        tokens = ClientTokens(self._plan)
        tasks = await gather(
            self._lookup, self._plan, max_pages=max_pages, offload=self._offload, stored=self._stored
        )
        self._check_account(tasks)
        result.listed, result.tasks, result.pages = tasks.listed, len(tasks.by_id), tasks.pages
        unlisted, is_behind = await self._offload.run(lambda: self._match(tasks, tokens))
        strays = await self._describe(tasks)
        result.complete = tasks.is_complete
        nowhere, is_behind_too = await self._offload.run(lambda: self._place(strays))
        behind = is_behind or is_behind_too
        if behind:
            await self._offload.run(self._doubt_all)
        result.behind, result.unlisted = behind, unlisted
        view = View(
            now=self._clock.wall(),
            window=TokenWindow(self._settings.resend_window_s),
            is_complete=tasks.is_complete,
            unlisted=unlisted,
            assume_absent=self._settings.assume_absent,
            is_harmful=self._plan.command != Command.UNLOCK,
            removed=self._recovered.removed,
        )
        await self._offload.run(lambda: self._settle(view, nowhere, is_behind=behind))
        if tasks.is_complete:
            await self._offload.run(self._searched)
        result.counts = before if result.dry_run else await self._offload.run(self._conclude)
        result.calls, result.throttled = self._lookup.calls, self._lookup.throttled
        result.elapsed_s = self._clock.monotonic() - began_s
        return result

    def _searched(self) -> None:
        """Note that every task of the run is in the checkpoint now: new devices may be planned again."""
        store = self._recovered.store
        if store is not None and self._plan.unsearched:
            store.amend(msgspec.structs.replace(self._plan, unsearched=False), now=self._clock.wall())

    def _check_account(self, tasks: TasksOfRun) -> None:
        expected = self._plan.account or self._stored.standing().account
        for task in itertools.islice(tasks.by_id.values(), 1):
            found = account_of(task.task_arn)
            if expected is not None and found is not None and found != expected:
                raise PlanMismatch(
                    f"the tasks listed are of account {found}, run {self._plan.run} belongs to {expected}",
                    hint="use the credentials it began with (--profile)",
                )

    def _match(self, tasks: TasksOfRun, tokens: ClientTokens) -> tuple[int, bool]:
        """Match by token; return how many known tasks are not listed, and whether others knew more."""
        unlisted, is_behind = 0, False
        for row in self._stored.rows():
            own = tasks.of_batch(row, tokens)
            if row.task_id is not None and not tasks.take(row.task_id):
                unlisted += 1
            if any(task.task_id != row.task_id for task in own):
                self._own[row.number] = own
                is_behind |= row.state in (BatchState.PLANNED, BatchState.CANCELLED)
        return unlisted, is_behind

    async def _describe(self, tasks: TasksOfRun) -> list[FoundTask]:
        """Describe the tasks that no batch accounts for; keep the devices that each has."""
        strays = await tasks.described(self._lookup)
        for task in strays:
            for device in task.targets:
                self._others.setdefault(device, []).append(task)
        self._result.described = len(strays)
        return strays

    def _place(self, strays: Sequence[FoundTask]) -> tuple[list[FoundTask], bool]:
        """Return the tasks' devices that are in no batch, and whether others knew more."""
        if not strays:
            return [], False
        missing, is_behind = set(self._others), False
        for row in self._stored.rows():
            found = missing.intersection(row.targets)
            if found:
                missing -= found
                is_behind |= row.state in (BatchState.PLANNED, BatchState.CANCELLED)
        nowhere = []
        for device in sorted(missing):
            self._tell_conflict(tuple(task.task_id for task in self._others[device]), [device])
        for task in strays:
            left = tuple(sorted(d for d in task.targets if d in missing and self._others[d][0] is task))
            if left:
                nowhere.append(msgspec.structs.replace(task, targets=left))
        return nowhere, is_behind or bool(nowhere)

    def _doubt_all(self) -> None:
        """All that is unsettled may have been sent by the runner that knew more."""
        store = self._recovered.store
        if store is None:
            return
        last = self._stored.last_number()
        # The checkpoint first: with the registry alone, a crash in between would leave all of it planned.
        store.doubt_up_to(Lost(last, self._recovered.first_sent_at, held=True), now=self._clock.wall())
        self._recovered.remember(mark=last, is_recut=True)

    def _settle(self, view: View, nowhere: Sequence[FoundTask], *, is_behind: bool) -> None:
        """Rule batch by batch, and write by the block; batches made meanwhile are not looked at again."""
        last, after = self._stored.last_number(), 0
        while after < last:
            rulings: list[Ruling] = []
            rows = self._stored.rows(after=after)
            after = last
            for row in rows:
                if row.number > last:
                    break
                ruling = self._rule(self._as_doubted(row, is_behind=is_behind), view)
                if ruling is not None:
                    rulings.append(ruling)
                if len(rulings) >= BLOCK:
                    after = row.number
                    break
            del rows
            self._write(rulings)
        self._result.history += sum(len(task.targets) for task in nowhere)
        if nowhere:
            self._write([], nowhere)

    def _as_doubted(self, row: Row, *, is_behind: bool) -> Row:
        """See a batch as `_doubt_all` leaves it, where a dry run has not written that; a claim is a doubt."""
        is_open = row.state == BatchState.SENT or (is_behind and row.state == BatchState.PLANNED)
        if not self._result.dry_run or not is_open:
            return row
        held = 0 if row.state == BatchState.PLANNED else None
        first = self._recovered.first_sent_at if row.first_sent_at is None else row.first_sent_at
        return row._replace(state=BatchState.IN_DOUBT, held=held, first_sent_at=first)

    def _rule(self, row: Row, view: View) -> Ruling | None:
        own = self._own.get(row.number, ())
        for task_ids, devices in conflicts(row, own, self._others).items():
            self._tell_conflict(task_ids, devices)
        ruling, why = decide(row, own, self._others, view)
        result = self._result
        doubtful = len(row.targets) if why is not None else 0
        if ruling is not None:
            doubtful = 0
            for part in ruling.parts:
                size = len(part.targets)
                if part.task is not None:
                    result.adopted += size
                    result.contradicted += size if row.state == BatchState.REJECTED else 0
                elif part.state is BatchState.PLANNED:
                    result.released += size
                elif part.state is BatchState.IN_DOUBT:
                    doubtful += size
                elif row.state == BatchState.IN_DOUBT:
                    result.cancelled += size
        if why is not None:
            result.doubts[why] = result.doubts.get(why, 0) + doubtful
        return ruling

    def _conclude(self) -> Counts:
        """Let a run that had ended be judged by how it stands now."""
        counts, store = self._stored.counts(), self._recovered.store
        if store is not None and store.standing().finished_at is not None:
            code = None if counts.pending else int(counts.in_doubt + counts.rejected > 0)
            store.finish(code, now=self._clock.wall())
        return counts

    def _tell_conflict(self, task_ids: tuple[str, ...], devices: list[str]) -> None:
        if len(task_ids) < 2:
            return
        result = self._result
        result.twice += len(devices)
        if len(result.broken) < MAX_BROKEN:
            result.broken.append(Broken(task_ids, tuple(devices)))

    def _write(self, rulings: Sequence[Ruling], nowhere: Sequence[FoundTask] = ()) -> None:
        store = self._recovered.store
        if store is None or not (rulings or nowhere):
            return
        now = self._clock.wall()
        is_recut = bool(nowhere) or any(len(ruling.parts) > 1 for ruling in rulings)
        self._recovered.remember(is_recut=is_recut)
        store.rule(rulings, strays=nowhere, now=now)
        arns = (p.task.task_arn for r in rulings for p in r.parts if p.task is not None)
        account = account_of(next(arns, None))
        if account is not None:
            store.learn(account=account, now=now)
        self._recovered.noted(now=now)
