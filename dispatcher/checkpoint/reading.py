"""The reading half of a checkpoint file: what `status`, `report` and `runs` need, and nothing that writes.

A reader opened read-only sees a consistent snapshot beside a live run, and leaves the file as it was.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

import apsw
import msgspec

from dispatcher.checkpoint.base import TOKEN_VERSION, Plan, Pulse, Row, Standing
from dispatcher.checkpoint.files import DAMAGED_HINT, check_database, create_private, explained, wrong_sum
from dispatcher.checkpoint.pages import SUM_BYTES, check_whole, check_writable, connect, has_sums
from dispatcher.checkpoint.statements import load_queries, load_schema
from dispatcher.errors import CheckpointCorrupt, CheckpointError, CheckpointIo
from dispatcher.forking import disown_in_children
from dispatcher.model import Batch, BatchState, Counts, Doubt, Lane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APPLICATION_ID = 0x534E4F57
"""`SNOW`: marks our files for file(1) and for `SqliteReader.open`."""
SCHEMA_VERSION = 3
"""3 gives every page a sum, which a program that does not keep them would spoil (docs/adr/0026)."""
READABLE = (2, 3)
"""2 has the same tables and no sums; format 1 was never released."""
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
        self._connection: apsw.Connection | None = connection
        self._epoch = 0
        disown_in_children(self)

    @property
    def _db(self) -> apsw.Connection:
        if self._connection is None:
            raise CheckpointIo(
                f"{self.path} was opened in another process, before a fork", hint="open it where it is used"
            )
        return self._connection

    def disown(self) -> None:
        """In a forked child: refuse all use from now on, and never close it, at the very end either."""
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
        self._connection = None

    @classmethod
    def open(
        cls, path: Path, *, create: bool = False, read_only: bool = False, any_sums: bool = False
    ) -> Self:
        """Open the checkpoint at `path`; with `any_sums` whatever sums its pages have.

        Raises `CheckpointIo` where it is missing or cannot be written, `CheckpointCorrupt` where it is
        damaged or foreign.
        """
        if create:
            create_private(path)
        check_database(path)
        flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE
        with explained(path):
            connection = connect(path, flags=flags)
            try:
                connection.set_busy_timeout(BUSY_TIMEOUT_MS)
                if any_sums:
                    connection.execute("PRAGMA checksum_verification=OFF")
                _check_format(path, connection, read_only=read_only)
                check_whole(path, connection, read_only=read_only)
                if not read_only:
                    check_writable(path, connection)
                if not read_only and path.stat().st_size <= QUICK_CHECK_BYTES:
                    _check_pages(path, connection)
            except BaseException:
                connection.close(True)
                raise
        return cls(path, connection)

    def close(self) -> None:
        if self._connection is None:  # the parent's
            return
        with explained(self.path):
            self._connection.close()

    def check_pages(self, *, thoroughly: bool = False) -> None:
        """Raise `CheckpointCorrupt` where any page of the file is damaged; or an index does not fit, too."""
        with explained(self.path):
            _check_pages(self.path, self._db, "integrity_check" if thoroughly else "quick_check")

    def copy_to(self, target: Path) -> None:
        """Fill the empty file `target` with this moment's pages; it is durable and has no -wal."""
        with explained(target):
            copy = connect(target)
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
            plan = msgspec.json.decode(text, type=Plan)
        except msgspec.DecodeError as error:
            raise CheckpointCorrupt(f"{self.path} holds a plan that cannot be read ({error})") from error
        if plan.token_version != TOKEN_VERSION:
            raise CheckpointError(
                f"{self.path} was planned with client tokens of version {plan.token_version},"
                f" this program makes version {TOKEN_VERSION}",
                hint="use the version that planned it: other tokens would command devices again",
            )
        return plan

    @contextlib.contextmanager
    def _decoding(self) -> Iterator[None]:
        """Explain values that no program of ours wrote, too: a file without sums may hold any."""
        with explained(self.path):
            try:
                yield
            except (TypeError, ValueError, AttributeError, OverflowError, msgspec.MsgspecError) as error:
                raise CheckpointCorrupt(
                    f"{self.path} is damaged (a row cannot be read: {error})", hint=DAMAGED_HINT
                ) from error

    def lanes(self) -> list[Lane]:
        with self._decoding():
            rows = self._all("SELECT lane, region, account FROM lane ORDER BY lane")
            checked = msgspec.convert(rows, list[tuple[int, str, str | None]])
        return [Lane(index=lane, region=region, account=account) for lane, region, account in checked]

    def standing(self) -> Standing:
        with self._decoding():
            rows = self._all(
                "SELECT epoch, holder, heartbeat_at, claims, mark, account, learned_rate, finished_at,"
                " exit_code, pulse FROM run WHERE id = 1"
            )
            if not rows:
                return Standing(0, None, 0.0, 0, 0, None, None, None, None)
            return msgspec.convert((*rows[0][:-1], _pulse(rows[0][-1])), Standing)

    def counts(self) -> Counts:
        with self._decoding(), self._db:  # one snapshot, also beside a live run
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
        with self._decoding():
            rows = self._all(QUERIES["doubt_kinds"], {"open_since": open_since})
            return {kind: (int(devices), float(first_sent_at)) for kind, devices, first_sent_at in rows}

    def doubts(self, *, after: int, limit: int) -> list[Doubt]:
        with self._decoding():
            rows = self._all(QUERIES["doubts"], {"after": after, "limit": limit, "epoch": self._epoch})
            return [
                Doubt(Batch(n, lane, wave, tuple(targets.split(" ")), parent, bool(fresh)), *rest)
                for n, lane, wave, targets, parent, fresh, *rest in rows
            ]

    def last_number(self) -> int:
        return int(self._value(QUERIES["last_number"]))

    def highest_outcome(self, up_to: int) -> int:
        """Return the highest batch up to `up_to` that has an outcome, 0 without one."""
        return int(self._value_of("highest_outcome", {"up_to": up_to}))

    def rows(self, *, after: int = 0) -> Iterator[Row]:
        with self._decoding():
            row: Any
            for row in self._db.execute(QUERIES["rows"], {"after": after}):
                targets, state, claimed = row[3], row[5], row[13]
                state = BatchState(state or ("sent" if claimed else "planned"))
                ids = tuple(targets.split(" "))
                rest: Any = (state, row[6] or 0, *row[7:13], row[14])
                yield msgspec.convert((row[0], row[1], row[2], ids, bool(row[4]), *rest), Row)


def _pulse(said: str | None) -> Pulse | None:
    """Read a pulse; one that cannot be read costs a line of `status` and nothing else."""
    if said is None:
        return None
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(said, type=Pulse)
    return None


def _check_pages(path: Path, connection: apsw.Connection, check: str = "quick_check") -> None:
    found = connection.execute(f"PRAGMA {check}(1)").get
    if str(found).endswith(f"error code={apsw.SQLITE_IOERR_DATA}"):
        raise wrong_sum(path)
    if found != "ok":
        raise CheckpointCorrupt(
            f"{path} is damaged ({' '.join(str(found).split())[:120]})", hint=DAMAGED_HINT
        )


def _check_format(path: Path, connection: apsw.Connection, *, read_only: bool) -> None:
    """Accept our own files and, for writing, an empty one; refuse all else before touching it."""
    application = connection.execute("PRAGMA application_id").get
    version = connection.execute("PRAGMA user_version").get
    empty = connection.execute("SELECT count(*) FROM sqlite_schema").get == 0
    if empty and application == 0 and not read_only:
        if has_sums(connection):
            connection.reserve_bytes("main", SUM_BYTES)
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute(
            f"BEGIN IMMEDIATE; {load_schema()}; PRAGMA application_id={APPLICATION_ID};"
            f" PRAGMA user_version={SCHEMA_VERSION}; COMMIT"
        )
    elif application != APPLICATION_ID:
        raise CheckpointCorrupt(
            f"{path} is not a dispatcher checkpoint",
            hint="give another --checkpoint; the file was not touched",
        )
    elif version not in READABLE:
        raise CheckpointCorrupt(
            f"{path} has format {version}, this program reads {' and '.join(map(str, READABLE))}",
            hint="use the version that wrote it",
        )
    connection.execute("PRAGMA synchronous=FULL")
