"""Opening state files safely, and saying plainly why one cannot be used.

State is private: folders 0700, files 0600, never followed through a symbolic link. SQLite keeps the
checkpoint's mode for its -wal and -shm files.
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

if TYPE_CHECKING:
    from collections.abc import Iterator

_FULL_HINT = "free some space and run the same command again; nothing is lost"
_DAMAGED_HINT = "keep the file as evidence, restore a backup or give another --checkpoint"
_NETWORK_TYPES = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "lustre", "fuse.sshfs", "fuse.glusterfs"}
)


@contextlib.contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """Turn SQLite's and the system's errors about `path` into ours, each with what to do."""
    try:
        yield
    except apsw.FullError as error:
        raise CheckpointIo(f"no space left for {path}", hint=_FULL_HINT) from error
    except apsw.ReadOnlyError as error:
        raise CheckpointIo(
            f"{path} is read-only", hint="make it and its folder writable for this user"
        ) from error
    except apsw.CantOpenError as error:
        raise CheckpointIo(f"cannot open {path}: {error}", hint="check the folder and its mode") from error
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise CheckpointCorrupt(
            f"{path} is damaged or is not a dispatcher checkpoint ({error})",
            hint=_DAMAGED_HINT,
        ) from error
    except apsw.BusyError as error:
        raise CheckpointLeased(
            f"{path} is locked by another program", hint="close what has it open"
        ) from error
    except (apsw.IOError, apsw.PermissionsError, apsw.AuthError) as error:
        raise CheckpointIo(f"I/O error on {path}: {error}", hint="check the disk before resuming") from error
    except apsw.SQLError as error:
        raise CheckpointCorrupt(f"{path} is not a checkpoint of this version ({error})") from error
    except UnicodeDecodeError as error:
        raise CheckpointCorrupt(f"{path} is damaged ({error})", hint=_DAMAGED_HINT) from error
    except apsw.Error as error:  # a CHECK that held, misuse, no memory: nobody may take it for a success
        raise CheckpointError(f"{path} cannot be used ({type(error).__name__}: {error})") from error
    except OSError as error:
        raise io_error(path, error) from error


def io_error(path: Path | str, error: OSError) -> CheckpointError:
    """Explain an operating-system error about a state file."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CheckpointIo(f"no space left for {path}", hint=_FULL_HINT)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return CheckpointIo(
            f"cannot write {path}: {os.strerror(error.errno)}",
            hint="make the folder writable for this user or give another one "
            "(--checkpoint, DISPATCHER_STATE_DIR)",
        )
    if error.errno == errno.ELOOP:
        return CheckpointIo(f"{path} is a symbolic link", hint="name the real file")
    return CheckpointIo(f"cannot use {path}: {error.strerror or error}", hint="check the folder and the disk")


def private_folder(path: Path) -> Path:
    """Create `path`, and the folders above it, with mode 0700 where they are missing; return it."""
    with explained(path):
        if not path.is_dir():
            # mkdir's own `parents` would give the folders above the umask's mode.
            if path.parent != path:
                private_folder(path.parent)
            path.mkdir(mode=0o700, exist_ok=True)
    return path


def create_private(path: Path) -> None:
    """Create an empty file of mode 0600, unless a regular file of that name is there already."""
    with explained(path):
        try:
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            check_regular(path)
        else:
            os.close(fd)


def check_regular(path: Path) -> None:
    """Raise where `path` is a link, a folder or a device instead of a plain file."""
    with explained(path):
        mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise CheckpointIo(f"{path} is a symbolic link", hint="name the real file")
    if not stat.S_ISREG(mode):
        raise CheckpointCorrupt(f"{path} is not a file", hint="give another --checkpoint")


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
