"""A consistent copy of a checkpoint, taken beside a live run.

SQLite's own backup copies every page within one read transaction: a snapshot of one moment, while the run
goes on writing to its WAL. The copy is one plain file with no -wal beside it, checked before it gets its
name, and it never replaces anything: an older backup may be the one that is needed.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dispatcher.checkpoint.files import create_private, explained, sync_folder
from dispatcher.checkpoint.reading import SqliteReader
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dispatcher.model import Counts

_COMPANIONS = ("-journal", "-wal", "-shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """What was copied, and where to."""

    run: str
    checkpoint: str
    path: str
    bytes: int
    counts: Counts
    """Of the copy, which may be a moment older than the run."""


def back_up(checkpoint: Path, target: Path, *, any_sums: bool = False) -> Backup:
    """Copy the checkpoint file `checkpoint` to `target`: a new file, or a folder for a `RUN.db` in it.

    With `any_sums` its pages' sums are not verified, and the copy gets new ones.

    Raises:
        UsageError: `target` exists, or its folder does not.
        CheckpointError: the checkpoint cannot be read or the copy not written; nothing is left behind.
    """
    reader = SqliteReader.open(checkpoint, read_only=True, any_sums=any_sums)
    try:
        if any_sums:
            reader.check_pages(thoroughly=True)
        plan = reader.plan()
        if plan is None:
            raise UsageError(
                f"{checkpoint} has no committed plan yet, so there is nothing to back up",
                hint="back it up once `dispatcher status` shows the run",
            )
        path = _free_name(target, plan.run)
        with _temporary(path) as temporary:
            reader.copy_to(temporary)
            counts = _checked(temporary)
            _publish(temporary, path)
    finally:
        reader.close()
    return Backup(
        run=plan.run, checkpoint=str(checkpoint), path=str(path), bytes=path.stat().st_size, counts=counts
    )


def _free_name(target: Path, run: str) -> Path:
    path = target / f"{run}.db" if target.is_dir() else target
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", hint="make it, or name another place")
    if os.path.lexists(path):
        raise _taken(path)
    return path.absolute()


def _taken(path: Path) -> UsageError:
    return UsageError(
        f"{path} exists, and a backup replaces nothing", hint="name another file, or move it away"
    )


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A private name beside `path`; whatever happens nothing of it stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    leftovers = [temporary, *(temporary.with_name(temporary.name + end) for end in _COMPANIONS)]
    try:
        with explained(path):
            for file in leftovers:
                file.unlink(missing_ok=True)  # of a killed backup whose process id came round again
        create_private(temporary)
        yield temporary
    finally:
        for file in leftovers:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


def _checked(copy: Path) -> Counts:
    """Read the whole copy back: a backup that cannot be read is none."""
    reader = SqliteReader.open(copy, read_only=True)
    try:
        reader.check_pages()
        return reader.counts()
    finally:
        reader.close()


def _publish(temporary: Path, path: Path) -> None:
    """Give the copy its name, durably, unless somebody took the name meanwhile."""
    with explained(path):
        fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.link(temporary, path)
        except FileExistsError as error:
            raise _taken(path) from error
        except OSError:  # a file system without hard links
            if os.path.lexists(path):
                raise _taken(path) from None
            temporary.rename(path)
        sync_folder(path.parent)
