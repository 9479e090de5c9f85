"""Opening state files safely, and saying plainly why one cannot be used.

State is private: folders 0700, files 0600, never followed through a symbolic link. SQLite keeps the
checkpoint's mode for its -wal and -shm files. What is there already is used only where it belongs to this
user and nobody else may write to it: whoever can put a file there decides what is sent again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from dispatcher.errors import CheckpointCorrupt, CheckpointError, CheckpointIo, CheckpointLeased
from dispatcher.hints import again, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMPANIONS = ("-wal", "-shm", "-journal")
"""SQLite reads them as part of the database."""
DAMAGED_HINT = "keep the file as evidence, restore a backup or give another --checkpoint"
_NETWORK_TYPES = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "lustre", "fuse.sshfs", "fuse.glusterfs"}
)


@contextlib.contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """Turn SQLite's and the system's errors about `path` into ours, each with what to do."""
    try:
        yield
    except apsw.FullError as error:
        raise CheckpointIo(f"no space left for {path}", hint=_full_hint()) from error
    except apsw.ReadOnlyError as error:
        hint = f"make it and its folder writable for this user: {_shell('chmod', 'u+w', _folder(path), path)}"
        raise CheckpointIo(f"{path} is read-only", hint=hint) from error
    except apsw.CantOpenError as error:
        hint = f"check the folder and its mode: {_shell('ls', '-ld', _folder(path))}"
        raise CheckpointIo(f"cannot open {path}: {error}", hint=hint) from error
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise CheckpointCorrupt(
            f"{path} is damaged or is not a dispatcher checkpoint ({error})",
            hint=DAMAGED_HINT,
        ) from error
    except apsw.BusyError as error:
        raise CheckpointLeased(
            f"{path} is locked by another program", hint="close what has it open"
        ) from error
    except (apsw.IOError, apsw.PermissionsError, apsw.AuthError) as error:
        if getattr(error, "extendedresult", None) == apsw.SQLITE_IOERR_DATA:
            raise wrong_sum(path) from error
        raise CheckpointIo(f"I/O error on {path}: {error}", hint="check the disk before resuming") from error
    except apsw.SQLError as error:
        raise CheckpointCorrupt(f"{path} is not a checkpoint of this version ({error})") from error
    except UnicodeDecodeError as error:
        raise CheckpointCorrupt(f"{path} is damaged ({error})", hint=DAMAGED_HINT) from error
    except apsw.Error as error:  # a CHECK that held, misuse, no memory: nobody may take it for a success
        raise CheckpointError(f"{path} cannot be used ({type(error).__name__}: {error})") from error
    except OSError as error:
        raise io_error(path, error) from error


def wrong_sum(path: Path | str) -> CheckpointCorrupt:
    """Explain a page whose sum does not fit."""
    return CheckpointCorrupt(
        f"{path} is damaged (a page does not have the sum it was written with)",
        hint=f"{DAMAGED_HINT}; if another program's SQLite wrote to it, `dispatcher backup --any-sums`"
        " makes a copy to go on with",
    )


def io_error(path: Path | str, error: OSError) -> CheckpointError:
    """Explain an operating-system error about a state file."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointIo(f"no space left for {path}", hint=_full_hint())
    if error.errno == errno.EFBIG:
        return CheckpointIo(
            f"I/O error on {path}: no file of this process may grow so large",
            hint="raise the limit and run the same command again: ulimit -f unlimited",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return CheckpointIo(
            f"cannot write {path}: {os.strerror(error.errno)}",
            hint="make the folder writable for this user or give another one "
            "(--checkpoint, DISPATCHER_STATE_DIR)",
        )
    if error.errno == errno.ELOOP:
        hint = f"name the real file: {quoted(os.path.realpath(path))}"
        return CheckpointIo(f"{path} is a symbolic link", hint=hint)
    return CheckpointIo(f"cannot use {path}: {error.strerror or error}", hint="check the folder and the disk")


def _full_hint() -> str:
    same = again()
    return f"free some space, then {f'go on with: {same}' if same else 'do the same again'}; nothing is lost"


def _folder(path: Path | str) -> Path:
    return Path(path).parent


def _shell(*words: Path | str) -> str:
    return " ".join(quoted(str(word)) for word in words)


def private_folder(path: Path) -> Path:
    """Create `path`, and the folders above it, with mode 0700 where they are missing; return it."""
    with explained(path):
        if not path.is_dir():
            # mkdir's own `parents` would give the folders above the umask's mode.
            private_folder(path.parent)
            path.mkdir(mode=0o700, exist_ok=True)
    return path


def state_folder(path: Path, *, uid: int | None = None) -> Path:
    """Create `path` as `private_folder` does; raise `CheckpointIo` where others may write to it."""
    private_folder(path)
    check_folder(path, uid=uid)
    return path


def check_folder(path: Path, *, uid: int | None = None) -> None:
    """Raise where `path` exists and is not this user's, or others may write to it.

    It may be a symbolic link of this user's, or of root's. `uid` stands in for the effective user, for tests.
    """
    with explained(path):
        try:
            link, found = path.lstat(), path.stat()
        except FileNotFoundError:
            return
    if stat.S_ISLNK(link.st_mode) and link.st_uid != 0:
        _check_owner(path, link, uid, is_link=True)
    if not stat.S_ISDIR(found.st_mode):
        raise CheckpointIo(f"{path} is not a folder", hint="give another one (DISPATCHER_STATE_DIR)")
    _check_ours(path, found, uid)


def check_surroundings(path: Path) -> None:
    """Raise where anybody could replace the file `path`, wherever the operator chose to put it.

    A sticky folder (`/tmp`) is allowed: what is ours there nobody else can move away.
    """
    folder = path.parent
    with explained(folder):
        mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise CheckpointIo(
            f"everybody may write to {folder} (mode {stat.S_IMODE(mode):04o}), and could replace {path.name}",
            hint=f"make it yours alone: {_shell('chmod', 'o-w', folder)}",
        )


def create_private(path: Path) -> None:
    """Create an empty file of mode 0600, unless a regular file of that name is there already."""
    with explained(path):
        try:
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            check_regular(path)
        else:
            os.close(fd)


def check_regular(path: Path, *, uid: int | None = None) -> None:
    """Raise where `path` is no plain file, is not this user's, or others may write to it."""
    with explained(path):
        found = path.lstat()
    _check_regular(path, found, uid)


def _check_regular(path: Path, found: os.stat_result, uid: int | None) -> None:
    if stat.S_ISLNK(found.st_mode):
        hint = f"name the real file: {quoted(os.path.realpath(path))}"
        raise CheckpointIo(f"{path} is a symbolic link", hint=hint)
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointCorrupt(f"{path} is not a file", hint="give another --checkpoint")
    _check_ours(path, found, uid)


def check_database(path: Path, *, uid: int | None = None) -> None:
    """Check a checkpoint before SQLite opens it, and what SQLite would open beside it."""
    check_regular(path, uid=uid)
    check_surroundings(path)
    for end in _COMPANIONS:
        beside = path.with_name(path.name + end)
        with explained(beside):
            try:
                found = beside.lstat()
            except FileNotFoundError:
                continue
        _check_regular(beside, found, uid)


def _check_ours(path: Path, found: os.stat_result, uid: int | None) -> None:
    _check_owner(path, found, uid)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CheckpointIo(
            f"others may write to {path} (mode {stat.S_IMODE(found.st_mode):04o})",
            hint=f"if what is in it can be trusted: {_shell('chmod', 'go-w', path)}",
        )


def _check_owner(path: Path, found: os.stat_result, uid: int | None, *, is_link: bool = False) -> None:
    mine = os.geteuid() if uid is None else uid
    if found.st_uid != mine:
        raise CheckpointIo(
            f"{path} belongs to user {found.st_uid}, not to you ({mine})",
            hint="run this as that user, or if what is in it can be trusted:"
            f" {_shell('chown', *(['-h'] if is_link else []), str(mine), path)}",
        )


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, durably: after a crash it holds the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        try:
            fd = os.open(
                temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def sync_folder(path: Path) -> None:
    """Make a rename or a new file in `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def name_of(run: str, suffix: str) -> str:
    """Return the name of a run's file; raise where the id, of a foreign checkpoint, leads elsewhere."""
    if not run or run[0] in ".-" or os.sep in run or not run.isprintable():
        raise CheckpointCorrupt(f"{run!r} is no run id", hint="resume only what the dispatcher planned")
    return f"{run}{suffix}"


def network_file_system(path: Path) -> str | None:
    """Return the type of the network file system that holds `path`, or None (also where unknown)."""
    try:
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split(" ")[4].replace("\\040", " ")
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, right.split(" ")[0]
    return kind if kind in _NETWORK_TYPES else None
