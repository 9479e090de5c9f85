"""The checkpoint in one SQLite file: WAL, `synchronous=FULL`, one writing connection.

Why one statement a block: an `executemany` in a thread beside a busy event loop takes the interpreter's
lock again for every row (measured: 1,400 to 4,800 rows a second instead of 261,000). A statement with a
block's worth of `VALUES` takes it once. Over `json_each(?)` the same block costs 6.7 us a row instead of
2.9, since every field is looked up in the text again (docs/adr/0006).

Why one connection: SQLite before 3.51.3 can lose commits when two connections write or checkpoint at once
(https://www.sqlite.org/wal.html#walresetbug). apsw brings a newer one, and this class never needs two.

What it does not do: retry a failed commit. After an I/O error a second fsync may report a success that is
none, so the error leaves as `CheckpointIo` and the run stops.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import apsw
import msgspec

from dispatcher.checkpoint import cutting
from dispatcher.checkpoint.base import Cut
from dispatcher.checkpoint.claims import ClaimBook, Span, runs_of
from dispatcher.checkpoint.files import explained
from dispatcher.checkpoint.reading import BUSY_TIMEOUT_MS, QUERIES, SqliteReader
from dispatcher.checkpoint.rows import BLOCK, INSERT_BATCH, RECORD, SIZES, Insert, batch_row, outcome_row
from dispatcher.errors import CheckpointError, CheckpointLeased
from dispatcher.hints import command
from dispatcher.model import Batch, BatchState, Lane, Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from dispatcher.checkpoint.base import Lost, Plan, Pulse
    from dispatcher.model import FoundTask, Ruling

_encode = msgspec.json.Encoder().encode
_planned = msgspec.json.Decoder(list[tuple[int, int, int, str, int | None, int]]).decode


class SqliteCheckpoint(SqliteReader):
    """A `Checkpoint` in a file. Not thread-safe: one caller at a time, from any thread."""

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        super().__init__(path, connection)
        self._claims = ClaimBook()
        self._cursor = 0  # every batch up to here is settled or claimed
        self._is_together = False

    @contextlib.contextmanager
    def _atomic(self, now: float | None = None) -> Iterator[None]:
        """One durable transaction; with `now` it is fenced by the epoch and beats the heart."""
        if self._is_together:
            yield
            return
        with explained(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if now is not None:
                    self._db.execute(QUERIES["fence"], {"now": now, "epoch": self._epoch})
                    if self._db.changes() != 1:
                        raise self._taken_over()
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # A full disk may have rolled the transaction back already.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def together(self, *, now: float) -> Iterator[None]:
        with self._atomic(now):
            self._is_together = True
            try:
                yield
            finally:
                self._is_together = False

    def _taken_over(self) -> CheckpointLeased:
        return CheckpointLeased(
            f"another runner took {self.path} over",
            hint=f"let it finish; `{command('status', str(self.path))}` shows how far it is",
        )

    def write_plan(self, plan: Plan, lanes: Sequence[Lane], batches: Iterable[Batch]) -> None:
        self._leave_wal()
        with self._atomic():
            stored = self._all("SELECT epoch, holder, heartbeat_at FROM run")
            lease = stored[0] if stored else (self._epoch, None, 0.0)
            if self._epoch not in (0, lease[0]):
                raise self._taken_over()
            for table in ("run", "lane", "batch", "claim", "outcome"):
                self._db.execute(f"DELETE FROM {table}")
            for lane in lanes:
                self._db.execute("INSERT INTO lane VALUES (?, ?, ?)", (lane.index, lane.region, lane.account))
            last = self._insert(batches)
            self._db.execute(
                "INSERT INTO run (id, plan, next_number, epoch, holder, heartbeat_at)"
                " VALUES (1, ?, ?, ?, ?, ?)",
                (_encode(plan).decode(), last + 1, *lease),  # an epoch that fell would let a zombie write
            )
        self._value("PRAGMA journal_mode=WAL")
        self._cursor = 0
        self._claims = ClaimBook()

    def _leave_wal(self) -> None:
        """Go to a rollback journal: it writes nothing for new pages, where a WAL writes every page twice."""
        self._db.set_busy_timeout(0)
        try:
            # Beside a reader that cannot be done, and needs not be.
            with explained(self.path), contextlib.suppress(apsw.BusyError):
                self._db.execute("PRAGMA journal_mode=DELETE")
        finally:
            self._db.set_busy_timeout(BUSY_TIMEOUT_MS)

    def _insert(self, batches: Iterable[Batch]) -> int:
        """Insert batches by the block; return the highest number, 0 where there were none."""
        rows = map(batch_row, batches)
        last = 0
        while block := list(itertools.islice(rows, BLOCK)):
            self._insert_block(INSERT_BATCH, block)
            last = block[-1][0]
        return last

    def _insert_block(self, insert: Insert, rows: Sequence[tuple[Any, ...]]) -> int:
        """Insert rows with as few statements as their number has bits; return the rows changed."""
        changed = start = 0
        for size in SIZES:
            while len(rows) - start >= size:
                values = itertools.chain.from_iterable(rows[start : start + size])
                self._db.execute(insert.of(size), tuple(values))
                changed += self._db.changes()
                start += size
        return changed

    def _next_number(self, count: int) -> int:
        """Reserve `count` batch numbers; return the first."""
        first = int(self._all("SELECT next_number FROM run")[0][0])
        self._db.execute("UPDATE run SET next_number = next_number + ?", (count,))
        return first

    def acquire(self, holder: str, *, now: float, lost: Lost | None = None) -> int:
        self._value("PRAGMA journal_mode=WAL")  # planning that failed left it at DELETE
        with self._atomic():
            hold = None if lost is None else lost.hold
            self._db.execute(QUERIES["recover_claims"], {"now": now, "held": hold})
            self._db.execute("DELETE FROM claim")
            self._db.execute(QUERIES["acquire"], {"holder": holder, "now": now})
            if self._db.changes() != 1:
                raise CheckpointError(f"{self.path} holds no plan yet")
            self._epoch = int(self._all("SELECT epoch FROM run")[0][0])
            if lost is not None:
                self._doubt_up_to(lost, now)
        self._cursor = 0
        self._claims = ClaimBook()
        return self._epoch

    def release(self, *, now: float) -> None:
        with self._atomic(now):
            self._db.execute("UPDATE run SET holder = NULL")
        self._value("PRAGMA wal_checkpoint(TRUNCATE)")

    def check_lease(self, *, now: float) -> None:
        with self._atomic(now):
            pass

    def claim(self, *, limit: int, max_devices: int | None, now: float) -> list[Batch]:
        with self._atomic(now):
            rows = self._unclaimed(limit)
            batches, cut = cutting.within(rows, max_devices)
            if cut is not None:
                batches.append(self._recut_for_limit(*cut, now=now))
            elif rows and not batches:
                # What was on the wire before costs nothing, but stands behind what may not go.
                batches = self._unclaimed(limit, "next_planned_again")
            self._write_claims([batch.number for batch in batches], now)
        if batches and batches[0] is rows[0] and cut is None:
            self._cursor = batches[-1].number
        return batches

    def _unclaimed(self, limit: int, query: str = "next_planned") -> list[Batch]:
        """Read the next planned batches that this epoch has not claimed."""
        found: list[Batch] = []
        claimed = self._claims.numbers
        after = self._cursor
        while len(found) < limit:
            with self._decoding():
                rows = _planned(self._value_of(query, {"after": after, "limit": limit}))
            found += [
                Batch(number, lane, wave, tuple(targets.split(" ")), parent, fresh == 1)
                for number, lane, wave, targets, parent, fresh in rows
                if number not in claimed
            ]
            if len(rows) < limit:
                break
            after = rows[-1][0]
        return found[:limit]

    def _recut_for_limit(self, batch: Batch, room: int, *, now: float) -> Batch:
        """Cut a planned batch so that its first `room` devices can go alone; return that part."""
        self._record([cutting.split_outcome(batch, now)])
        children = cutting.children_of(
            batch, (batch.targets[:room], batch.targets[room:]), first=self._next_number(2), fresh=True
        )
        self._insert(children)
        return children[0]

    def _write_claims(self, numbers: Sequence[int], now: float) -> None:
        if not numbers:
            return
        for first, last in runs_of(sorted(numbers)):
            self._add_claim(Span(first, last, now))
        self._db.execute(QUERIES["raise_mark"], {"last": max(numbers)})

    def _add_claim(self, span: Span) -> None:
        self._db.execute(QUERIES["insert_claims"], (span.first, span.last, span.at, self._epoch))
        self._claims.add(self._db.last_insert_rowid(), span)

    def _drop_claims(self, keys: Iterable[int]) -> None:
        for key in keys:
            self._db.execute("DELETE FROM claim WHERE rowid = ?", (key,))

    def _rewrite_claims(self, keys: Iterable[int], spans: Iterable[Span]) -> None:
        self._drop_claims(keys)
        for span in spans:
            self._add_claim(span)

    def give_back(self, numbers: Sequence[int], *, sent: Collection[int] = (), now: float) -> None:
        if not numbers:
            return
        with self._atomic(now):
            self._rewrite_claims(*self._claims.give_back(numbers))
            for number in sent:
                self._db.execute("UPDATE batch SET fresh = 0 WHERE number = ?", (number,))
            self._cursor = min(self._cursor, min(numbers) - 1)

    def record(self, outcomes: Sequence[Outcome], *, now: float) -> None:
        with self._atomic(now):
            self._record(outcomes)
            self._drop_claims(self._claims.settle(outcome.batch for outcome in outcomes))

    def _record(self, outcomes: Sequence[Outcome]) -> None:
        rows = [outcome_row(outcome, self._epoch) for outcome in outcomes]
        if self._insert_block(RECORD, rows) != len(rows):
            raise CheckpointError(f"a settled batch of {self.path} was to be settled again; this is a bug")

    def split(self, outcome: Outcome, parts: Sequence[tuple[str, ...]], *, now: float) -> list[Batch]:
        with self._atomic(now):
            self._record([outcome])
            self._drop_claims(self._claims.settle([outcome.batch]))
            lane, wave = self._all("SELECT lane, wave FROM batch WHERE number = ?", (outcome.batch,))[0]
            parent = Batch(outcome.batch, lane, wave, ())
            children = cutting.children_of(parent, parts, first=self._next_number(len(parts)), fresh=False)
            self._insert(children)
            self._write_claims([child.number for child in children], now)
        return children

    def undo_split(self, number: int, *, now: float) -> None:
        with self._atomic(now):
            family = self._descendants(number)
            if self._state_of(number) != "split" or {*map(self._state_of, family)} - {None, "split"}:
                raise CheckpointError(f"the split of batch {number} cannot be undone; this is a bug")
            self._rewrite_claims(*self._claims.give_back([n for n in family if n in self._claims]))
            self._rewrite_claims(*self._claims.uncover(number))
            for child in family:
                self._db.execute("DELETE FROM batch WHERE number = ?", (child,))
            for split in (number, *family):
                self._db.execute("DELETE FROM outcome WHERE batch = ?", (split,))
            self._cursor = min(self._cursor, number - 1)

    def _state_of(self, number: int) -> str | None:
        rows = self._all("SELECT state FROM outcome WHERE batch = ?", (number,))
        return rows[0][0] if rows else None

    def _descendants(self, number: int) -> list[int]:
        found: list[int] = []
        front = [number]
        while front:
            parent = front.pop()
            # Children are numbered after their parent, so the scan is of the file's newest rows only.
            children = [
                row[0]
                for row in self._all(
                    "SELECT number FROM batch WHERE number > ? AND parent = ?", (parent, parent)
                )
            ]
            found += children
            front += children
        return found

    def doubt_up_to(self, lost: Lost, *, now: float) -> None:
        with self._atomic(now):
            self._doubt_up_to(lost, now)

    def _doubt_up_to(self, lost: Lost, now: float) -> None:
        self._db.execute(
            QUERIES["doubt_up_to"],
            {"mark": lost.mark, "first_sent_at": lost.first_sent_at, "now": now, "held": lost.hold},
        )
        self._db.execute("UPDATE run SET mark = max(mark, ?)", (lost.mark,))

    def edit(
        self,
        plan: Plan,
        *,
        work: Iterable[Cut | tuple[int, bool]],
        added: Iterable[Batch],
        now: float,
    ) -> None:
        with self._atomic(now):
            for item in work:
                if isinstance(item, Cut):
                    self._apply_cut(item, now)
                else:
                    number, removed = item
                    self._db.execute("UPDATE batch SET removed = ? WHERE number = ?", (int(removed), number))
            first = self._next_number(0)
            last = self._insert((Batch(first + i, b.lane, b.wave, b.targets) for i, b in enumerate(added)))
            self._next_number(max(0, last - first + 1))
            self._db.execute(
                "UPDATE run SET plan = ?, finished_at = NULL, exit_code = NULL", (_encode(plan).decode(),)
            )
        self._cursor = 0

    def _apply_cut(self, cut: Cut, now: float) -> None:
        row = self._all("SELECT lane, wave, fresh, targets FROM batch WHERE number = ?", (cut.parent,))[0]
        lane, wave, fresh, targets = row
        state = BatchState.SENT if cut.parent in self._claims else self._state_of(cut.parent)
        parent = Batch(cut.parent, lane, wave, tuple(targets.split(" ")), None, bool(fresh))
        if state == BatchState.CANCELLED:
            self._db.execute("DELETE FROM outcome WHERE batch = ?", (cut.parent,))
        elif state is not None:
            raise CheckpointError(f"batch {cut.parent} is {state} and cannot be cut; this is a bug")
        first = self._next_number(0)
        outcomes, children = cutting.apply(cut, parent, was_cancelled=state is not None, first=first, now=now)
        self._next_number(len(children))
        self._insert(children)
        self._record(outcomes)

    def rule(self, rulings: Sequence[Ruling], *, strays: Sequence[FoundTask] = (), now: float) -> None:
        with self._atomic(now):
            for ruling in rulings:
                self._apply_ruling(ruling, now)
            for task in strays:
                batch = Batch(self._next_number(1), 0, 0, task.targets, None, False)
                self._insert([batch])
                self._record([cutting.adopted(batch, task, now)])
        self._cursor = 0

    def _apply_ruling(self, ruling: Ruling, now: float) -> None:
        number = ruling.batch
        row = self._all(QUERIES["batch_with_outcome"], {"number": number})[0]
        parent = Batch(number, row[0], row[1], tuple(row[3].split(" ")), None, bool(row[2]))
        old = None if row[4] is None else Outcome(number, BatchState(row[4]), *row[5:-1])
        if number in self._claims:
            raise CheckpointError(f"batch {number} is on the wire; this is a bug")
        made = cutting.ruled(ruling, parent, old, row[-1], first=self._next_number(0), now=now)
        self._next_number(len(made.children))
        self._insert(made.children)
        for child in made.parked:
            self._db.execute(QUERIES["park_like"], {"child": child, "parent": number})
        self._db.execute("DELETE FROM outcome WHERE batch = ?", (number,))
        if made.is_planned:
            self._db.execute("UPDATE batch SET fresh = 0, removed = 0 WHERE number = ?", (number,))
        self._record(made.outcomes)

    def amend(self, plan: Plan, *, now: float) -> None:
        with self._atomic(now):
            self._db.execute("UPDATE run SET plan = ?", (_encode(plan).decode(),))

    def learn(self, *, now: float, account: Any = None, rate: Any = None, pulse: Pulse | None = None) -> None:
        said = None if pulse is None else msgspec.json.encode(pulse).decode()
        with self._atomic(now):
            self._db.execute(
                "UPDATE run SET account = coalesce(account, ?), learned_rate = coalesce(?, learned_rate),"
                " pulse = coalesce(?, pulse)",
                (account, rate, said),
            )

    def finish(self, exit_code: int | None, *, now: float) -> None:
        with self._atomic(now):
            self._db.execute(
                "UPDATE run SET exit_code = ?, finished_at ="
                " CASE WHEN ? IS NULL THEN NULL ELSE coalesce(finished_at, ?) END",
                (exit_code, exit_code, now),
            )
