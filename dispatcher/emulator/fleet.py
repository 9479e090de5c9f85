"""The devices the emulated service knows: generated, listed, or any id at all.

A generated fleet stores nothing: index and id are two forms of one number, so ten million devices cost
no memory and no start-up time. The id is the 80-bit number `index · A + B (mod 2^80)` in base 32; with A
odd this has an inverse, so membership is arithmetic and a made-up id is outside the fleet.
"""

from __future__ import annotations

import csv
import functools
import re
from typing import TYPE_CHECKING, Protocol

from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

ID_COLUMNS = ("managed_device_id", "device_id", "id")
SITES = ("pdx1", "sea2", "iad3", "dub4")

_PREFIX = "smd-"
_DIGITS = "0123456789abcdefghijklmnopqrstuv"  # what int(text, 32) reads
_PAIRS = [high + low for high in _DIGITS for low in _DIGITS]
_MODULUS = 1 << 80
_FACTOR = 0x9E37_79B9_7F4A_7C15_F39D
_OFFSET = 0x5851_F42D_4C95_7F2D_1405
_INVERSE = pow(_FACTOR, -1, _MODULUS)
_is_id = re.compile(f"{_PREFIX}[{_DIGITS}]{{16}}").fullmatch
_is_job = re.compile("JID[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_MAX_ID_CHARS = 64  # botocore model `snow-device-management`, shape ManagedDeviceId


def base32(value: int) -> str:
    """Write an 80-bit number as 16 lower-case letters and digits."""
    return "".join([_PAIRS[value >> shift & 1023] for shift in range(70, -1, -10)])


def fleet_id(index: int) -> str:
    """Return the id of device number `index` of every generated fleet: `smd-` and 16 characters."""
    value = (index * _FACTOR + _OFFSET) % _MODULUS
    return _PREFIX + base32(value)


@functools.lru_cache(1024)  # a call asks three times for each of its devices: known? had one? how many?
def fleet_index(device_id: str) -> int | None:
    """Return the index that `fleet_id` maps to this id, or None for an id of another shape."""
    if _is_id(device_id) is None:
        return None
    return (int(device_id[4:], 32) - _OFFSET) * _INVERSE % _MODULUS


def job_id(index: int) -> str:
    """Return the id of the job that brought device number `index`; every device came with one of its own."""
    digits = f"{(index * _FACTOR + _OFFSET) % _MODULUS:032x}"
    return f"JID{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def job_index(job: str) -> int | None:
    """Return the index that `job_id` maps to this id, or None for an id of another shape."""
    if _is_job(job) is None:
        return None
    index = (int(job[3:].replace("-", ""), 16) - _OFFSET) * _INVERSE % _MODULUS
    return index if job_id(index) == job else None


class Fleet(Protocol):
    """What the service must know of its devices."""

    def index_of(self, device_id: str) -> int | None:
        """Return the device's position, or None where it is unknown or the fleet has no positions."""

    def knows(self, device_id: str) -> bool:
        """Say whether a task may be made for this id."""

    def id_at(self, index: int) -> str:
        """Return the id at a position below `len`."""

    def __len__(self) -> int:
        """Return how many devices can be listed."""


class GeneratedFleet:
    """The devices `fleet_id(0)` to `fleet_id(count - 1)`."""

    def __init__(self, count: int) -> None:
        if count < 0:
            raise UsageError(f"a fleet cannot have {count} devices")
        self._count = count

    def index_of(self, device_id: str) -> int | None:
        index = fleet_index(device_id)
        return index if index is not None and index < self._count else None

    def knows(self, device_id: str) -> bool:
        return self.index_of(device_id) is not None

    def id_at(self, index: int) -> str:
        return fleet_id(index)

    def __len__(self) -> int:
        return self._count


class ListedFleet:
    """Exactly the given ids; duplicates fold."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = list(dict.fromkeys(ids))
        self._indexes = {device_id: index for index, device_id in enumerate(self._ids)}

    def index_of(self, device_id: str) -> int | None:
        return self._indexes.get(device_id)

    def knows(self, device_id: str) -> bool:
        return device_id in self._indexes

    def id_at(self, index: int) -> str:
        return self._ids[index]

    def __len__(self) -> int:
        return len(self._ids)


class AnyFleet:
    """Every id of a legal length exists; nothing can be listed."""

    def index_of(self, device_id: str) -> int | None:  # noqa: ARG002 (an endless fleet has no positions)
        return None

    def knows(self, device_id: str) -> bool:
        return 1 <= len(device_id) <= _MAX_ID_CHARS

    def id_at(self, index: int) -> str:
        raise IndexError(index)

    def __len__(self) -> int:
        return 0


def write_fleet(path: Path, count: int) -> None:
    """Write a generated fleet as CSV with the header `managed_device_id,site`."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            file.write("managed_device_id,site\n")
            file.writelines(f"{fleet_id(index)},{SITES[index % len(SITES)]}\n" for index in range(count))
    except OSError as error:
        raise UsageError(f"cannot write the fleet to {path}: {error.strerror}") from error


def read_ids(path: Path) -> list[str]:
    """Read device ids: the id column of a CSV with a header, else the first cell of every line.

    Blank lines and lines that begin with `#` are skipped. Raises UsageError where the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(_ids(csv.reader(file)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read device ids from {path}: {error}") from error


def _ids(rows: Iterator[list[str]]) -> Iterator[str]:
    column: int | None = None
    for row in rows:
        if not row or not any(row) or row[0].startswith("#"):
            continue
        if column is None:
            names = [cell.strip().lower() for cell in row]
            header = next((name for name in ID_COLUMNS if name in names), None)
            column = names.index(header) if header is not None else 0
            if header is not None:
                continue
        if column < len(row) and row[column].strip():
            yield row[column].strip()
