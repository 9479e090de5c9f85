"""Inventories of JSON Lines: an object or an id a line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from dispatcher.inventory_rows import (
    Sink,
    Verdicts,
    are_sound,
    fault_of,
    id_column_of,
    plain_cell,
    unknown_column,
)
from dispatcher.inventory_source import Source, lines_of
from dispatcher.manifest_schema import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatcher.manifest import InventorySpec


def read_json_lines(source: Source, spec: InventorySpec, sink: Sink) -> None:
    """Read one object or one id a line; the first object's keys decide which of them is the id."""
    _JsonLines(source, spec, sink).read()


class _JsonLines:
    def __init__(self, source: Source, spec: InventorySpec, sink: Sink) -> None:
        self._source = source
        self._spec = spec
        self._sink = sink
        self._id_column: str | None = None
        self._quoted_id = ""
        self._columns: list[str] = []
        self._filters = [(name, Verdicts(values, plain_cell)) for name, values in spec.wanted().items()]
        self._unseen = {name for name, _ in self._filters}
        self._decode = msgspec.json.Decoder()

    def read(self) -> None:
        line = 0
        for text in self._source.text_blocks():
            lines = lines_of(text)
            ids = self._sound_block(text)
            self._sink.keep(self._row_by_row(lines, line) if ids is None else ids)
            line += len(lines)
        if self._unseen and self._columns:
            raise unknown_column(min(self._unseen), self._columns, self._source, line=None)

    def _sound_block(self, text: str) -> list[str] | None:
        """Return the ids of a block of objects without an odd one, or None with nothing counted."""
        if self._id_column is None or self._unseen:
            return None
        try:
            kept = rows = self._decode.decode_lines(text)
            if text.count(self._quoted_id) != len(rows):
                return None  # some object may give its id twice
            for name, verdicts in self._filters:
                kept = [row for row in kept if verdicts[_cell(row.get(name))]]
            ids = [row[self._id_column] for row in kept]
        except (msgspec.DecodeError, RecursionError, AttributeError, KeyError, TypeError):
            return None
        if set(map(type, ids)) - {str} or not are_sound(ids):
            return None
        self._sink.filtered += len(rows) - len(kept)
        return ids

    def _row_by_row(self, lines: list[str], line: int) -> list[str]:
        ids: list[str] = []
        for at, text in enumerate(lines, line + 1):
            if not text.strip():
                continue
            try:
                row = self._decode.decode(text)
            except (msgspec.DecodeError, UnicodeError) as error:
                self._sink.bad(at, f"is not JSON: {error}")
                continue
            except RecursionError:
                self._sink.bad(at, "is nested too deep")
                continue
            device_id = self._id_of(row, at, text)
            if device_id is not None:
                ids.append(device_id)
        return ids

    def _id_of(self, row: Any, at: int, text: str) -> str | None:
        """Return a row's id, or None with the row counted as filtered or bad."""
        if not isinstance(row, (dict, str)):
            self._sink.bad(at, "must be an object or a text")
            return None
        cells: Mapping[str, Any] = row if isinstance(row, dict) else {}
        if isinstance(row, dict) and self._id_column is None:
            self._columns = list(row)
            self._id_column = id_column_of(self._columns, self._spec, self._source, line=at)
            self._quoted_id = json.dumps(self._id_column)
        self._unseen -= cells.keys()
        if not all(verdicts[_cell(cells.get(name))] for name, verdicts in self._filters):
            self._sink.filtered += 1
            return None
        if cells and text.count(self._quoted_id) > 1 and self._is_given_twice(text):
            self._sink.bad(at, f"gives {shown(self._id_column)} twice")
            return None
        value = cells.get(self._id_column or "") if isinstance(row, dict) else row
        if value is not None and not isinstance(value, str):
            self._sink.bad(at, f"the id {shown(value)} is not text")
            return None
        device_id = plain_cell(value or "")
        fault = fault_of(device_id)
        if fault is not None:
            self._sink.bad(at, fault)
            return None
        return device_id

    def _is_given_twice(self, text: str) -> bool:
        """Whether an object has two ids, of which its reader would take the last."""
        pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)
        return [key for key, _ in pairs].count(self._id_column or "") > 1


def _cell(value: Any) -> str:
    """Return what `where` compares: text as it is, null as nothing, anything else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value).decode()
