"""What a checkpoint says: receipts, counts and standing. Queries only; there is no second truth."""

from __future__ import annotations

import csv
import datetime
import io
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from dispatcher.checkpoint.reading import SqliteReader
from dispatcher.checkpoint.registry import Registry
from dispatcher.errors import CheckpointError
from dispatcher.locate import lost_commits, stored_plan
from dispatcher.model import BatchState, Receipt
from dispatcher.plan import ClientTokens
from dispatcher.redact import inert

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

    from dispatcher.checkpoint.base import Row, Stored

CLASS_OF = {
    BatchState.PLANNED: "pending",
    BatchState.SENT: "in_doubt",
    BatchState.IN_DOUBT: "in_doubt",
    BatchState.ACCEPTED: "accepted",
    BatchState.REJECTED: "rejected",
    BatchState.CANCELLED: "cancelled",
}
"""A batch's state as users see it; a split batch stands for no device."""
COLUMNS = tuple(item.name for item in fields(Receipt))
_shared = attrgetter(*(name for name in COLUMNS if name != "device_id"))
FORMATS = ("text", "json", "jsonl", "csv")
_DANGEROUS = ("=", "+", "-", "@", "'", "\t", "\r")


def receipts(checkpoint: Stored, *, states: Collection[str] | None = None) -> Iterator[Receipt]:
    """Yield one receipt per device of the plan, by batch and then by id, with flat memory."""
    plan = stored_plan(checkpoint)
    tokens = ClientTokens(plan)
    account = plan.account or checkpoint.standing().account
    for row in checkpoint.rows():
        state = CLASS_OF[BatchState(row.state)]
        if states is None or state in states:
            yield from _of_batch(row, state, plan.region, account, tokens.of(row.targets))


def _of_batch(row: Row, state: str, region: str, account: str | None, token: str) -> Iterator[Receipt]:
    shared: dict[str, Any] = {
        "region": region,
        "account": account,
        "wave": row.wave,
        "batch": row.number,
        "client_token": token,
        "task_id": row.task_id,
        "task_arn": row.task_arn,
        "state": state,
        "error_code": row.code,
        "error_message": row.message,
        "attempts": row.attempts,
        "first_sent_at": instant(row.first_sent_at),
        "settled_at": instant(row.settled_at) if state not in ("pending", "in_doubt") else None,
    }
    return (Receipt(device_id=device, **shared) for device in row.targets)


def instant(unix_s: float | None) -> str | None:
    """Render Unix seconds as RFC 3339 in UTC, with milliseconds."""
    if unix_s is None:
        return None
    when = datetime.datetime.fromtimestamp(unix_s, datetime.UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_lost_commits(path: Path, state_dir: Path) -> str | None:
    """Return what to tell whoever reads this checkpoint if the state folder knows of later commits."""
    reader = open_reader(path)
    try:
        plan = reader.plan()
        if plan is None:
            return None
        try:
            record = Registry(state_dir).get(plan.run)
        except CheckpointError as error:
            return f"nobody can tell whether {path} is the newest state of its run: {error}"
        return lost_commits(plan.run, path, reader, record)
    finally:
        reader.close()


def open_reader(path: Path) -> SqliteReader:
    """Open a checkpoint for reading, beside a live run too."""
    return SqliteReader.open(path, read_only=True)


def render(rows: Iterable[Receipt], form: str, write: Callable[[str], object]) -> int:
    """Write receipts as `form`, one of `FORMATS`; return how many there were."""
    return {"text": _text, "json": _json, "jsonl": _jsonl, "csv": _csv}[form](rows, write)


def _jsonl(rows: Iterable[Receipt], write: Callable[[str], object]) -> int:
    encode = msgspec.json.Encoder().encode
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007
        write(encode(row).decode() + "\n")
    return count


def _json(rows: Iterable[Receipt], write: Callable[[str], object]) -> int:
    encode = msgspec.json.Encoder().encode
    count = 0
    write("[")
    for count, row in enumerate(rows, 1):
        write(("\n" if count == 1 else ",\n") + encode(row).decode())
    write("\n]\n")
    return count


def _csv(rows: Iterable[Receipt], write: Callable[[str], object]) -> int:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    count = 0
    last: tuple[object, ...] = ()
    cells: list[object] = []
    for count, row in enumerate(rows, 1):
        shared = _shared(row)
        if shared != last:  # the devices of a batch differ in their id alone
            last, cells = shared, [_cell(value) for value in shared]
        writer.writerow([_cell(row.device_id), *cells])
        if count % 1_000 == 0:
            write(buffer.getvalue())
            buffer.seek(0)
            buffer.truncate()
    write(buffer.getvalue())
    return count


def _cell(value: object) -> object:
    """Make a cell inert: a spreadsheet would run what begins like a formula."""
    if isinstance(value, str):
        value = inert(value)
        return f"'{value}" if value.startswith(_DANGEROUS) else value
    return value


def _text(rows: Iterable[Receipt], write: Callable[[str], object]) -> int:
    count = 0
    write(f"{'device':<24} {'state':<9} {'batch':>7} {'task':<20} detail\n")
    for count, row in enumerate(rows, 1):  # noqa: B007
        detail = ": ".join(part for part in (row.error_code, row.error_message) if part)
        start = f"{inert(row.device_id):<24} {row.state:<9} {row.batch:>7} {inert(row.task_id or '-'):<20}"
        write(f"{start} {inert(detail)}".rstrip() + "\n")
    return count
