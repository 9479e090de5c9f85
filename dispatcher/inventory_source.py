"""An inventory's bytes, and its text in blocks of whole lines, with flat memory.

The bytes are read twice at most: once for their digest and once for their rows. Whatever cannot be
read twice (standard input, a pipe) is copied to an unlinked file first. While rows are read the
bytes are hashed again, so that a file edited in between is noticed and not half believed.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib
import re
import stat
import tempfile
import zlib
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from dispatcher.errors import CheckpointIo, ManifestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

CHUNK_BYTES = 1 << 18
MAX_LINE_BYTES = 1 << 20
"""A longer line is refused: it bounds memory against a file that is not an inventory, or a bomb."""
ZSTD_PIECE_BYTES = 1 << 10
"""Compressed bytes given to zstd at a time; one piece may unfold to 32 MiB at the very most."""

LINE_BREAK = re.compile(r"\r\n|\r|\n")


def lines_of(text: str) -> list[str]:
    """Split a block of whole lines at line feeds, carriage returns or both; nothing else ends a line."""
    lines = LINE_BREAK.split(text) if "\r" in text else text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


class Source:
    """One inventory file, open for reading; `name` is what messages call it."""

    def __init__(self, file: IO[bytes], name: str, *, compression: str = "") -> None:
        self.name = name
        self._file = file
        self._compression = compression
        self._digest: str | None = None

    @classmethod
    def of_path(cls, path: Path, name: str) -> Source:
        """Open a file or pipe. Raises `ManifestError` where there is none to read."""
        compression = path.suffix.lower() if path.suffix.lower() in (".gz", ".zst") else ""
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise ManifestError("is a folder, not an inventory", path=name)
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                raise ManifestError("is a device, not an inventory", path=name)
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise ManifestError(f"no such file, looked for at {path}", path=name) from None
        except (OSError, ValueError) as error:
            raise ManifestError(f"cannot be read: {_reason(error)}", path=name) from error
        if stat.S_ISREG(mode):
            return cls(file, name, compression=compression)
        with file:
            return cls(_copy(file, name), name, compression=compression)

    @classmethod
    def of_stream(cls, stream: BinaryIO, name: str) -> Source:
        """Copy a stream that can be read only once."""
        return cls(_copy(stream, name), name)

    def close(self) -> None:
        """Close the file; standard input itself is left open."""
        self._file.close()

    def digest(self) -> str:
        """Return the hex SHA-256 of the raw bytes."""
        if self._digest is None:
            for _ in self._raw_chunks():
                pass
        assert self._digest is not None
        return self._digest

    def text_blocks(self) -> Iterator[str]:
        """Yield the text from its start, without byte order mark, in blocks of whole lines."""
        lines = 0
        try:
            for block in _whole_lines(self._chunks()):
                yield self._decode(block, lines)
                lines += _count_breaks(block)
        except _LongLine:
            message = f"has a line longer than {MAX_LINE_BYTES >> 20} MiB"
            raise self.error(message, line=lines + 1) from None

    def error(self, message: str, *, line: int | None = None, hint: str | None = None) -> ManifestError:
        """Build an error that names this inventory."""
        return ManifestError(message, path=self.name, line=line, hint=hint)

    def _decode(self, block: bytes, lines: int) -> str:
        """Decode a block that follows `lines` others, refusing what is not text."""
        nul = block.find(b"\0")
        if nul >= 0:
            line = lines + _count_breaks(block[:nul]) + 1
            raise self.error("has a NUL byte", line=line, hint="save it as UTF-8 text")
        try:
            return block.decode()
        except UnicodeDecodeError as error:
            line = lines + _count_breaks(block[: error.start]) + 1
            raise self.error("is not UTF-8", line=line, hint="save it as UTF-8") from None

    def _chunks(self) -> Iterator[bytes]:
        """Yield the content's bytes, unpacked, the byte order mark taken off."""
        raw = self._raw_chunks()
        chunks = raw if not self._compression else self._unpacked(raw)
        start = next(chunks, b"")
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise self.error("is UTF-16", line=1, hint="save it as UTF-8")
        yield start.removeprefix(b"\xef\xbb\xbf")
        yield from chunks

    def _raw_chunks(self) -> Iterator[bytes]:
        """Yield the file's bytes from its start, and compare or keep their digest at its end."""
        seen = hashlib.sha256()
        try:
            self._file.seek(0)
            while chunk := self._file.read(CHUNK_BYTES):
                seen.update(chunk)
                yield chunk
        except OSError as error:
            raise self.error(f"cannot be read: {_reason(error)}") from error
        if self._digest is None:
            self._digest = seen.hexdigest()
        elif self._digest != seen.hexdigest():
            raise self.error("was changed while it was read", hint="run again once it rests")

    def _unpacked(self, raw: Iterator[bytes]) -> Iterator[bytes]:
        failures: tuple[type[Exception], ...] = (gzip.BadGzipFile, zlib.error, EOFError)
        if self._compression == ".zst":
            new_frame, zstd_error = _zstd()
            if new_frame is None:
                hint = "pip install zstandard, or unpack the file first"
                raise self.error("needs the zstandard module", hint=hint)
            chunks, failures = _unzstd(raw, new_frame), (zstd_error, EOFError)
        else:
            chunks = _gunzip(raw)
        try:
            yield from chunks
        except failures as error:
            kind = self._compression.removeprefix(".")
            raise self.error(f"is not a whole {kind} file: {_reason(error)}") from None


class _LongLine(Exception):
    """A line went on for longer than any inventory's."""


class _Pieces:
    """The `read` of a file over an iterator of chunks, for `gzip`."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        if self._at >= len(self._chunk):
            self._chunk, self._at = next(self._chunks, b""), 0
        piece = self._chunk[self._at : self._at + size]
        self._at += len(piece)
        return piece


def _gunzip(raw: Iterator[bytes]) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=_Pieces(raw), mode="rb") as unpacked:  # type: ignore[call-overload]
        while chunk := unpacked.read(CHUNK_BYTES):
            yield chunk


def _zstd() -> tuple[Callable[[], Any] | None, type[Exception]]:
    """Find Python's own zstd (3.14) or the `zstandard` module: a new frame's reader, and its error."""
    with contextlib.suppress(ImportError):
        own: Any = importlib.import_module("compression.zstd")
        return own.ZstdDecompressor, own.ZstdError
    with contextlib.suppress(ImportError):
        module: Any = importlib.import_module("zstandard")
        return (lambda: module.ZstdDecompressor().decompressobj()), module.ZstdError
    return None, EOFError


def _unzstd(raw: Iterator[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    """Unpack frame after frame in small pieces, since one call's output has no bound of its own."""
    frame: Any = None
    held: list[bytes] = []
    for chunk in raw:
        for at in range(0, len(chunk), ZSTD_PIECE_BYTES):
            piece = chunk[at : at + ZSTD_PIECE_BYTES]
            while piece:
                frame = frame or new()
                held.append(frame.decompress(piece))
                piece, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
            if sum(map(len, held)) >= CHUNK_BYTES:
                yield b"".join(held)
                held = []
    yield b"".join(held)
    if frame is not None:
        raise EOFError("it ends early")


def _whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut a stream of bytes anew, after line ends; a CRLF is never cut in two."""
    rest = b""
    for chunk in chunks:
        data = rest + chunk
        cut = data.rfind(b"\n") + 1
        if not cut:
            # Lone carriage returns; the very last byte may be half of a CRLF.
            cut = data.rfind(b"\r", 0, -1) + 1
        block, rest = data[:cut], data[cut:]
        if len(rest) > MAX_LINE_BYTES:
            raise _LongLine
        if block:
            yield block
    if rest:
        yield rest


def _count_breaks(data: bytes) -> int:
    count = data.count(b"\n")
    return count if b"\r" not in data else count + data.count(b"\r") - data.count(b"\r\n")


def _copy(stream: IO[bytes], name: str) -> IO[bytes]:
    """Copy a stream into an unlinked file that only this user can read."""
    try:
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - the source closes it
    except OSError as error:
        raise _copy_failed(name, error) from error
    try:
        while chunk := stream.read(CHUNK_BYTES):
            try:
                copy.write(chunk)
            except OSError as error:
                raise _copy_failed(name, error) from error
        copy.flush()
    except OSError as error:
        copy.close()
        raise ManifestError(f"cannot be read: {_reason(error)}", path=name) from error
    except BaseException:
        copy.close()
        raise
    return copy


def _copy_failed(name: str, error: OSError) -> CheckpointIo:
    return CheckpointIo(
        f"the copy of {name} in {tempfile.gettempdir()} cannot be written: {_reason(error)}",
        hint="free space there or set TMPDIR to a folder that has some",
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
