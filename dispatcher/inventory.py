"""Where targets come from: a file, standard input or the manifest's own list, read into a spool.

Ids leave here checked but neither sorted nor folded: the spool sorts, and duplicates fold on the
sorted stream.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Self

from dispatcher.errors import ManifestError
from dispatcher.inventory_jsonl import read_json_lines
from dispatcher.inventory_rows import BadRow, Sink, Spool, read_inline, read_plain
from dispatcher.inventory_source import Source
from dispatcher.inventory_table import read_table
from dispatcher.manifest import digest_of

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from dispatcher.manifest import InventorySpec

STDIN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryReport:
    """What reading an inventory found; counts are of rows, before duplicates fold."""

    device_rows: int
    """Rows whose id went into the spool."""
    filtered: int
    """Rows that `where` left out."""
    bad_rows: int
    """Rows without a usable id, skipped."""
    bad_samples: tuple[BadRow, ...]
    """The first bad rows, twenty at most."""


def open_inventory(
    spec: InventorySpec,
    *,
    base_dir: Path,
    skip_bad_rows: bool = False,
    stdin: BinaryIO | None = None,
) -> InventoryReader:
    """Open what a manifest's `inventory` names, relative to `base_dir`.

    `stdin` stands in for the process's standard input. Raises `ManifestError` where there is
    nothing to read, and `CheckpointIo` where a stream's copy finds no space.
    """
    source: Source | None = None
    if spec.path == STDIN:
        source = Source.of_stream(sys.stdin.buffer if stdin is None else stdin, "stdin")
    elif spec.path is not None:
        source = Source.of_path(base_dir / spec.path, spec.path)
    return InventoryReader(spec, source, skip_bad_rows=skip_bad_rows)


class InventoryReader:
    """An open inventory; close it, or use it as a context manager."""

    def __init__(self, spec: InventorySpec, source: Source | None, *, skip_bad_rows: bool) -> None:
        self._spec = spec
        self._source = source
        self._skip_bad_rows = skip_bad_rows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<InventoryReader [{self._source.name if self._source else 'inline targets'}]>"

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._source is not None:
            self._source.close()

    def digest(self) -> str:
        """Return the hex SHA-256 of the raw bytes, or of the inline list's canonical JSON."""
        if self._source is None:
            return digest_of(list(self._spec.targets or ()))
        return self._source.digest()

    def read_into(self, spool: Spool) -> InventoryReport:
        """Put every selected device id into `spool`, duplicates and all.

        Raises `ManifestError` for bad rows unless they are skipped, for content that cannot be
        read, and when no device is left. The spool then holds what was read so far.
        """
        sink = Sink(spool)
        self._read(sink)
        if sink.bad_rows and not self._skip_bad_rows:
            raise self._refusal(sink)
        if not sink.device_rows:
            raise self._error(f"names no devices{_left_out(sink)}")
        return InventoryReport(
            device_rows=sink.device_rows,
            filtered=sink.filtered,
            bad_rows=sink.bad_rows,
            bad_samples=tuple(sink.bad_samples),
        )

    def check(self) -> None:
        """Raise what `read_into` would, and keep nothing."""
        self.read_into(_Nowhere())

    def _read(self, sink: Sink) -> None:
        spec, source = self._spec, self._source
        if source is None:
            read_inline(spec.targets or (), sink)
            return
        match spec.resolved_format:
            case "csv":
                read_table(source, spec, sink, delimiter=",")
            case "tsv":
                read_table(source, spec, sink, delimiter="\t")
            case "jsonl":
                read_json_lines(source, spec, sink)
            case "txt":
                read_plain(source, sink)
            case unknown:
                raise source.error(f"has no known format, {unknown!r}", hint="give inventory.format")

    def _refusal(self, sink: Sink) -> ManifestError:
        word = "target" if self._source is None else "line"
        first, *others = sink.bad_samples[:5]
        parts = [first.reason, *(f"{word} {row.line}: {row.reason}" for row in others)]
        hint = "fix them or pass --skip-bad-rows"
        if sink.bad_rows == 1:
            return self._error(first.reason, first, hint=hint)
        parts.append(f"{sink.bad_rows} bad rows in all")
        error = self._error("; ".join(parts), first, hint=hint)
        places = [self._error(row.reason, row).message for row in sink.bad_samples]
        error.problems = (*places, self._error(f"{parts[-1]}, {hint}").message)
        error.count = sink.bad_rows
        return error

    def _error(self, message: str, row: BadRow | None = None, *, hint: str | None = None) -> ManifestError:
        """Name the inventory, and the row where it is about one."""
        if self._source is not None:
            return self._source.error(message, line=None if row is None else row.line, hint=hint)
        item = "" if row is None else f"target {row.line}: "
        return ManifestError(f"{item}{message}", key="inventory.targets", hint=hint)


class _Nowhere:
    """A spool that forgets."""

    def extend(self, ids: list[str]) -> None:
        pass


def _rows(count: int, kind: str = "") -> str:
    return f"{count} {kind}row{'s' if count != 1 else ''}"


def _left_out(sink: Sink) -> str:
    parts = []
    if sink.filtered:
        parts.append(f"where leaves out {_rows(sink.filtered)}")
    if sink.bad_rows:
        parts.append(f"{_rows(sink.bad_rows, 'bad ')} skipped")
    return f": {' and '.join(parts)}" if parts else ""
