"""One runner per run: advisory locks on this host, a holder row for the others.

Two locks: beside the checkpoint, and under the run's name in the state folder, since two checkpoint paths
are still one run. The kernel drops them when their holder dies, so a dead holder on this host is taken
over at once, though a child that it forked lives on. A holder on another host cannot be seen dying: taking
it over is the operator's decision.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dispatcher.checkpoint.files import (
    check_surroundings,
    create_private,
    explained,
    name_of,
    network_file_system,
    private_folder,
    state_folder,
)
from dispatcher.errors import CheckpointCorrupt, CheckpointIo, CheckpointLeased
from dispatcher.forking import disown_in_children
from dispatcher.hints import adding, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.checkpoint.base import Standing


_FOLDER = "locks"
"""Within the state folder."""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who runs a run; stored in the checkpoint while it is leased."""

    host: str
    machine: str | None
    boot: str | None
    pid: int
    since: float

    def is_this_machine(self, other: Holder) -> bool:
        """Same machine or same boot, whatever the hosts are called."""
        return (self.machine is not None and self.machine == other.machine) or (
            self.boot is not None and self.boot == other.boot
        )


def this_holder() -> Holder:
    """Describe the running process."""
    return Holder(
        host=socket.gethostname(),
        machine=_first_line("/etc/machine-id") or f"node-{uuid.getnode():012x}",
        boot=_first_line("/proc/sys/kernel/random/boot_id"),
        pid=os.getpid(),
        since=time.time(),
    )


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def lock_paths(checkpoint: Path, state_dir: Path, run: str) -> tuple[Path, Path]:
    """Return the two lock files of a run, in the order they are taken."""
    return state_dir / _FOLDER / name_of(run, ".lock"), checkpoint.with_name(checkpoint.name + ".lock")


def _prepare_folder(lock: Path) -> None:
    """Make the folder of a lock file, and raise where somebody else could put one there."""
    folder = lock.parent
    if folder.name == _FOLDER:
        state_folder(folder.parent)
        state_folder(folder)
    else:
        private_folder(folder)
        check_surroundings(lock)


class Locks:
    """The advisory locks of one run, held until `release` or the end of the process."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._fds: list[int] = []
        disown_in_children(self)

    def take(self, *, allow_network: bool = False) -> None:
        """Take all locks at once or raise: `CheckpointLeased`, or `CheckpointIo` on a network file system."""
        try:
            for path in self._paths:
                self._take_one(path, allow_network=allow_network)
        except BaseException:
            self.release()
            raise

    def _take_one(self, path: Path, *, allow_network: bool) -> None:
        _prepare_folder(path)
        kind = network_file_system(path.parent)
        if kind and not allow_network:
            raise CheckpointIo(
                f"{path.parent} is on a network file system ({kind}), where locks cannot be trusted",
                hint=f"use a local folder; or if nobody else can reach it, {adding('--allow-network-fs')}",
            )
        create_private(path)
        with explained(path):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._fds.append(fd)
        with explained(path):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(fd, 200, 0).decode(errors="replace").strip()
                run = self._paths[0].stem
                raise CheckpointLeased(
                    f"another runner is at this run{f' (process {holder})' if holder.isdigit() else ''}",
                    hint=f"let it finish, or stop it first; `{command('status', run)}` shows how far it is",
                ) from error
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Drop the locks; the files stay, since removing a lock file that another opened would unlock it.

        Not by closing them alone: a process that is being started elsewhere holds copies until it runs.
        """
        for fd in self._fds:
            with contextlib.suppress(OSError):  # of a network file system: closing has to do
                fcntl.flock(fd, fcntl.LOCK_UN)
        self.disown()

    def disown(self) -> None:
        """Close them, which in a forked child unlocks nothing of the parent's."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def is_locked(path: Path) -> bool:
    """Tell whether a live process holds the lock file at `path`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def check_holder(standing: Standing, mine: Holder, *, take_over: bool, in_doubt: int) -> str | None:
    """Return a warning where a foreign holder is taken over; else raise `CheckpointLeased` for one."""
    if standing.holder is None:
        return None
    try:
        holder = msgspec.json.decode(standing.holder, type=Holder)
    except msgspec.DecodeError as error:
        raise CheckpointCorrupt(f"the checkpoint names a holder that cannot be read ({error})") from error
    if holder.is_this_machine(mine):
        return None  # its lock is gone, so it is dead
    age_s = time.time() - standing.heartbeat_at
    what = (
        f"{holder.host} (process {holder.pid}) holds this run; its last heartbeat was {age_s:.0f} s ago,"
        f" {in_doubt} devices are in doubt"
    )
    if not take_over:
        raise CheckpointLeased(
            what,
            hint=f"if it lives, devices could be sent twice; if it is dead for sure, {adding('--take-over')}",
        )
    return f"{what}; taking over as told"
