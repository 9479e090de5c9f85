"""The file of `--log-file`: JSON Lines, appended. A disk that is full costs the log, never the run."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading

from dispatcher.cli.files import open_append
from dispatcher.cli.output import note
from dispatcher.redact import inert_json, redacted

FLAG = "--log-file"
READER_S = 1.0
"""How long a reader that is behind is waited for; the run does not wait for it."""


class EventLog:
    """Appends events, each whole and on a line of its own, without secrets.

    Events come from a thread of their own, which may be at one still when the run is stopped at once: the
    descriptor is closed when it is done with that, since its number may be another file's by then.
    """

    def __init__(self, path: str) -> None:
        """Open `path`, or raise `UsageError`: a symbolic link or a FIFO without a reader is refused."""
        self._path = path
        self._is_lost = False
        self._is_torn = False
        self._is_behind = False
        self._fd = open_append(path, FLAG)
        self._is_plain = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._lock = threading.Lock()
        self._is_open = True
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_error: object) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._is_open = False
            os.close(self._fd)

    def append(self, line: str) -> None:
        """Write one line, or say once that the log has gaps."""
        with self._lock:
            if self._is_open:
                self._append(line)

    def _append(self, line: str) -> None:
        try:
            data = (b"\n" if self._is_torn else b"") + (redacted(inert_json(line)) or "").encode() + b"\n"
            while data:
                written = self._write(data)
                data = data[written:]
                self._is_torn = bool(data)
        except OSError as error:
            if not self._is_lost:
                self._is_lost = True
                note(f"warning: {FLAG} {self._path}: {error.strerror}; the log has gaps, the run goes on")

    def _write(self, data: bytes) -> int:
        if not self._is_plain:
            self._is_behind = not self._poll.poll(0 if self._is_behind else READER_S * 1_000)
            if self._is_behind:
                raise BlockingIOError(0, "its reader is behind")
        return os.write(self._fd, data)
