"""The disk of the simulation keeps its own promises: what was synced stays, what was not may go."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from dispatcher.checkpoint.files import write_private
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.errors import CheckpointIo
from tests.simulation.disk import Disk, Failure, Killed


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    with made.installed():
        yield made


def _connect(disk: Disk) -> apsw.Connection:
    connection = apsw.Connection(str(disk.root / "a.db"))
    connection.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS t (n)")
    return connection


def _crash(disk: Disk, connection: apsw.Connection) -> None:
    disk.kill()
    with contextlib.suppress(apsw.Error, Killed):
        connection.close(True)
    disk.revive()


def _numbers(disk: Disk) -> list[int]:
    connection = _connect(disk)
    try:
        return [n for (n,) in connection.execute("SELECT n FROM t ORDER BY n")]
    finally:
        connection.close()


@pytest.mark.parametrize("seed", [None, *range(20)])
def test_a_power_loss_keeps_what_was_committed(disk: Disk, seed: int | None) -> None:
    """A commit with `synchronous=FULL` outlives a power loss, whatever part of the rest does."""
    connection = _connect(disk)
    for n in range(30):
        connection.execute("INSERT INTO t VALUES (?)", (n,))
        if n == 20:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    _crash(disk, connection)
    disk.power_loss(None if seed is None else random.Random(seed))
    assert _numbers(disk) == list(range(30))


def test_a_power_loss_takes_what_was_not_synced(disk: Disk) -> None:
    """With `synchronous=OFF` the same commits are gone: the book is kept, and not the files' own."""
    connection = _connect(disk)
    connection.execute("INSERT INTO t VALUES (1)")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("INSERT INTO t VALUES (2)")
    _crash(disk, connection)
    disk.power_loss()
    assert _numbers(disk) == [1]


def test_a_kill_keeps_what_was_written(disk: Disk) -> None:
    """kill -9 loses nothing that reached the kernel, and a dead process writes nothing more."""
    connection = _connect(disk)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("INSERT INTO t VALUES (1)")
    disk.kill()
    with pytest.raises(Killed):
        connection.execute("INSERT INTO t VALUES (2)")
    _crash(disk, connection)
    assert _numbers(disk) == [1]


@pytest.mark.parametrize("failure", [Failure.EIO, Failure.ENOSPC, Failure.SHORT_WRITE])
def test_any_io_of_a_commit_can_fail(disk: Disk, failure: Failure) -> None:
    """Every I/O of a commit fails in its turn, and the row is there afterwards or it is not."""
    connection = _connect(disk)
    before = len(disk.trace)
    connection.execute("INSERT INTO t VALUES (0)")
    count = len(disk.trace) - before
    assert count >= 3
    for nth in range(1, count + 1):
        disk.fail(nth, failure)
        with pytest.raises((apsw.IOError, apsw.FullError)):
            connection.execute("INSERT INTO t VALUES (1)")
        disk.heal()
    _crash(disk, connection)
    assert set(_numbers(disk)) <= {0, 1}


@pytest.mark.parametrize("failure", list(Failure))
def test_a_replaced_file_is_old_or_new(disk: Disk, failure: Failure) -> None:
    """Whichever I/O of an atomic replace fails, and after a power loss too, a file is whole."""
    path = disk.root / "record.json"
    old, new = b"old" * 300, b"new" * 300
    write_private(path, old)
    before = len(disk.trace)
    write_private(path, old)
    count = len(disk.trace) - before
    for nth in range(1, count + 1):
        for seed in (None, 1, 2, 3):
            disk.fail(nth, failure)
            with pytest.raises((CheckpointIo, Killed)):
                write_private(path, new)
            disk.heal()
            disk.revive()
            assert path.read_bytes() in (old, new)
            disk.power_loss(None if seed is None else random.Random(seed))
            assert path.read_bytes() in (old, new)
            write_private(path, old)


def test_a_replace_without_a_sync_of_its_folder_may_be_undone(disk: Disk) -> None:
    """A rename is durable with its folder and not before."""
    path = disk.root / "record"
    write_private(path, b"old")
    other = disk.root / "other"
    write_private(other, b"new")
    other.replace(path)
    disk.power_loss()
    assert (path.read_bytes(), other.read_bytes()) == (b"old", b"new")


def test_a_failed_sync_is_made_up_for_by_no_later_one(disk: Disk) -> None:
    """After EIO from fsync the kernel has dropped the pages: a later success is none for them."""
    connection = _connect(disk)
    before = len(disk.trace)
    connection.execute("INSERT INTO t VALUES (0)")
    kinds = [io.kind for io in disk.trace[before:]]
    disk.fail(kinds.index("sync") + 1, Failure.EIO)
    with pytest.raises(apsw.IOError):
        connection.execute("INSERT INTO t VALUES (1)")
    _crash(disk, connection)
    disk.power_loss()
    assert _numbers(disk) == [0]


def test_no_journal_of_a_refused_run_comes_back(disk: Disk) -> None:
    """A checkpoint that was made and removed leaves nothing that a power loss could turn on the next one."""
    path = disk.root / "sim.db"
    SqliteCheckpoint.open(path, create=True).close()
    path.unlink()
    disk.power_loss()
    assert [file.name for file in disk.root.iterdir() if "journal" in file.name] == []
