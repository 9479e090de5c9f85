"""From rows to device ids: what an id is, what `where` wants, and what became of every row.

Every format reads blocks of rows. A block in which every row is as it should be takes a path made of
a few list operations in C; a block with anything odd in it is gone through row by row, which gives
the same ids and names each bad row's line. Only ids go on from here. A row's other columns are seen
by `where` alone; an account or region per row would join its id in `Sink.keep`.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dispatcher.inventory_source import Source, lines_of
from dispatcher.manifest_schema import near_miss, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dispatcher.errors import ManifestError
    from dispatcher.manifest import InventorySpec

MAX_ID_CHARACTERS = 64
ID_COLUMNS = ("managed_device_id", "device_id", "id")
"""The id's column where the manifest names none: the first of these that is there."""
BLOCK_ROWS = 2048
SAMPLES = 20

UNSOUND = re.compile("[\x00-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ud800-\udfff]")
"""White space and control characters (Unicode categories Z and Cc), and lone surrogates."""
COMMENT = re.compile(r"(?:^|(?<=[ \t]))#.*")


class BadRow(NamedTuple):
    """A row without a usable id."""

    line: int
    """1-based line of the file; for inline targets the number of the item."""
    reason: str


class Spool(Protocol):
    """Where ids go: `dispatcher.spool.SortedSpool`, or nowhere."""

    def extend(self, ids: list[str], /) -> None:
        """Take ids in any order."""


@dataclass(slots=True)
class Sink:
    """Where rows end up: ids in the spool, everything else in counts."""

    spool: Spool
    device_rows: int = 0
    filtered: int = 0
    bad_rows: int = 0
    bad_samples: list[BadRow] = field(default_factory=list)

    def keep(self, ids: list[str]) -> None:
        self.device_rows += len(ids)
        self.spool.extend(ids)

    def bad(self, line: int, reason: str) -> None:
        self.bad_rows += 1
        if len(self.bad_samples) < SAMPLES:
            self.bad_samples.append(BadRow(line, reason))


def are_sound(ids: list[str]) -> bool:
    """Whether all ids are surely sound; a False says only that each must be looked at."""
    text = "".join(ids)
    # Printable leaves out categories C and Z but for the space: a little more than must be.
    if not text.isprintable() or " " in text:
        return False
    lengths = set(map(len, ids))
    return not lengths or (min(lengths) > 0 and max(lengths) <= MAX_ID_CHARACTERS)


def fault_of(device_id: str) -> str | None:
    """Return why this is not a device id, or None."""
    if not device_id:
        return "has no id"
    if len(device_id) > MAX_ID_CHARACTERS:
        return f"the id {shown(device_id)} is longer than {MAX_ID_CHARACTERS} characters"
    if UNSOUND.search(device_id):
        return f"the id {shown(device_id)} has white space or a control character"
    return None


class Verdicts(dict[str, bool]):
    """Cell → whether one of the wanted values or globs matches, worked out once a distinct cell."""

    MAX_KEPT = 65_536

    def __init__(self, wanted: Iterable[str], clean: Callable[[str], str]) -> None:
        super().__init__()
        patterns = list(wanted)
        self._exact = frozenset(patterns)
        globs = [fnmatch.translate(text) for text in patterns if set("*?[") & set(text)]
        self._glob = re.compile("|".join(globs)) if globs else None
        self._clean = clean

    def __missing__(self, cell: str) -> bool:
        value = self._clean(cell)
        matched = value in self._exact or (self._glob is not None and self._glob.match(value) is not None)
        if len(self) < self.MAX_KEPT:
            self[cell] = matched
        return matched


def plain_cell(cell: str) -> str:
    return cell.strip(" \t")


def id_column_of(columns: list[str], spec: InventorySpec, source: Source, *, line: int) -> str:
    """Return the column that holds ids. Raises `ManifestError` listing the columns there are."""
    if spec.id_column is not None:
        if spec.id_column not in columns:
            raise unknown_column(spec.id_column, columns, source, line=line)
        return spec.id_column
    for name in ID_COLUMNS:
        if name in columns:
            return name
    close = next((hint for name in columns if (hint := near_miss(name, ID_COLUMNS))), "")
    joined = columns[0] if len(columns) == 1 else ""
    split = next(
        (f", the header seems to be separated by {mark!r}" for mark in ";\t|," if mark in joined), ""
    )
    raise source.error(
        f"has none of the columns {', '.join(ID_COLUMNS)}, only {_listed(columns)}{split or close}",
        line=line,
        hint="name the column in inventory.id_column",
    )


def unknown_column(name: str, columns: list[str], source: Source, *, line: int | None) -> ManifestError:
    message = f"has no column {shown(name)}, only {_listed(columns)}{near_miss(name, columns)}"
    return source.error(message, line=line)


def _listed(columns: Iterable[str]) -> str:
    names = [shown(name) for name in islice(columns, 21)]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def read_plain(source: Source, sink: Sink) -> None:
    """Read one id a line; `#` begins a comment at a line's start or after white space."""
    line = 0
    for text in source.text_blocks():
        lines = lines_of(text)
        ids = [device_id for item in lines if (device_id := item.strip(" \t"))]
        if "#" in text or not are_sound(ids):
            ids = list(
                _sound_items((COMMENT.sub("", item) for item in lines), line, sink, blank_is_bad=False)
            )
        sink.keep(ids)
        line += len(lines)


def read_inline(targets: Iterable[str], sink: Sink) -> None:
    """Take the manifest's own list; a bad item is named by its number."""
    sink.keep(list(_sound_items(targets, 0, sink, blank_is_bad=True)))


def _sound_items(items: Iterable[str], line: int, sink: Sink, *, blank_is_bad: bool) -> Iterator[str]:
    for at, item in enumerate(items, line + 1):
        device_id = item.strip(" \t")
        fault = fault_of(device_id)
        if fault is None:
            yield device_id
        elif device_id or blank_is_bad:
            sink.bad(at, fault)
