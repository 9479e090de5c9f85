"""The reading half of a checkpoint file: what `status`, `report` and `runs` need, and nothing that writes.

A reader opened read-only sees a consistent snapshot beside a live run, and leaves the file as it was.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

import apsw
import msgspec

from dispatcher.checkpoint.base import Plan, Pulse, Row, Standing
from dispatcher.checkpoint.files import check_database, create_private, explained
from dispatcher.checkpoint.statements import load_queries, load_schema
from dispatcher.errors import CheckpointCorrupt
from dispatcher.model import Batch, Counts, Doubt, Lane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APPLICATION_ID = 0x534E4F57
"""`SNOW`: marks our files for file(1) and for `SqliteReader.open`."""
SCHEMA_VERSION = 2
"""2 added `pulse`; format 1 was never released."""
QUICK_CHECK_BYTES = 64 << 20
"""Files up to here have their pages checked before a run goes on: 0.2 s. A larger one would make resuming
slow, and its damage is found when it is read, before anything is sent from the damaged page."""

BUSY_TIMEOUT_MS = 10_000
"""How long one transaction of another program, a backup's or a reader's recovery, is waited for."""

QUERIES = load_queries()


class SqliteReader:
    """A checkpoint file, read. Not thread-safe: one caller at a time, from any thread."""

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        self.path = path
        self._db = connection
        self._epoch = 0

    @classmethod
    def open(cls, path: Path, *, create: bool = False, read_only: bool = False) -> Self:
        """Open the checkpoint at `path`.

        Raises `CheckpointIo` where it is missing or cannot be written, `CheckpointCorrupt` where it is
        damaged or foreign.
        """
        if create:
            create_private(path)
        check_database(path)
        flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE
        with explained(path):
            connection = apsw.Connection(str(path), flags=flags)
            try:
                connection.set_busy_timeout(BUSY_TIMEOUT_MS)
                _check_format(path, connection, read_only=read_only)
                if not read_only and path.stat().st_size <= QUICK_CHECK_BYTES:
                    _check_pages(path, connection)
            except BaseException:
                connection.close(True)
                raise
        return cls(path, connection)

    def close(self) -> None:
        with explained(self.path):
            self._db.close()

    def check_pages(self) -> None:
        """Raise `CheckpointCorrupt` where any page of the file is damaged."""
        with explained(self.path):
            _check_pages(self.path, self._db)

    def copy_to(self, target: Path) -> None:
        """Fill the empty file `target` with this moment's pages; it is durable and has no -wal."""
        with explained(target):
            copy = apsw.Connection(str(target))
            try:
                copy.set_busy_timeout(BUSY_TIMEOUT_MS)
                with copy.backup("main", self._db, "main") as backup:
                    backup.step(-1)  # all at once: later steps would begin anew after every commit
                copy.execute("PRAGMA journal_mode=DELETE")
            finally:
                copy.close()

    def _all(self, sql: str, bindings: Any = ()) -> list[Any]:
        """Run a query and return its rows; their types are the schema's, which mypy cannot know."""
        return self._db.execute(sql, bindings).fetchall()

    def _value_of(self, name: str, bindings: dict[str, Any]) -> Any:
        with explained(self.path):
            return self._all(QUERIES[name], bindings)[0][0]

    def _value(self, sql: str, *bindings: Any) -> Any:
        with explained(self.path):
            return self._db.execute(sql, bindings).get

    def plan(self) -> Plan | None:
        text = self._value("SELECT plan FROM run WHERE id = 1")
        if text is None:
            return None
        try:
            return msgspec.json.decode(text, type=Plan)
        except msgspec.DecodeError as error:
            raise CheckpointCorrupt(f"{self.path} holds a plan that cannot be read ({error})") from error

    def lanes(self) -> list[Lane]:
        with explained(self.path):
            rows = self._all("SELECT lane, region, account FROM lane ORDER BY lane")
        return [Lane(index=lane, region=region, account=account) for lane, region, account in rows]

    def standing(self) -> Standing:
        with explained(self.path):
            rows = self._all(
                "SELECT epoch, holder, heartbeat_at, claims, mark, account, learned_rate, finished_at,"
                " exit_code, pulse FROM run WHERE id = 1"
            )
        if not rows:
            return Standing(0, None, 0.0, 0, 0, None, None, None, None)
        return Standing(*rows[0])._replace(pulse=_pulse(rows[0][-1]))

    def counts(self) -> Counts:
        with self._snapshot():
            by_state = {
                state: (batches, devices) for state, batches, devices in self._all(QUERIES["outcome_counts"])
            }
            batches, devices = self._all(QUERIES["batch_counts"])[0]
            sent = self._all(QUERIES["unsettled_claimed"])[0][0]
        split, split_devices = by_state.get("split", (0, 0))
        of = {state: devices for state, (_, devices) in by_state.items()}
        in_doubt = of.get("in_doubt", 0) + sent
        settled = of.get("accepted", 0) + of.get("rejected", 0) + of.get("cancelled", 0)
        total = devices - split_devices
        return Counts(
            devices=total,
            accepted=of.get("accepted", 0),
            rejected=of.get("rejected", 0),
            in_doubt=in_doubt,
            pending=total - settled - in_doubt,
            cancelled=of.get("cancelled", 0),
            batches=batches - split,
            split=split,
        )

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Read one state throughout, also beside a live run."""
        with explained(self.path):
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                if self._db.in_transaction:  # an I/O error has ended it already
                    self._db.execute("COMMIT")

    def removed_rejected(self) -> int:
        return int(self._value(QUERIES["removed_rejected"]))

    def calls_per_s(self, now: float, *, window_s: float = 10.0) -> float:
        """Return batches settled per second in the `window_s` before `now`, for a live run's status."""
        return float(self._value_of("settled_since", {"since": now - window_s})) / window_s

    def newest_doubt(self) -> float | None:
        found = self._value(QUERIES["newest_doubt"])
        return None if found is None else float(found)

    def doubt_kinds(self, open_since: float) -> dict[str, tuple[int, float]]:
        """Return devices in doubt, and their earliest first sending, by what may become of them.

        `resendable`: first sent after `open_since`, so inside the token window; `expired`: before it;
        `held`: only a reconcile may settle them.
        """
        with explained(self.path):
            rows = self._all(QUERIES["doubt_kinds"], {"open_since": open_since})
        return {kind: (devices, first_sent_at) for kind, devices, first_sent_at in rows}

    def doubts(self, *, after: int, limit: int) -> list[Doubt]:
        with explained(self.path):
            rows = self._all(QUERIES["doubts"], {"after": after, "limit": limit, "epoch": self._epoch})
        return [
            Doubt(Batch(n, lane, wave, tuple(targets.split(" ")), parent, bool(fresh)), *rest)
            for n, lane, wave, targets, parent, fresh, *rest in rows
        ]

    def rows(self) -> Iterator[Row]:
        with explained(self.path):
            row: Any
            for row in self._db.execute(QUERIES["rows"], {"after": 0}):
                targets, state, claimed = row[3], row[5], row[13]
                state = state or ("sent" if claimed else "planned")
                ids = tuple(targets.split(" "))
                rest: Any = (state, row[6] or 0, *row[7:13], row[14])
                yield Row(row[0], row[1], row[2], ids, bool(row[4]), *rest)


def _pulse(said: str | None) -> Pulse | None:
    """Read a pulse; one that cannot be read costs a line of `status` and nothing else."""
    if said is None:
        return None
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(said, type=Pulse)
    return None


def _check_pages(path: Path, connection: apsw.Connection) -> None:
    found = connection.execute("PRAGMA quick_check(1)").get
    if found != "ok":
        raise CheckpointCorrupt(
            f"{path} is damaged ({' '.join(str(found).split())[:120]})",
            hint="keep the file as evidence, restore a backup or give another --checkpoint",
        )


def _check_format(path: Path, connection: apsw.Connection, *, read_only: bool) -> None:
    """Accept our own files and, for writing, an empty one; refuse all else before touching it."""
    application = connection.execute("PRAGMA application_id").get
    version = connection.execute("PRAGMA user_version").get
    empty = connection.execute("SELECT count(*) FROM sqlite_schema").get == 0
    if empty and application == 0 and not read_only:
        # EXTRA: the journal's deletion is durable too. Otherwise a power loss could bring the journal of this
        # empty file back, and SQLite would roll it back into whatever checkpoint is put here by then.
        connection.execute("PRAGMA synchronous=EXTRA; PRAGMA journal_mode=DELETE")
        connection.execute(
            f"BEGIN IMMEDIATE; {load_schema()}; PRAGMA application_id={APPLICATION_ID};"
            f" PRAGMA user_version={SCHEMA_VERSION}; COMMIT"
        )
    elif application != APPLICATION_ID:
        raise CheckpointCorrupt(
            f"{path} is not a dispatcher checkpoint",
            hint="give another --checkpoint; the file was not touched",
        )
    elif version != SCHEMA_VERSION:
        raise CheckpointCorrupt(
            f"{path} has format {version}, this program reads {SCHEMA_VERSION}",
            hint="use the version that wrote it",
        )
    connection.execute("PRAGMA synchronous=FULL")
