"""Every way in which a state file can fail has its sentence, its class, and what to do."""

from __future__ import annotations

import errno
import re
from importlib import resources
from pathlib import Path

import apsw
import pytest

from dispatcher.checkpoint import files, lease
from dispatcher.checkpoint.backup import back_up
from dispatcher.checkpoint.files import explained, io_error, network_file_system, private_folder
from dispatcher.checkpoint.lease import Locks, this_holder
from dispatcher.checkpoint.memory import MemoryCheckpoint
from dispatcher.checkpoint.registry import Registry
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.errors import CheckpointCorrupt, CheckpointError, CheckpointIo, CheckpointLeased, UsageError
from tests.unit.test_registry import record


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (apsw.FullError("full"), CheckpointIo, "no space left"),
        (apsw.ReadOnlyError("ro"), CheckpointIo, "read-only"),
        (apsw.CantOpenError("no"), CheckpointIo, "cannot open"),
        (apsw.NotADBError("no"), CheckpointCorrupt, "damaged or is not"),
        (apsw.CorruptError("no"), CheckpointCorrupt, "damaged or is not"),
        (apsw.BusyError("busy"), CheckpointLeased, "locked by another program"),
        (apsw.IOError("eio"), CheckpointIo, "I/O error"),
        (apsw.PermissionsError("no"), CheckpointIo, "I/O error"),
        (apsw.SQLError("no such column"), CheckpointCorrupt, "not a checkpoint of this version"),
        (apsw.ConstraintError("held"), CheckpointError, "cannot be used"),
        (apsw.NoMemError("none"), CheckpointError, "cannot be used"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), CheckpointCorrupt, "damaged"),
        (OSError(errno.EIO, "Input/output error"), CheckpointIo, "cannot use"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_goes_wrong_is_explained(raised: Exception, kind: type[CheckpointError], words: str) -> None:
    """SQLite's and the system's errors leave as ours, exit 4, and name the file."""
    with pytest.raises(kind, match=words) as found, explained(Path("/state/run.db")):
        raise raised
    assert "/state/run.db" in str(found.value)
    assert found.value.exit_code == 4


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EFBIG, "no file of this process may grow so large"),
        (errno.EROFS, "cannot write"),
        (errno.EACCES, "cannot write"),
        (errno.ELOOP, "symbolic link"),
        (errno.EMFILE, "cannot use"),
    ],
)
def test_what_the_system_says_is_explained(number: int, words: str, tmp_path: Path) -> None:
    """Each errno that an operator can do something about has a hint for it."""
    error = io_error(tmp_path / "run.db", OSError(number, "words of the system"))
    assert words in str(error)
    assert error.hint


def test_folders_are_made_private_all_the_way(tmp_path: Path) -> None:
    """Those that are missing above, too, whatever the umask."""
    made = private_folder(tmp_path / "a" / "b" / "c")
    for folder in (made, made.parent, made.parent.parent):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_statements_have_names_of_their_own() -> None:
    """A name that came twice would hide the first statement."""
    text = resources.files("dispatcher.checkpoint").joinpath("queries.sql").read_text(encoding="utf-8")
    names = re.findall(r"^-- name: (\S+)$", text, re.MULTILINE)
    assert len(names) == len(set(names)) == text.count("-- name:")


def test_a_system_that_does_not_tell_its_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be known of a file system it is taken for a local one."""
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(OSError("no /proc")))
    assert network_file_system(tmp_path) is None
    assert lease._first_line("/etc/machine-id") is None
    assert this_holder().machine


def test_locks_on_a_network_file_system_are_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused with the way to insist; insisted on, they are taken."""
    monkeypatch.setattr(lease, "network_file_system", lambda _path: "nfs4")
    locks = Locks([tmp_path / "run.lock"])
    with pytest.raises(CheckpointIo, match="network file system") as refused:
        locks.take()
    assert "--allow-network-fs" in (refused.value.hint or "")
    locks.take(allow_network=True)
    locks.release()


def test_a_network_mount_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The innermost mount decides."""
    table = f"1 0 0:1 / / rw - ext4 disk rw\n2 1 0:2 / {tmp_path} rw - nfs4 server:/x rw\n"
    monkeypatch.setattr(files.Path, "read_text", lambda *_, **__: table)
    assert network_file_system(tmp_path / "state") == "nfs4"
    assert network_file_system(Path("/")) is None


def test_a_record_that_goes_while_others_are_listed(tmp_path: Path) -> None:
    """Somebody tidies up: what is left is listed."""
    registry = Registry(tmp_path)
    for run in ("a", "b", "c"):
        registry.put(record(run))
    found = registry.all()
    assert next(found).run == "a"
    (tmp_path / "registry" / "b.json").unlink()
    assert [each.run for each in found] == ["c"]


def test_the_memory_store_is_fenced_too() -> None:
    """A holder that was taken over writes nothing, in either store."""
    store = MemoryCheckpoint()
    store.acquire("first", now=1.0)
    store._standing = store._standing._replace(epoch=7)
    with pytest.raises(CheckpointLeased, match="another runner"):
        store.check_lease(now=2.0)


def test_a_backup_refuses_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan, no folder, a name that is taken before or during the copy."""
    path = tmp_path / "run.db"
    SqliteCheckpoint.open(path, create=True).close()
    with pytest.raises(UsageError, match="nothing to back up"):
        back_up(path, tmp_path / "copy.db")


def test_a_backup_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is renamed, unless the name was taken meanwhile; then nothing is left of it."""
    from tests.unit.test_checkpoint_sqlite import planned

    path = tmp_path / "run.db"
    planned(path).close()

    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    def taken(_from: Path, to: Path) -> None:
        Path(to).touch()
        raise OSError(errno.EPERM, "no links here")

    def raced(_from: Path, to: Path) -> None:
        raise FileExistsError(errno.EEXIST, "somebody was faster")

    monkeypatch.setattr("os.link", refused)
    assert back_up(path, tmp_path / "copy.db").counts.devices
    for number, link in enumerate((taken, raced)):
        monkeypatch.setattr("os.link", link)
        with pytest.raises(UsageError, match="exists"):
            back_up(path, tmp_path / f"other-{number}.db")
    assert not [each for each in tmp_path.iterdir() if ".tmp" in each.name]
    with pytest.raises(UsageError, match="there is no folder"):
        back_up(path, tmp_path / "none" / "copy.db")
    with pytest.raises(UsageError, match="exists"):
        back_up(path, tmp_path / "copy.db")
