"""The checkpoint in plain dictionaries: for tests in virtual time, and the contract's second opinion.

Nothing is durable here; every rule of `Checkpoint` holds all the same, and one suite checks both stores.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from dispatcher.checkpoint import cutting
from dispatcher.checkpoint.base import Cut, Plan, Row, Standing
from dispatcher.checkpoint.claims import ClaimBook, Span, runs_of
from dispatcher.errors import CheckpointError, CheckpointLeased
from dispatcher.model import Batch, BatchState, Counts, Doubt, Lane, Outcome, Resend

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from dispatcher.checkpoint.base import Lost, Pulse
    from dispatcher.model import FoundTask, Ruling


_INTERRUPTED = "the process ended before an answer was recorded"
_REBUILT = "sent by an earlier runner whose checkpoint is lost"


@dataclass(slots=True)
class _Kept:
    outcome: Outcome
    held: int | None


def _joined(old: Outcome | None, new: Outcome) -> Outcome:
    """Return what is kept when `new` is recorded over `old`, as the SQL schema and upsert have it."""
    accepted = new.state is BatchState.ACCEPTED
    if accepted is (new.task_id is None) or new.state in (BatchState.PLANNED, BatchState.SENT):
        raise CheckpointError(f"batch {new.batch} cannot be settled so; this is a bug")
    if old is None:
        if new.state is BatchState.IN_DOUBT and new.first_sent_at is None:
            raise CheckpointError(f"the doubt about batch {new.batch} has no instant; this is a bug")
        return new
    if old.state is not BatchState.IN_DOUBT or new.state not in (BatchState.IN_DOUBT, BatchState.ACCEPTED):
        raise CheckpointError("a settled batch was to be settled again; this is a bug")
    return replace(
        new,
        first_sent_at=min(at for at in (old.first_sent_at, new.first_sent_at) if at is not None),
        attempts=old.attempts + new.attempts,
        code=None if accepted else new.code or old.code,
        message=None if accepted else new.message or old.message,
    )


class MemoryCheckpoint:
    """A `Checkpoint` that lives and dies with the process."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._lanes: list[Lane] = []
        self._batches: dict[int, Batch] = {}
        self._removed: set[int] = set()
        self._kept: dict[int, _Kept] = {}
        self._spans: dict[int, Span] = {}
        self._claims = ClaimBook()
        self._next_number = 1
        self._next_key = 1
        self._epoch = 0
        self._standing = Standing(0, None, 0.0, 0, 0, None, None, None, None)

    def plan(self) -> Plan | None:
        return self._plan

    def lanes(self) -> list[Lane]:
        return list(self._lanes)

    def standing(self) -> Standing:
        return self._standing

    def write_plan(self, plan: Plan, lanes: Sequence[Lane], batches: Iterable[Batch]) -> None:
        planned = {batch.number: batch for batch in batches}  # may raise; then nothing has changed
        epoch, standing = self._epoch, self._standing
        MemoryCheckpoint.__init__(self)
        self._plan, self._lanes, self._batches = plan, list(lanes), planned
        self._next_number = max(planned, default=0) + 1
        self._epoch = epoch
        self._standing = Standing(epoch, standing.holder, standing.heartbeat_at, 0, 0, None, None, None, None)

    def acquire(self, holder: str, *, now: float, lost: Lost | None = None) -> int:
        hold = None if lost is None else lost.hold
        for span in sorted(self._spans.values(), key=lambda span: span.at):
            for number in range(span.first, span.last + 1):
                if number in self._batches and number not in self._kept:
                    self._doubt(number, span.at, now, "Interrupted", _INTERRUPTED, hold)
        self._spans.clear()
        self._claims = ClaimBook()
        old = self._standing
        self._epoch, commits = old.epoch + 1, old.commits + 1
        self._standing = old._replace(epoch=self._epoch, holder=holder, heartbeat_at=now, commits=commits)
        if lost is not None:
            self._doubt_up_to(lost, now)
        return self._epoch

    def _doubt(self, number: int, since: float, now: float, code: str, text: str, hold: int | None) -> None:
        size = len(self._batches[number].targets)
        outcome = Outcome(number, BatchState.IN_DOUBT, size, 0, since, now, code=code, message=text)
        self._kept[number] = _Kept(outcome, hold)

    def _fence(self, now: float) -> None:
        if self._standing.epoch != self._epoch:
            raise CheckpointLeased("another runner took the run over")
        standing = self._standing
        self._standing = standing._replace(heartbeat_at=now, commits=standing.commits + 1)

    @contextlib.contextmanager
    def together(self, *, now: float) -> Iterator[None]:
        self._fence(now)
        before = {name: copy.copy(value) for name, value in vars(self).items()}
        commits = self._standing.commits
        try:
            yield
        except BaseException:
            vars(self).update(before)
            raise
        self._standing = self._standing._replace(commits=commits)  # one transaction is one commit

    def release(self, *, now: float) -> None:
        self._fence(now)
        self._standing = self._standing._replace(holder=None)

    def check_lease(self, *, now: float) -> None:
        self._fence(now)

    def claim(self, *, limit: int, max_devices: int | None, now: float) -> list[Batch]:
        self._fence(now)
        free = [
            batch
            for number, batch in sorted(self._batches.items())
            if number not in self._kept and number not in self._claims
        ]
        batches, cut = cutting.within(free[:limit], max_devices)
        if cut is not None:
            parent, room = cut
            self._settle([cutting.split_outcome(parent, now)])
            parts = (parent.targets[:room], parent.targets[room:])
            batches.append(self._adopt(parent, parts, fresh=True)[0])
        elif not batches:
            batches = [batch for batch in free if not batch.fresh][:limit]
        self._write_claims([batch.number for batch in batches], now)
        return batches

    def _adopt(self, parent: Batch, parts: Sequence[tuple[str, ...]], *, fresh: bool) -> list[Batch]:
        children = cutting.children_of(parent, parts, first=self._next_number, fresh=fresh)
        self._next_number += len(children)
        self._batches.update({child.number: child for child in children})
        return children

    def _write_claims(self, numbers: Sequence[int], now: float) -> None:
        if not numbers:
            return
        for first, last in runs_of(sorted(numbers)):
            self._add_claim(Span(first, last, now))
        standing = self._standing
        self._standing = standing._replace(mark=max(standing.mark, *numbers))

    def _add_claim(self, span: Span) -> None:
        self._spans[self._next_key] = span
        self._claims.add(self._next_key, span)
        self._next_key += 1

    def _rewrite_claims(self, keys: Iterable[int], spans: Iterable[Span]) -> None:
        for key in keys:
            del self._spans[key]
        for span in spans:
            self._add_claim(span)

    def give_back(self, numbers: Sequence[int], *, sent: Collection[int] = (), now: float) -> None:
        if not numbers:
            return
        self._fence(now)
        self._rewrite_claims(*self._claims.give_back(numbers))
        for number in sent:
            self._batches[number] = replace(self._batches[number], fresh=False)

    def record(self, outcomes: Sequence[Outcome], *, now: float) -> None:
        self._fence(now)
        self._settle(outcomes)

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        written: dict[int, _Kept] = {}
        for outcome in outcomes:
            old = written.get(outcome.batch) or self._kept.get(outcome.batch)
            held = {Resend.ALLOWED: None, Resend.NEXT_PROCESS: self._epoch, Resend.NEVER: 0}[outcome.resend]
            written[outcome.batch] = _Kept(_joined(old.outcome if old else None, outcome), held)
        self._kept.update(written)
        for key in self._claims.settle(outcome.batch for outcome in outcomes):
            del self._spans[key]

    def split(self, outcome: Outcome, parts: Sequence[tuple[str, ...]], *, now: float) -> list[Batch]:
        self._fence(now)
        self._settle([outcome])
        children = self._adopt(self._batches[outcome.batch], parts, fresh=False)
        self._write_claims([child.number for child in children], now)
        return children

    def undo_split(self, number: int, *, now: float) -> None:
        self._fence(now)
        family = {number}
        for child in sorted(self._batches):
            if self._batches[child].parent in family:
                family.add(child)
        states = {n: kept.outcome.state for n in family if (kept := self._kept.get(n)) is not None}
        if number not in states or {*states.values()} != {BatchState.SPLIT}:
            raise CheckpointError(f"the split of batch {number} cannot be undone; this is a bug")
        family.discard(number)
        self._rewrite_claims(*self._claims.give_back([child for child in family if child in self._claims]))
        self._rewrite_claims(*self._claims.uncover(number))
        for child in family:
            self._batches.pop(child)
            self._kept.pop(child, None)
        self._kept.pop(number)

    def doubts(self, *, after: int, limit: int) -> list[Doubt]:
        found = [
            Doubt(self._batches[n], kept.outcome.first_sent_at or 0.0, kept.outcome.attempts,
                  kept.outcome.code, kept.outcome.message)
            for n, kept in sorted(self._kept.items())
            if n > after and kept.outcome.state is BatchState.IN_DOUBT and n not in self._removed
            and (kept.held is None or kept.held not in (0, self._epoch))
        ]  # fmt: skip
        return found[:limit]

    def newest_doubt(self) -> float | None:
        return max(
            (
                kept.outcome.first_sent_at or 0.0
                for n, kept in self._kept.items()
                if kept.outcome.state is BatchState.IN_DOUBT and kept.held != 0 and n not in self._removed
            ),
            default=None,
        )

    def doubt_kinds(self, open_since: float) -> dict[str, tuple[int, float]]:
        found: dict[str, tuple[int, float]] = {}
        for number, kept in self._kept.items():
            if kept.outcome.state is not BatchState.IN_DOUBT:
                continue
            first = kept.outcome.first_sent_at or 0.0
            is_held = kept.held == 0 or number in self._removed
            kind = "held" if is_held else "resendable" if first > open_since else "expired"
            devices, earliest = found.get(kind, (0, first))
            found[kind] = (devices + kept.outcome.devices, min(earliest, first))
        return found

    def doubt_up_to(self, lost: Lost, *, now: float) -> None:
        self._fence(now)
        self._doubt_up_to(lost, now)

    def _doubt_up_to(self, lost: Lost, now: float) -> None:
        for number in sorted(self._batches):
            if number <= lost.mark and number not in self._kept:
                self._doubt(number, lost.first_sent_at, now, "Rebuilt", _REBUILT, lost.hold)
        self._standing = self._standing._replace(mark=max(self._standing.mark, lost.mark))

    def edit(
        self,
        plan: Plan,
        *,
        work: Iterable[Cut | tuple[int, bool]],
        added: Iterable[Batch],
        now: float,
    ) -> None:
        with self.together(now=now):
            self._edit(work, added, now)
        self._plan = plan
        self._standing = self._standing._replace(finished_at=None, exit_code=None)

    def _edit(self, work: Iterable[Cut | tuple[int, bool]], added: Iterable[Batch], now: float) -> None:
        for item in work:
            if isinstance(item, Cut):
                self._apply_cut(item, now)
            else:
                number, removed = item
                (self._removed.add if removed else self._removed.discard)(number)
        for batch in added:
            self._batches[self._next_number] = replace(batch, number=self._next_number)
            self._next_number += 1

    def _apply_cut(self, cut: Cut, now: float) -> None:
        old = self._kept.pop(cut.parent, None)
        if cut.parent in self._claims or (old and old.outcome.state is not BatchState.CANCELLED):
            raise CheckpointError(f"batch {cut.parent} cannot be cut; this is a bug")
        parent, first = self._batches[cut.parent], self._next_number
        outcomes, children = cutting.apply(cut, parent, was_cancelled=old is not None, first=first, now=now)
        self._next_number += len(children)
        self._batches.update({child.number: child for child in children})
        self._settle(outcomes)

    def rule(self, rulings: Sequence[Ruling], *, strays: Sequence[FoundTask] = (), now: float) -> None:
        with self.together(now=now):
            for ruling in rulings:
                self._apply_ruling(ruling, now)
            for task in strays:
                batch = Batch(self._next_number, 0, 0, task.targets, None, False)
                self._next_number += 1
                self._batches[batch.number] = batch
                self._settle([cutting.adopted(batch, task, now)])

    def _apply_ruling(self, ruling: Ruling, now: float) -> None:
        number = ruling.batch
        if number in self._claims:
            raise CheckpointError(f"batch {number} is on the wire; this is a bug")
        parent, kept = self._batches[number], self._kept.get(number)
        old, held = (kept.outcome, kept.held) if kept else (None, None)
        made = cutting.ruled(ruling, parent, old, held, first=self._next_number, now=now)
        self._kept.pop(number, None)
        self._next_number += len(made.children)
        self._batches.update({child.number: child for child in made.children})
        if number in self._removed:
            self._removed.update(made.parked)
        if made.is_planned:
            self._batches[number] = replace(parent, fresh=False)
            self._removed.discard(number)
        self._settle(made.outcomes)

    def amend(self, plan: Plan, *, now: float) -> None:
        self._fence(now)
        self._plan = plan

    def learn(
        self,
        *,
        account: str | None = None,
        rate: float | None = None,
        pulse: Pulse | None = None,
        now: float,
    ) -> None:
        self._fence(now)
        standing = self._standing
        self._standing = standing._replace(
            account=standing.account or account,
            learned_rate=rate if rate is not None else standing.learned_rate,
            pulse=pulse or standing.pulse,
        )

    def finish(self, exit_code: int | None, *, now: float) -> None:
        self._fence(now)
        finished = None if exit_code is None else self._standing.finished_at or now
        self._standing = self._standing._replace(finished_at=finished, exit_code=exit_code)

    def counts(self) -> Counts:
        devices: dict[str, int] = dict.fromkeys(BatchState, 0)
        batches = split = 0
        for row in self._all_rows():
            if row.state == BatchState.SPLIT:
                split += 1
            else:
                batches += 1
                devices[row.state] += len(row.targets)
        return Counts(
            devices=sum(devices.values()),
            accepted=devices["accepted"],
            rejected=devices["rejected"],
            in_doubt=devices["in_doubt"] + devices["sent"],
            pending=devices["planned"],
            cancelled=devices["cancelled"],
            batches=batches,
            split=split,
        )

    def removed_rejected(self) -> int:
        return sum(
            len(row.targets) for row in self._all_rows() if row.removed and row.state == BatchState.REJECTED
        )

    def last_number(self) -> int:
        return max(self._batches, default=0)

    def rows(self, *, after: int = 0) -> Iterator[Row]:
        return (row for row in self._all_rows() if row.state != BatchState.SPLIT and row.number > after)

    def _all_rows(self) -> Iterator[Row]:
        for number, batch in sorted(self._batches.items()):
            kept = self._kept.get(number)
            where = (number, batch.lane, batch.wave, batch.targets, number in self._removed)
            if kept is None:
                claimed = any(span.first <= number <= span.last for span in self._spans.values())
                state = BatchState.SENT if claimed else BatchState.PLANNED
                yield Row(*where, state, 0, None, None, None, None, None, None, None)
            else:
                o = kept.outcome
                yield Row(*where, o.state, o.attempts, o.first_sent_at, o.settled_at, o.task_id, o.task_arn,
                          o.code, o.message, kept.held)  # fmt: skip

    def close(self) -> None:
        """Nothing to close."""
