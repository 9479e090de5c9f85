"""Sort more strings than fit in memory, with flat memory and at the speed of `list.sort`.

Problem: a plan needs its targets in order, and ten million ids as Python strings take 700 MB.
A heap merge (`heapq.merge`) is flat in memory but spends Python bytecode on every string. Ours
keeps the whole loop in C: chunks are sorted by `list.sort` and laid one behind the other in one
file as *runs*; the merge holds a block of each run, takes from all of them what is not greater
than the smallest last string of any block, and sorts the concatenation, which timsort does by
merging the presorted pieces. Nothing is ever compared in Python but one string a block.

The file is unlinked as soon as it is open, so a crash leaves nothing behind.
"""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from dispatcher.errors import CheckpointIo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

MERGE_BYTES = 2 << 20
"""UTF-8 bytes held by the merge over all runs together; as Python strings about five times that."""

MIN_BLOCK_BYTES = 1 << 14
"""No run is read in smaller pieces, however many runs there are."""

TYPICAL_BYTES = 32
"""A rough length of one string, to tell a block that has become short."""


class _Run:
    """One sorted stretch of the file, read forward block by block."""

    __slots__ = ("_at", "_end", "_file", "_rest", "block")

    def __init__(self, file: int, start: int, end: int) -> None:
        self.block: list[str] = []
        self._file = file
        self._at = start
        self._end = end
        self._rest = b""

    @property
    def is_read(self) -> bool:
        """Whether all that is left of this run is in `block`."""
        return self._at >= self._end

    def fill(self, size: int) -> None:
        """Append about `size` bytes' worth of whole strings, at least one, to `block`."""
        data = self._rest
        while True:
            piece = os.pread(self._file, min(size, self._end - self._at), self._at)
            if not piece:
                raise OSError("the file ended early")
            self._at += len(piece)
            data += piece
            cut = data.rfind(b"\n")
            if cut >= 0:
                break
        self._rest = data[cut + 1 :]
        self.block += data[:cut].decode().split("\n")

    def take(self, limit: str | None) -> list[str]:
        """Remove and return the strings of `block` up to and including `limit` (None: all)."""
        if limit is None:
            taken, self.block = self.block, []
            return taken
        cut = bisect_right(self.block, limit)
        taken = self.block[:cut]
        del self.block[:cut]
        return taken


class SortedSpool:
    """Collect strings without line feeds or lone surrogates, then read them back in order.

    `chunk` is how many strings are held and sorted at once. Nothing is written while all of them
    fit in one chunk. Raises `CheckpointIo` when the folder cannot hold the file.
    """

    def __init__(self, directory: Path | None = None, chunk: int = 250_000) -> None:
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {chunk}")
        self._directory = directory
        self._chunk_size = chunk
        self._chunk: list[str] = []
        self._file: IO[bytes] | None = None
        self._ends: list[int] = [0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<SortedSpool [{len(self._ends) - 1} runs of {self._ends[-1]} bytes, {len(self._chunk)} held]>"
        )

    def add(self, text: str) -> None:
        """Put one string in."""
        self._chunk.append(text)
        if len(self._chunk) >= self._chunk_size:
            self._spill()

    def extend(self, texts: list[str]) -> None:
        """Put many strings in; the chunk may outgrow its size by the length of this list."""
        self._chunk += texts
        if len(self._chunk) >= self._chunk_size:
            self._spill()

    def sorted_blocks(self) -> Iterator[list[str]]:
        """Yield all strings in code point order, duplicates kept, as non-empty lists; once only."""
        if self._file is None:
            self._chunk.sort()
            block, self._chunk = self._chunk, []
            if block:
                yield block
            return
        if self._chunk:
            self._spill()
        yield from self._merge(self._file.fileno())

    def close(self) -> None:
        """Let go of memory and file."""
        self._chunk = []
        if self._file is not None:
            self._file.close()
            self._file = None

    def _spill(self) -> None:
        """Sort the chunk and append it to the file as a run."""
        self._chunk.sort()
        data = "\n".join(self._chunk).encode() + b"\n"
        self._chunk = []
        try:
            if self._file is None:
                # Unlinked while open, readable by this user only (mode 0600).
                self._file = tempfile.TemporaryFile(buffering=0, dir=self._directory)  # noqa: SIM115
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise self._failed("written", error) from error
        self._ends.append(self._ends[-1] + len(data))

    def _merge(self, file: int) -> Iterator[list[str]]:
        runs = [_Run(file, start, end) for start, end in zip(self._ends, self._ends[1:], strict=False)]
        size = max(MERGE_BYTES // len(runs), MIN_BLOCK_BYTES)
        while runs:
            try:
                for run in runs:
                    # Topping up every run keeps all blocks alike: were only the empty one refilled,
                    # the others' short rests would make every later block short.
                    if not run.is_read and len(run.block) * TYPICAL_BYTES < size:
                        run.fill(size)
            except OSError as error:
                raise self._failed("read", error) from error
            # What is not read yet is not smaller than the last string of its run's block.
            limit = min((run.block[-1] for run in runs if not run.is_read), default=None)
            merged: list[str] = []
            for run in runs:
                merged += run.take(limit)
            merged.sort()
            yield merged
            runs = [run for run in runs if run.block or not run.is_read]

    def _failed(self, verb: str, error: OSError) -> CheckpointIo:
        folder = self._directory if self._directory is not None else Path(tempfile.gettempdir())
        reason = error.strerror or str(error)
        return CheckpointIo(
            f"the sorting file in {folder} cannot be {verb}: {reason}",
            hint="free space there or set TMPDIR to a folder that has some",
        )
