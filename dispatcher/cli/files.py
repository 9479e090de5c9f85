"""Files that the operator names for output: `--log-file PATH` and `report --output PATH`.

A plain file is made private and never reached through a symbolic link: in a folder that others may write
to, a link could make us overwrite any file of ours. Streams and devices are written to as they are.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dispatcher.errors import CheckpointIo, UsageError
from dispatcher.hints import quoted

if TYPE_CHECKING:
    from collections.abc import Callable

_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_NUMBERED = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,9})")


def open_append(path: str, flag: str) -> int:
    """Open what `flag` names for appending, and return its descriptor; raise `UsageError` where it cannot be.

    A FIFO is opened without waiting for its reader: a run must hear its signals.
    """
    refuse_empty(path, flag)
    try:
        own = _own_stream(path)
        if own is not None:
            return os.dup(own)
        _refuse_link(path, flag)
        wanted = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(path, wanted, 0o600)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise UsageError(f"{flag} {path}: nobody reads it", hint="start its reader first") from error
        raise UsageError(f"{flag} {path}: {error.strerror}") from error


def write_whole(path: str, flag: str, render: Callable[[Callable[[str], object]], object]) -> None:
    """Let `render` write the file at `path`: private, and whole or not at all.

    Streams, FIFOs and devices take it as it comes, and a reader that has seen enough is no failure.

    Raises:
        UsageError: it cannot be written there.
        CheckpointIo: the limit on the size of files was met.
    """
    try:
        own = _own_stream(path)
        if own is None:
            _refuse_link(path, flag)
        if own is not None or _is_special(path):
            _write_stream(path if own is None else os.dup(own), render)
        else:
            _replace(Path(path), render)
    except BrokenPipeError:
        return
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise CheckpointIo(
                f"I/O error on {path}: no file of this process may grow so large",
                hint="raise the limit and run the same command again: ulimit -f unlimited",
            ) from error
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _own_stream(path: str) -> int | None:
    """Return the descriptor of this process that `path` means, if it means one."""
    if path in _STREAMS:
        return _STREAMS[path]
    found = _NUMBERED.fullmatch(path)
    return int(found[1]) if found else None


def refuse_empty(path: str, flag: str) -> None:
    """Raise for a shell variable that was never set: `Path("")` would be the working folder."""
    if not path:
        raise UsageError(f"{flag}: no file is named")


def _refuse_link(path: str, flag: str) -> None:
    if Path(path).is_symlink():
        real = quoted(os.path.realpath(path))
        raise UsageError(f"{flag} {path} is a symbolic link", hint=f"name the real file: {flag} {real}")


def _is_special(path: str) -> bool:
    """Whether `path` is a FIFO or a device: nothing that could be replaced."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _write_stream(path: str | int, render: Callable[[Callable[[str], object]], object]) -> None:
    fd = path if isinstance(path, int) else os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        render(file.write)


def _replace(path: Path, render: Callable[[Callable[[str], object]], object]) -> None:
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            render(file.write)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
