"""The service's state on disk: a line for what it is, then a line for everything that changed it.

A change is one write, made before the caller is answered, so a killed emulator has lost nothing that
anybody was told. What a kill cuts short is the last line, of which nobody was told: it is dropped. Any
other line that cannot be read is damage, and an error that names it. The first line is written beside
the file and renamed into its place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Any

import msgspec

from dispatcher.emulator.fleet import AnyFleet, GeneratedFleet, ListedFleet
from dispatcher.emulator.tags import TagChange
from dispatcher.emulator.tasks import Cancel, Task
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from dispatcher.emulator.config import Config
    from dispatcher.emulator.fleet import Fleet
    from dispatcher.emulator.reply import Reply

VERSION = 1
Record = Task | Cancel | TagChange
_encode = msgspec.json.Encoder().encode


class Origin(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="service"):
    """What the service is: the settings that its past depends on."""

    version: int
    region: str
    account: str
    seed: int
    devices: int | None = None
    """Size of a generated fleet."""
    ids: list[str] | None = None
    """A listed fleet; null with `devices` null means that any id exists."""
    bad_ids: list[str] = []

    def fleet(self) -> Fleet:
        """Return the fleet again."""
        if self.devices is not None:
            return GeneratedFleet(self.devices)
        return AnyFleet() if self.ids is None else ListedFleet(self.ids)

    def settings(self) -> dict[str, Any]:
        """Return the settings of `Config` that come from here."""
        return {
            "region": self.region,
            "account": self.account,
            "seed": self.seed,
            "fleet": self.fleet(),
            "bad_ids": frozenset(self.bad_ids),
        }


def origin_of(config: Config) -> Origin:
    """Describe a service by what its past depends on."""
    fleet = config.fleet
    is_listed = isinstance(fleet, ListedFleet)
    return Origin(
        version=VERSION,
        region=config.region,
        account=config.account,
        seed=config.seed,
        devices=len(fleet) if isinstance(fleet, GeneratedFleet) else None,
        ids=[fleet.id_at(index) for index in range(len(fleet))] if is_listed else None,
        bad_ids=sorted(config.bad_ids),
    )


def read_origin(path: Path) -> Origin | None:
    """Read what the service of a state file is; None where there is no file. Raises UsageError."""
    try:
        with path.open("rb") as file:
            line = file.readline()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot read the state {path}: {error.strerror}") from error
    try:
        origin = msgspec.json.decode(line, type=Origin)
    except (msgspec.DecodeError, ValueError) as error:
        raise _damaged(path, 1, error) from error
    if origin.version != VERSION:
        raise UsageError(f"the state {path} is of version {origin.version}; this emulator reads {VERSION}")
    return origin


class StateFile:
    """An open state file, this process's alone."""

    def __init__(self, path: Path, config: Config) -> None:
        """Open or begin the file. Raises UsageError, naming it, where that cannot be."""
        self._path = path
        self.is_broken = False
        origin = read_origin(path)
        if origin is None:
            _begin(path, origin_of(config))
        elif origin != origin_of(config):
            changed = [name for name in Origin.__struct_fields__ if _differs(name, origin, origin_of(config))]
            text = f"the state {path} is of another service: it differs in {', '.join(changed)}"
            raise UsageError(text, hint="leave those options out, or begin another file")
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise UsageError(f"cannot open the state {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise UsageError(f"another emulator has the state {path}") from None

    def records(self) -> list[Record]:
        """Read everything that happened, and cut off what a kill left unfinished. Raises UsageError."""
        decode = msgspec.json.Decoder(Record).decode
        found: list[Record] = []
        whole_bytes = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file, whole_bytes)
                    break
                whole_bytes += len(line)
                if number == 1:
                    continue
                try:
                    found.append(decode(line))
                except (msgspec.DecodeError, ValueError) as error:
                    raise _damaged(self._path, number, error) from error
        return found

    def keep(self, reply: Reply) -> None:
        """Write down what a call changed.

        Raises OSError where the disk refuses: the file then ends at the last whole record, and no more is
        taken, since what follows a gap could not be restored.
        """
        change = reply.task if reply.created else reply.change
        if change is None:
            return
        line = _encode(change) + b"\n"
        before_bytes = os.fstat(self._file).st_size
        try:
            written_bytes = os.write(self._file, line)
            if written_bytes != len(line):
                raise OSError(f"{self._path}: {written_bytes} of {len(line)} bytes written")
        except OSError:
            self.is_broken = True
            os.ftruncate(self._file, before_bytes)
            raise

    def close(self) -> None:
        """Give the file up."""
        os.close(self._file)


def _differs(name: str, one: Origin, other: Origin) -> bool:
    return bool(getattr(one, name) != getattr(other, name))


def _damaged(path: Path, line: int, error: Exception) -> UsageError:
    text = f"the state {path} is damaged in line {line}: {error}"
    return UsageError(text, hint="move it away, or cut it before that line")


def _begin(path: Path, origin: Origin) -> None:
    beside = path.with_name(f".{path.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_encode(origin) + b"\n")
            os.fsync(descriptor)
        beside.rename(path)
    except OSError as error:
        raise UsageError(f"cannot write the state {path}: {error.strerror or error}") from error
