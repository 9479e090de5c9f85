"""One runner per run: locks between processes, a holder row between hosts."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from dispatcher.checkpoint.base import Standing
from dispatcher.checkpoint.files import network_file_system
from dispatcher.checkpoint.lease import Holder, Locks, check_holder, is_locked, lock_paths, this_holder
from dispatcher.errors import CheckpointCorrupt, CheckpointIo, CheckpointLeased

if TYPE_CHECKING:
    from pathlib import Path

_HOLD = """
import sys
from pathlib import Path
from dispatcher.checkpoint.lease import Locks
locks = Locks([Path(path) for path in sys.argv[1:]])
locks.take()
print("held", flush=True)
sys.stdin.read()
"""


def holding(*paths: Path) -> subprocess.Popen[str]:
    """Start another process that holds the locks until its input ends or it is killed."""
    command = [sys.executable, "-c", _HOLD, *map(str, paths)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_live_process_excludes_another_until_it_dies(tmp_path: Path) -> None:
    """The second is told who holds the run; the death of the holder, even by SIGKILL, frees it at once."""
    run, beside = lock_paths(tmp_path / "run.db", tmp_path / "state", "nightly")
    with holding(run, beside) as other:
        locks = Locks([run, beside])
        with pytest.raises(CheckpointLeased, match=f"process {other.pid}") as raised:
            locks.take()
        assert raised.value.hint
        assert is_locked(run)
        assert is_locked(beside)
        other.kill()
    assert not is_locked(run)
    locks.take()
    assert is_locked(beside)
    locks.release()
    assert not is_locked(beside)


def test_two_paths_of_one_run_are_one_lock(tmp_path: Path) -> None:
    """Another checkpoint path does not make it another run, and a failed take keeps no lock."""
    state = tmp_path / "state"
    held, wanted = (lock_paths(tmp_path / f"{name}.db", state, "nightly") for name in "ab")
    with holding(*held) as other:
        with pytest.raises(CheckpointLeased):
            Locks(wanted[::-1]).take()
        assert not is_locked(wanted[1])
        other.kill()


def test_lock_files_are_private_and_stay(tmp_path: Path) -> None:
    """They are 0600, hold the process id, and are not removed by a release."""
    paths = lock_paths(tmp_path / "run.db", tmp_path / "state", "nightly")
    locks = Locks(paths)
    locks.take()
    locks.release()
    for path in paths:
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_text() == f"{os.getpid()}\n"
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_lock_file_is_never_a_link(tmp_path: Path) -> None:
    """A link in its place is refused: it could lock or truncate another file."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(CheckpointIo, match="symbolic link"):
        Locks([tmp_path / "run.lock"]).take()
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_missing_lock_is_free(tmp_path: Path) -> None:
    """A run that was never locked is not locked, and asking makes no file."""
    assert not is_locked(tmp_path / "run.lock")
    assert list(tmp_path.iterdir()) == []


def test_a_local_folder_is_no_network(tmp_path: Path) -> None:
    """Where the tests keep their files, locks can be trusted."""
    assert network_file_system(tmp_path) is None


HERE = Holder(host="here", machine="m1", boot="b1", pid=1, since=0.0)


def standing(holder: Holder | None) -> Standing:
    text = None if holder is None else msgspec.json.encode(holder).decode()
    return Standing(3, text, 1000.0, 0, 0, None, None, None, None)


@pytest.mark.parametrize(
    "holder",
    [
        None,
        HERE,
        Holder(host="renamed", machine="m1", boot="b0", pid=2, since=0.0),
        Holder(host="renamed", machine="m0", boot="b1", pid=2, since=0.0),
    ],
)
def test_a_dead_holder_of_this_machine_is_taken_over(holder: Holder | None) -> None:
    """Same machine or same boot, whatever the host name: its locks are gone, so it is dead."""
    assert check_holder(standing(holder), HERE, take_over=False, in_doubt=0) is None


@pytest.mark.parametrize(
    "other",
    [
        Holder(host="here", machine="m2", boot="b2", pid=77, since=0.0),
        Holder(host="here", machine=None, boot=None, pid=77, since=0.0),
    ],
)
def test_a_foreign_holder_needs_a_decision(other: Holder) -> None:
    """It is refused with its heartbeat and the doubt, or taken over with the same said as a warning."""
    with pytest.raises(CheckpointLeased, match=r"process 77.* 30 devices are in doubt") as raised:
        check_holder(standing(other), HERE, take_over=False, in_doubt=30)
    assert raised.value.hint is not None
    assert "--take-over" in raised.value.hint
    warning = check_holder(standing(other), HERE, take_over=True, in_doubt=30)
    assert warning is not None
    assert "last heartbeat" in warning


def test_two_machines_without_ids_are_not_the_same() -> None:
    """What is not known never counts as equal."""
    nobody = Holder(host="x", machine=None, boot=None, pid=1, since=0.0)
    assert not nobody.is_this_machine(nobody)
    assert this_holder().is_this_machine(this_holder())


def test_an_unreadable_holder_is_corrupt() -> None:
    """A holder row that is none of ours is explained, not a traceback."""
    broken = standing(None)._replace(holder="{")
    with pytest.raises(CheckpointCorrupt, match="holder"):
        check_holder(broken, HERE, take_over=False, in_doubt=0)
