"""State files are used only where nobody else can have a hand in them."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest

from dispatcher.checkpoint import files
from dispatcher.checkpoint.lease import Locks, is_locked, lock_paths
from dispatcher.checkpoint.registry import Registry
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.errors import CheckpointCorrupt, CheckpointIo

if TYPE_CHECKING:
    from pathlib import Path

SOMEBODY = os.geteuid() + 1


def refused(check: object, *arguments: object, **options: object) -> CheckpointIo:
    """Return the error; it is one line."""
    with pytest.raises(CheckpointIo) as raised:
        check(*arguments, **options)  # type: ignore[operator]
    assert "\n" not in raised.value.one_line()
    assert raised.value.exit_code == 4
    return raised.value


def obey(error: CheckpointIo) -> None:
    """Run the command that the hint ends with."""
    assert error.hint is not None
    subprocess.run(shlex.split(error.hint.rpartition(": ")[2]), check=True)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    """Also a sticky one: a record could be put there before ours is."""
    folder = tmp_path / "my state"
    folder.mkdir()
    folder.chmod(mode)
    error = refused(files.state_folder, folder)
    assert f"mode {mode:04o}" in error.message
    obey(error)
    files.state_folder(folder)


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    """The hint makes it usable."""
    path = tmp_path / "my night.db"
    path.touch()
    path.chmod(mode)
    error = refused(files.check_regular, path)
    assert str(path) in error.message
    obey(error)
    files.check_regular(path)


def test_what_is_somebody_elses_is_refused(tmp_path: Path) -> None:
    """Files and folders; the hint says who has it, and how to make it ours."""
    path = tmp_path / "night.db"
    path.touch(mode=0o600)
    for check in (files.check_regular, files.check_database):
        error = refused(check, path, uid=SOMEBODY)
        assert f"belongs to user {os.geteuid()}, not to you ({SOMEBODY})" in error.message
        assert f"chown {SOMEBODY} {path}" in str(error.hint)
    assert "chown" in str(refused(files.check_folder, tmp_path, uid=SOMEBODY).hint)


def test_a_link_to_the_folder_may_be_ours(tmp_path: Path) -> None:
    """State on another disk is common; what the link leads to is checked all the same."""
    real, link = tmp_path / "disk", tmp_path / "state"
    real.mkdir(mode=0o700)
    link.symlink_to(real)
    files.state_folder(link)
    real.chmod(0o777)
    refused(files.state_folder, link)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a link away")
def test_a_link_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    """Whoever has the link chooses the folder."""
    real, link = tmp_path / "disk", tmp_path / "state"
    real.mkdir(mode=0o700)
    link.symlink_to(real)
    os.chown(link, SOMEBODY, -1, follow_symlinks=False)
    assert "chown -h" in str(refused(files.check_folder, link).hint)


def test_what_sqlite_opens_beside_a_checkpoint_is_checked(tmp_path: Path) -> None:
    """A -wal that somebody put there would be read as ours."""
    path = tmp_path / "night.db"
    SqliteCheckpoint.open(path, create=True).close()
    other = tmp_path / "other"
    other.write_text("")
    for end in ("-wal", "-shm", "-journal"):
        beside = tmp_path / f"night.db{end}"
        beside.unlink(missing_ok=True)
        beside.symlink_to(other)
        assert "symbolic link" in refused(SqliteCheckpoint.open, path).message
        beside.unlink()
    SqliteCheckpoint.open(path).close()


def test_a_checkpoint_anywhere_but_where_everybody_writes(tmp_path: Path) -> None:
    """A named checkpoint may lie in a group's folder or in a sticky one, not where anybody can replace it."""
    folder = tmp_path / "shared"
    folder.mkdir()
    for mode in (0o775, 0o1777):
        folder.chmod(mode)
        SqliteCheckpoint.open(folder / "night.db", create=True).close()
    folder.chmod(0o777)
    obey(refused(SqliteCheckpoint.open, folder / "night.db"))
    SqliteCheckpoint.open(folder / "night.db").close()


@pytest.mark.parametrize("name", ["locks", "registry", "."])
def test_every_folder_of_the_state_is_checked(tmp_path: Path, name: str) -> None:
    """Before anything in it is read or made."""
    state = tmp_path / "state"
    for one in (state, state / "locks", state / "registry"):
        one.mkdir(mode=0o700)
    (state / name).chmod(0o777)
    before = sorted(state.rglob("*"))
    if name != "locks":
        refused(Registry(state).get, "night")
    if name != "registry":
        refused(Locks(lock_paths(state / "night.db", state, "night")).take)
    assert sorted(state.rglob("*")) == before


def test_a_lock_file_is_not_followed(tmp_path: Path) -> None:
    """The process id would be written over somebody's file."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    first, second = lock_paths(tmp_path / "night.db", tmp_path / "state", "night")
    second.symlink_to(victim)
    assert "symbolic link" in refused(Locks([first, second]).take).message
    assert victim.read_text() == "precious"
    assert not is_locked(second)


def test_a_fifo_in_the_place_of_a_lock_holds_nobody_up(tmp_path: Path) -> None:
    """Looking at it would otherwise wait for a writer."""
    os.mkfifo(tmp_path / "night.lock")
    assert not is_locked(tmp_path / "night.lock")


def test_a_record_is_not_followed(tmp_path: Path) -> None:
    """Neither for reading nor for writing."""
    (tmp_path / "registry").mkdir(mode=0o700)
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "registry" / "night.json").symlink_to(tmp_path / "victim")
    refused(Registry(tmp_path).get, "night")
    files.write_private(tmp_path / "registry" / "night.json", b"{}")
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_limit_on_the_size_of_files_is_named() -> None:
    """EFBIG is no full disk: freeing space would not help."""
    error = files.io_error("/x/night.db", OSError(27, "File too large"))
    assert error.exit_code == 4
    assert error.one_line().startswith("I/O error on /x/night.db: ")
    assert "ulimit -f" in error.one_line()


@pytest.mark.parametrize("run", ["../../x", "/etc/x", "..", "", "-x", "a\nb"])
def test_a_run_id_never_leads_out_of_the_folder(tmp_path: Path, run: str) -> None:
    """A checkpoint from elsewhere may name its run as it likes."""
    with pytest.raises(CheckpointCorrupt, match="is no run id"):
        Registry(tmp_path).get(run)
    with pytest.raises(CheckpointCorrupt, match="is no run id"):
        lock_paths(tmp_path / "night.db", tmp_path, run)
