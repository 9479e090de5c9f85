"""A disk whose every I/O can fail, whose processes can be killed, and whose power can be lost.

A shim over the platform's own files below one folder. It becomes SQLite's default VFS and stands behind the
calls of `os` that the registry and the locks use, so that the code under test needs no changes:

    disk = Disk(tmp_path)
    with disk.installed():
        ...                                # disk.trace lists every I/O of an undisturbed run
        disk.fail(17, Failure.ENOSPC)      # the 17th I/O from now on fails; lasting=True: all after it too
        disk.kill()                        # the process is gone: whatever it had open does nothing any more
        disk.revive()                      # the next process begins
        disk.power_loss()                  # every file goes back to what was synced
        disk.power_loss(random.Random(7))  # or: a seeded part of what was not synced made it as well

What it keeps. For every file, its bytes as of its last sync, and each write since; for every folder, its
names as of its last sync. A sync of a file makes its bytes durable, and its name where it is new (as
ext4, XFS and Btrfs do it); a rename or an unlink becomes durable with a sync of the folder, which SQLite's
unix VFS makes at the first sync of a new journal or WAL. A power loss without `rng` keeps nothing else. With
it, every sector of 512 bytes written since may have survived or not, each on its own, and each folder's
new names all or none. A sync that failed makes nothing durable, and no later one makes up for it: the
kernel has dropped those pages.

What it does not do: fail reads of `os`, `stat` and locks; lie about a sync that it says succeeded; tear a
sector. The real fsync is never called: what is durable is this module's own book.
"""

# ruff: noqa: PTH100, PTH110, PTH120  (asked at every I/O, and pathlib takes ten times as long)

from __future__ import annotations

import contextlib
import enum
import errno
import os
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import apsw

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

SECTOR = 512
"""Bytes that a disk writes whole or not at all."""
_DIRSYNC = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL


class Failure(enum.Enum):
    """How an I/O fails. One that does not fit (a short write of a sync) is an EIO."""

    EIO = "eio"
    ENOSPC = "enospc"
    SHORT_WRITE = "short_write"  # half of it is written, then there is no space
    KILL = "kill"  # the process ends before this I/O


class Killed(SystemExit):
    """Raised in a process that is no more. A SystemExit, so that an event loop stops for it at once."""


class Io(NamedTuple):
    """One counted I/O."""

    kind: str
    """open, read, write, truncate, sync, delete, rename or dirsync."""
    name: str
    """The file's name within the disk."""


class _Node:
    """One file's bytes as of its last sync, and what happened to them since."""

    __slots__ = ("durable", "pending")

    def __init__(self, durable: bytes) -> None:
        self.durable = bytearray(durable)
        self.pending: list[tuple[int, bytes] | int] = []  # written at an offset, or truncated to a size

    def sync(self) -> None:
        for op in self.pending:
            _apply(self.durable, op)
        self.pending.clear()

    def survivor(self, rng: random.Random | None) -> bytes:
        """Return what is there after a power loss."""
        content = bytearray(self.durable)
        for op in self.pending if rng is not None else ():
            assert rng is not None
            if isinstance(op, int):
                if rng.random() < 0.5:
                    _apply(content, op)
                continue
            offset, data = op
            at = 0
            while at < len(data):
                size = min(SECTOR - (offset + at) % SECTOR, len(data) - at)
                if rng.random() < 0.5:
                    _apply(content, (offset + at, data[at : at + size]))
                at += size
        return bytes(content)


def _apply(content: bytearray, op: tuple[int, bytes] | int) -> None:
    if isinstance(op, int):
        del content[op:]
        content.extend(bytes(op - len(content)))
        return
    offset, data = op
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


@dataclass(eq=False)
class _Handle:
    """An open file of one process."""

    path: str
    node: _Node | None
    owner: object
    is_dead: bool = False
    is_full: bool = False


@dataclass
class Disk:
    """The files below `root`. `owner` names the process that is running now; None where there is only one."""

    root: Path
    owner: Callable[[], object] = lambda: None
    on_kill: Callable[[object], None] = lambda _owner: None
    """Told of a process that `Failure.KILL` ended."""
    on_failure: Callable[[Failure], None] = lambda _failure: None
    """Told of every I/O that fails."""
    trace: list[Io] = field(default_factory=list)
    """Every I/O so far."""
    is_paused: bool = False
    """Set while whoever checks looks: that is no I/O of the code under test."""
    _due: dict[int, tuple[Failure, bool]] = field(default_factory=dict)
    _meanwhile: dict[int, Callable[[], None]] = field(default_factory=dict)
    _lasting: Failure | None = None
    _now: dict[str, _Node] = field(default_factory=dict)
    _durable: dict[str, _Node] = field(default_factory=dict)
    _handles: weakref.WeakSet[_Handle] = field(default_factory=weakref.WeakSet)
    _down: set[object] = field(default_factory=set)
    _fds: dict[int, _Handle] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = Path(os.path.realpath(self.root))
        self._prefix = f"{self.root}{os.sep}"

    # What befalls it

    def fail(self, nth: int, failure: Failure, *, lasting: bool = False) -> None:
        """Let the `nth` I/O from now on (1 is the next) fail; with `lasting`, all that could after it too."""
        self._due[len(self.trace) + nth] = failure, lasting

    def at(self, nth: int, meanwhile: Callable[[], None]) -> None:
        """Let something come about within the `nth` I/O from now on (1 is the next), which succeeds."""
        self._meanwhile[len(self.trace) + nth] = meanwhile

    def heal(self) -> None:
        """Fail nothing more."""
        self._due.clear()
        self._meanwhile.clear()
        self._lasting = None

    def kill(self, owner: object = None) -> None:
        """End a process: whatever it has open, or tries from now on, does nothing and raises `Killed`."""
        self._down.add(owner)
        for handle in self._handles:
            if handle.owner == owner:
                handle.is_dead = True

    def close_all(self, owner: object) -> None:
        """Close what a dead process has open through `os`, as the kernel does: its locks go with it."""
        for fd in [fd for fd, handle in self._fds.items() if handle.owner == owner]:
            del self._fds[fd]
            _os.close(fd)

    def forget(self, path: Path) -> None:
        """Take what is at `path` now for durable: somebody put it there by other means."""
        self._now.pop(os.path.realpath(path), None)
        self._durable.pop(os.path.realpath(path), None)

    def revive(self, owner: object = None) -> None:
        """Let a process of that name begin; what the old one had open stays dead."""
        self._down.discard(owner)

    def power_loss(self, rng: random.Random | None = None, *, under: Path | None = None) -> None:
        """Put every file back to what was durable; the processes there must have been killed before."""
        prefix = self._prefix if under is None else f"{os.path.realpath(under)}{os.sep}"
        kept: dict[str, _Node] = {}
        before = {*self._now, *self._durable}
        for folder in sorted({os.path.dirname(path) for path in before if path.startswith(prefix)}):
            is_new = rng is not None and rng.random() < 0.5
            names = self._now if is_new else self._durable
            kept |= {path: node for path, node in sorted(names.items()) if os.path.dirname(path) == folder}
        for path in sorted(before):
            if not path.startswith(prefix):
                continue
            self._now.pop(path, None)
            self._durable.pop(path, None)
            with contextlib.suppress(FileNotFoundError):
                _os.unlink(path)
            with contextlib.suppress(FileNotFoundError):
                _os.unlink(f"{path}-shm")
        for path, node in kept.items():
            content = node.survivor(rng)
            fd = _os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            _os.write(fd, content)
            _os.close(fd)
            self._now[path] = self._durable[path] = _Node(content)

    def unsynced(self) -> int:
        """Return how many bytes a power loss would take now."""
        return sum(
            len(op[1]) for node in self._now.values() for op in node.pending if not isinstance(op, int)
        )

    # Installing

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Stand between this process and its files: the default VFS of apsw, and calls of `os`."""
        vfs = _Vfs(self)
        calls = _Calls(self)
        for name in _PATCHED:
            setattr(os, name, getattr(calls, name))
        try:
            yield
        finally:
            for name in _PATCHED:
                setattr(os, name, getattr(_os, name))
            vfs.unregister()

    # The book, for the shims below

    def inside(self, path: Any) -> str | None:
        """Return the whole path of what is below `root`, or `root` itself; else None."""
        if not isinstance(path, (str, os.PathLike)):
            return None
        whole = os.path.abspath(path)
        return whole if f"{whole}{os.sep}".startswith(self._prefix) else None

    def io(self, kind: str, path: str, handle: _Handle | None = None) -> Failure | None:
        """Count one I/O, and return how it fails if it does; raises `Killed` in a dead process."""
        owner = self.owner() if handle is None else handle.owner
        if owner in self._down or (handle is not None and handle.is_dead):
            raise Killed
        if self.is_paused:
            return None
        self.trace.append(Io(kind, path.removeprefix(self._prefix)))
        if meanwhile := self._meanwhile.pop(len(self.trace), None):
            meanwhile()
        failure, lasting = self._due.pop(len(self.trace), (self._lasting, False))
        if lasting:
            self._lasting = failure
        if failure is not None:
            self.on_failure(failure)
        if failure is Failure.KILL:
            self.kill(owner)
            self.on_kill(owner)
            raise Killed
        if failure in (Failure.ENOSPC, Failure.SHORT_WRITE) and kind not in ("write", "truncate", "create"):
            return None if self._lasting else Failure.EIO
        return failure

    def node(self, path: str) -> _Node:
        """Return the file's entry; one that was there before this disk was is durable."""
        node = self._now.get(path)
        if node is None:
            try:
                content = Path(path).read_bytes()
            except FileNotFoundError:
                node = _Node(b"")
            else:
                node = self._durable[path] = _Node(content)
            self._now[path] = node
        return node

    def handle(self, path: str, node: _Node | None) -> _Handle:
        made = _Handle(path, node, self.owner())
        self._handles.add(made)
        return made

    def sync(self, path: str, node: _Node) -> None:
        node.sync()
        if self._now.get(path) is node:
            self._durable.setdefault(path, node)

    def sync_folder(self, folder: str) -> None:
        for names, other in ((self._durable, self._now), (self._now, self._durable)):
            for path in [path for path in names if os.path.dirname(path) == folder]:
                if names is self._now:
                    other[path] = names[path]
                elif path not in other:
                    del names[path]

    def drop(self, path: str) -> None:
        self.node(path)
        del self._now[path]

    def move(self, old: str, new: str) -> None:
        if os.path.exists(new):
            self.node(new)  # what is replaced may come back
        self._now[new] = self.node(old)
        del self._now[old]


class _Vfs(apsw.VFS):
    """Every file that SQLite opens below the disk's root."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        super().__init__(f"disk-{id(disk):x}", "unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        path = None if name is None else self._disk.inside(str(getattr(name, "filename", lambda: name)()))
        if path is None:
            return apsw.VFSFile("unix", name, flags)
        is_new = not os.path.exists(path)
        if self._disk.io("create" if is_new else "open", path) is not None:
            raise apsw.CantOpenError(f"unable to open {path}")
        return _VfsFile(self._disk, path, name, flags)

    def excepthook(self, _kind: Any, _error: Any, _traceback: Any) -> None:
        """SQLite went on without what was raised; that is its business."""

    def xDelete(self, name: str, sync: bool) -> None:  # noqa: N802
        path = self._disk.inside(name)
        if path is not None:
            _raise(self._disk.io("delete", path))
            self._disk.drop(path)
        super().xDelete(name, sync)
        if path is not None and sync:
            self._disk.sync_folder(os.path.dirname(path))


class _VfsFile(apsw.VFSFile):
    def __init__(self, disk: Disk, path: str, name: Any, flags: list[int]) -> None:
        node = disk.node(path)
        super().__init__("unix", name, flags)
        self._disk = disk
        self._node = node
        self._handle = disk.handle(path, node)
        self._must_sync_folder = bool(flags[0] & _DIRSYNC and flags[0] & apsw.SQLITE_OPEN_CREATE)

    def excepthook(self, _kind: Any, _error: Any, _traceback: Any) -> None:
        """As above."""

    def xLock(self, level: int) -> None:  # noqa: N802
        try:
            super().xLock(level)
        except apsw.IOError as error:
            # A read-only file cannot be locked for writing: closing it SQLite lets that be, apsw would raise.
            raise apsw.BusyError("read-only") from error

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        _raise(self._disk.io("read", self._handle.path, self._handle))
        return super().xRead(amount, offset)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        failure = self._disk.io("write", self._handle.path, self._handle)
        data = bytes(data)
        if failure is Failure.SHORT_WRITE:
            data = data[: len(data) // 2]
        elif failure is not None:
            _raise(failure)
        super().xWrite(data, offset)
        self._node.pending.append((offset, data))
        _raise(failure)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        _raise(self._disk.io("truncate", self._handle.path, self._handle))
        super().xTruncate(size)
        self._node.pending.append(size)

    def xSync(self, flags: int) -> None:  # noqa: N802
        failure = self._disk.io("sync", self._handle.path, self._handle)
        if failure is not None:
            self._node.pending.clear()  # dropped by the kernel: no later sync makes up for it
            _raise(failure)
        self._disk.sync(self._handle.path, self._node)
        if self._must_sync_folder:
            self._must_sync_folder = False
            self._disk.sync_folder(os.path.dirname(self._handle.path))


def _raise(failure: Failure | None) -> None:
    """Tell SQLite of a failure."""
    if failure in (Failure.ENOSPC, Failure.SHORT_WRITE):
        raise apsw.FullError("no space left on device")
    if failure is not None:
        raise apsw.IOError("disk I/O error")


class _Os(NamedTuple):
    """The real calls."""

    open: Any
    write: Any
    fsync: Any
    close: Any
    replace: Any
    rename: Any
    unlink: Any


_PATCHED = _Os._fields
_os = _Os(*(getattr(os, name) for name in _PATCHED))


class _Calls:
    """The calls of `os` that change files, for what lies below the disk's root."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        whole = self._disk.inside(path)
        is_folder = bool(flags & os.O_DIRECTORY)  # O_TMPFILE holds this bit too: such a file has no name
        is_new = whole is not None and bool(flags & os.O_CREAT) and not os.path.exists(whole)
        if whole is not None and not is_folder:
            _fail(self._disk.io("create" if is_new else "open", whole))
        fd: int = _os.open(path, flags, mode, dir_fd=dir_fd)
        if whole is not None:
            node = None if is_folder else _Node(b"") if is_new else self._disk.node(whole)
            if node is not None and is_new:
                self._disk._now[whole] = node
            if node is not None and flags & os.O_TRUNC:
                node.pending.append(0)
            self._disk._fds[fd] = self._disk.handle(whole, node)
        return fd

    def close(self, fd: int) -> None:
        self._disk._fds.pop(fd, None)
        _os.close(fd)

    def write(self, fd: int, data: Any) -> int:
        handle = self._disk._fds.get(fd)
        if handle is None or handle.node is None:
            return int(_os.write(fd, data))
        failure = self._disk.io("write", handle.path, handle)
        if failure is Failure.SHORT_WRITE and len(data) > 1:
            handle.is_full, data, failure = True, data[: len(data) // 2], None
        elif handle.is_full:
            failure = failure or Failure.ENOSPC
        _fail(failure)
        offset = os.lseek(fd, 0, os.SEEK_CUR)
        written = int(_os.write(fd, data))
        handle.node.pending.append((offset, bytes(data[:written])))
        return written

    def fsync(self, fd: int) -> None:
        handle = self._disk._fds.get(fd)
        if handle is None:
            return
        failure = self._disk.io("dirsync" if handle.node is None else "sync", handle.path, handle)
        if handle.node is None:
            _fail(failure)
            self._disk.sync_folder(handle.path)
            return
        if failure is not None:
            handle.node.pending.clear()
            _fail(failure)
        self._disk.sync(handle.path, handle.node)

    def replace(self, old: Any, new: Any, **options: Any) -> None:
        here, there = self._disk.inside(old), self._disk.inside(new)
        if here is not None and there is not None:
            _fail(self._disk.io("rename", there))
            self._disk.move(here, there)
        _os.replace(old, new, **options)

    rename = replace

    def unlink(self, path: Any, **options: Any) -> None:
        whole = self._disk.inside(path)
        if whole is not None and os.path.exists(whole):
            _fail(self._disk.io("delete", whole))
            self._disk.drop(whole)
        _os.unlink(path, **options)


def _fail(failure: Failure | None) -> None:
    """Tell a caller of `os` of a failure."""
    if failure is not None:
        code = errno.EIO if failure is Failure.EIO else errno.ENOSPC
        raise OSError(code, os.strerror(code))
