"""Inventories with a header: CSV and TSV."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from dispatcher.inventory_rows import (
    BLOCK_ROWS,
    Sink,
    Verdicts,
    are_sound,
    fault_of,
    id_column_of,
    plain_cell,
    unknown_column,
)
from dispatcher.inventory_source import LINE_BREAK, Source
from dispatcher.manifest_schema import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.manifest import InventorySpec

RECEIPT_COLUMNS = frozenset({"device_id", "client_token"})
"""A header with both is one of our own receipts."""
_INERT = re.compile(r"'(?=[=+\-@'\t\r])")


def read_table(source: Source, spec: InventorySpec, sink: Sink, *, delimiter: str) -> None:
    """Read rows under a header. Raises `ManifestError` for a header or quoting that cannot be used."""
    lines = chain.from_iterable(io.StringIO(text, newline="") for text in source.text_blocks())
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    table: _Table | None = None
    line = 0
    while True:
        rows: list[list[str]] = []
        try:
            # What was read before an error stays in `rows`, and tells the line where it stands.
            rows += islice(reader, BLOCK_ROWS if table is not None else 1)
        except csv.Error as error:
            at = line + sum(map(_lines_in, rows)) + 1
            raise source.error(_quoting_fault(error), line=at, hint="check its quotes") from None
        if not rows:
            return
        if table is not None:
            ids = table.sound_block(rows, sink)
            sink.keep(table.row_by_row(rows, line, sink) if ids is None else ids)
        elif any(cell.strip() for cell in rows[0]):
            table = _Table.under(rows[0], source, spec, line=line + 1)
        line = reader.line_num


def _quoting_fault(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "has a quoted field that never ends"
    if "field larger" in str(error):
        return f"has a field larger than {csv.field_size_limit() >> 10} KiB, or a quote that never ends"
    return f"is not CSV: {error}"


def _lines_in(row: list[str]) -> int:
    """Count the lines a row stands on: quoted cells may hold line breaks."""
    return 1 + sum(len(LINE_BREAK.findall(cell)) for cell in row if "\n" in cell or "\r" in cell)


def _receipt_plain(cell: str) -> str:
    """Undo what our receipts do to a cell that a spreadsheet would run."""
    return (
        _INERT.sub("", cell.strip(" \t"), count=1) if cell.lstrip(" \t").startswith("'") else plain_cell(cell)
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """What a header says about the rows below it."""

    width: int
    id_at: int
    filters: tuple[tuple[int, Verdicts], ...]
    clean: Callable[[str], str]

    @classmethod
    def under(cls, header: list[str], source: Source, spec: InventorySpec, *, line: int) -> _Table:
        columns = [name.strip() for name in header]
        clean = _receipt_plain if RECEIPT_COLUMNS.issubset(columns) else plain_cell
        id_column = id_column_of(columns, spec, source, line=line)
        wanted = spec.wanted()
        for name in wanted:
            if name not in columns:
                raise unknown_column(name, columns, source, line=line)
        for name in (id_column, *wanted):
            if columns.count(name) > 1:
                raise source.error(f"has the column {shown(name)} twice", line=line)
        return cls(
            width=len(columns),
            id_at=columns.index(id_column),
            filters=tuple((columns.index(name), Verdicts(values, clean)) for name, values in wanted.items()),
            clean=clean,
        )

    def sound_block(self, rows: list[list[str]], sink: Sink) -> list[str] | None:
        """Return the ids of a block without an odd row, or None without having counted anything."""
        if set(map(len, rows)) != {self.width}:
            return None
        kept = rows
        for at, verdicts in self.filters:
            kept = [row for row in kept if verdicts[row[at]]]
        at = self.id_at
        ids = [row[at] for row in kept]
        if not are_sound(ids):
            ids = [self.clean(text) for text in ids]
            if not are_sound(ids):
                return None
        elif self.clean is not plain_cell:
            ids = [self.clean(text) for text in ids]
        sink.filtered += len(rows) - len(kept)
        return ids

    def row_by_row(self, rows: list[list[str]], line: int, sink: Sink) -> list[str]:
        """Return the ids of a block that begins after `line`, noting its bad rows."""
        ids: list[str] = []
        for row in rows:
            at = line + 1
            line += _lines_in(row)
            if not row:
                continue
            if len(row) > self.width:
                sink.bad(at, f"has {len(row)} fields, the header has {self.width}")
                continue
            cells = row + [""] * (self.width - len(row))
            if not all(verdicts[cells[column]] for column, verdicts in self.filters):
                sink.filtered += 1
                continue
            device_id = self.clean(cells[self.id_at])
            fault = fault_of(device_id)
            if fault is None:
                ids.append(device_id)
            elif device_id or any(cell.strip() for cell in row):
                sink.bad(at, fault)
        return ids
