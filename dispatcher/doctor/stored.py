"""What is stored of a run, and whether it could go on from that; reading it leaves no trace."""

from __future__ import annotations

import os
import shlex
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from dispatcher.checkpoint.files import check_database, explained
from dispatcher.checkpoint.lease import check_holder, this_holder
from dispatcher.checkpoint.pages import connect
from dispatcher.checkpoint.reading import SqliteReader, _check_format
from dispatcher.checkpoint.registry import Record, Registry
from dispatcher.errors import CheckpointError, DispatcherError, PlanMismatch
from dispatcher.intent import Intent
from dispatcher.locate import binds, is_older

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.manifest import Manifest
    from dispatcher.model import Counts
    from dispatcher.settings import Resolved


@dataclass(slots=True, kw_only=True)
class Stored:
    """What checkpoint and registry know of a run."""

    run: str
    path: Path
    counts: Counts | None = None
    """None where there is no plan."""
    account: str | None = None
    binds: bool = False
    """Whether anything was accepted or may have been."""
    bytes: int = 0
    note: str | None = None
    """What a run would go on in spite of."""
    problem: DispatcherError | None = None
    """Why a run would be refused."""


def look_up(manifest: Manifest, settings: Resolved, region: str | None) -> Stored:
    """Read what is stored, and find out whether a run of `manifest` would be refused because of it."""
    run = manifest.run_id(settings.run_key)
    stored = Stored(run=run, path=settings.checkpoint_of(run))
    try:
        if os.path.lexists(stored.path) and (not stored.path.is_file() or stored.path.stat().st_size):
            _read(stored, manifest, settings, region)
        if stored.counts is None:
            _compare(stored, settings, is_old=lambda _: True)
    except DispatcherError as error:
        stored.problem = error
    return stored


def _read(stored: Stored, manifest: Manifest, settings: Resolved, region: str | None) -> None:
    reader = _reader(stored.path)
    try:
        plan, standing = reader.plan(), reader.standing()
        if plan is None:
            return
        stored.counts, stored.binds = reader.counts(), binds(reader)
        _compare(stored, settings, is_old=lambda record: is_older(reader, plan, record))
    finally:
        reader.close()
    stored.account = standing.account or plan.account
    stored.bytes = stored.path.stat().st_size
    if plan.run != stored.run:
        raise PlanMismatch(
            f"{stored.path} belongs to run {plan.run}, not to {stored.run}",
            hint="give this run its own --checkpoint",
        )
    if stored.binds and region is not None:
        Intent.of(manifest, settings, region).check_same(plan)
    taken = check_holder(
        standing, this_holder(), take_over=settings.take_over, in_doubt=stored.counts.in_doubt
    )
    stored.note = taken or stored.note


def _reader(path: Path) -> SqliteReader:
    """Open a checkpoint without a trace: beside a closed one, a reader would leave -wal and -shm behind."""
    if path.with_name(f"{path.name}-wal").exists():
        return SqliteReader.open(path, read_only=True)
    check_database(path)
    with explained(path):
        name = f"file:{urllib.parse.quote(str(path))}?immutable=1"
        connection = connect(name, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        try:
            _check_format(path, connection, read_only=True)
        except BaseException:
            connection.close(True)
            raise
    return SqliteReader(path, connection)


def _compare(stored: Stored, settings: Resolved, *, is_old: Callable[[Record], bool]) -> None:
    """Tell where the registry remembers more than is here: the file is gone, elsewhere, or an old copy."""
    record = Registry(settings.state_dir).get(stored.run)
    if record is None or record.first_sent_at is None or not is_old(record):
        return
    last = Path(record.checkpoint)
    if last != stored.path and last.exists():
        raise CheckpointError(
            f"run {stored.run} has its checkpoint at {last}",
            hint=f"give --checkpoint {shlex.quote(str(last))}",
        )
    what = "is gone" if stored.counts is None else "is older than what was sent since"
    stored.note = (
        f"{stored.path} {what}: put the last one back, else the run rebuilds it if client tokens still hold,"
        " or refuses"
    )
