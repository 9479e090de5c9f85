"""The emulated service's own record of every call and task: the truth that a client is judged by.

Kept in memory and, on request, appended to a file, one JSON object a line, each line written by one
system call as the call is served: a killed emulator loses nothing that a client was told.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dispatcher.emulator.fleet import Fleet
    from dispatcher.emulator.reply import Reply
    from dispatcher.emulator.tasks import Task

MAX_LISTED = 100
"""Devices that the summary lists by name; their number is always exact."""

_ABSENT = msgspec.Raw(b"null")
_encode = msgspec.json.Encoder().encode


class Call(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="record", tag="call"):
    """One call as it arrived and as it was answered."""

    at: float
    """Unix time of arrival."""
    operation: str
    region: str
    client_token: str | None
    targets: msgspec.Raw
    """JSON array as sent; null where there were none or not an array of strings."""
    status: int
    """HTTP status; 0 where the connection dropped without an answer."""
    code: str | None
    fault: str | None
    task_id: str | None
    """The task that this call made or replayed, whether or not the answer said so."""
    created: bool
    replayed: bool
    in_flight: int
    """Calls being served at arrival, this one included."""


class DeviceTally:
    """Counts tasks per device: a byte per device where the fleet has positions, else a dict."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._by_index = bytearray(len(fleet))
        self._by_id: dict[str, int] = {}
        self.devices = 0
        """Devices with a task."""
        self.repeated = 0
        """Devices with more than one task."""
        self.repeated_ids: list[str] = []
        """The first `MAX_LISTED` of them."""

    def add(self, device_ids: list[str]) -> None:
        """Count one task for each of these devices."""
        for device_id in device_ids if len(set(device_ids)) == len(device_ids) else set(device_ids):
            tasks = self._count(device_id)
            if tasks == 1:
                self.devices += 1
            elif tasks == 2:
                self.repeated += 1
                if len(self.repeated_ids) < MAX_LISTED:
                    self.repeated_ids.append(device_id)

    def _count(self, device_id: str) -> int:
        index = self._fleet.index_of(device_id)
        if index is None:
            self._by_id[device_id] = self._by_id.get(device_id, 0) + 1
            return self._by_id[device_id]
        self._by_index[index] = min(255, self._by_index[index] + 1)
        return self._by_index[index]


class Ledger:
    """Every call and every task. Raises UsageError where the file cannot be opened."""

    def __init__(self, fleet: Fleet, path: Path | None = None) -> None:
        self.calls: list[Call] = []
        self.tasks: list[Task] = []
        self.tally = DeviceTally(fleet)
        self.max_in_flight = 0
        self.replays = 0
        self._counts: dict[str, Counter[str]] = {
            key: Counter() for key in ("by_status", "by_operation", "by_code", "by_fault")
        }
        self._file = None if path is None else _open_private(path)

    def record(
        self,
        operation: str,
        reply: Reply,
        *,
        at_s: float,
        region: str,
        in_flight: int,
        client_token: object = None,
        targets: object = None,
    ) -> None:
        """Write down one call and the task it made, if any."""
        task = reply.task
        sent = _as_list(targets)
        if task is not None:  # one copy of equal values for the task and all its calls
            client_token = task.client_token if task.client_token == client_token else client_token
            sent = task.targets if task.targets == sent else sent
        call = Call(
            at=at_s,
            operation=operation,
            region=region,
            client_token=_short(client_token),
            targets=sent,
            status=reply.status,
            code=reply.code,
            fault=reply.fault,
            task_id=None if task is None else task.task_id,
            created=reply.created,
            replayed=reply.replayed,
            in_flight=in_flight,
        )
        self.calls.append(call)
        self.max_in_flight = max(self.max_in_flight, in_flight)
        self._count(call)
        if task is not None and reply.created:
            self.tasks.append(task)
            self.tally.add(task.device_ids())
        if self._file is not None:
            made = _encode(task) + b"\n" if reply.created else b""
            os.write(self._file, made + _encode(call) + b"\n")

    def _count(self, call: Call) -> None:
        self.replays += call.replayed
        counts = self._counts
        counts["by_status"][str(call.status)] += 1
        counts["by_operation"][call.operation] += 1
        if call.code is not None:
            counts["by_code"][call.code] += 1
        if call.fault is not None:
            counts["by_fault"][call.fault] += 1

    def summary(self) -> dict[str, object]:
        """Return the figures served at `GET /_ledger`."""
        return {
            "calls": len(self.calls),
            "tasks": len(self.tasks),
            "replays": self.replays,
            "throttled": self._counts["by_code"]["ThrottlingException"],
            "max_in_flight": self.max_in_flight,
            "devices": self.tally.devices,
            "devices_with_many_tasks": self.tally.repeated,
            "devices_with_many_tasks_listed": list(self.tally.repeated_ids),
            **{name: dict(sorted(counts.items())) for name, counts in self._counts.items()},
        }

    def lines(self, kind: str) -> Iterator[bytes]:
        """Yield `calls` or `tasks` as JSON Lines, a block of up to 1,000 at a time."""
        records: list[Call] | list[Task] = self.calls if kind == "calls" else self.tasks
        for start in range(0, len(records), 1000):
            yield b"".join([_encode(record) + b"\n" for record in records[start : start + 1000]])

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _open_private(path: Path) -> int:
    """Open a file for appending that only its owner can read."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # never a device such as /dev/null
            os.fchmod(descriptor, 0o600)
    except OSError as error:
        raise UsageError(f"cannot write the ledger to {path}: {error.strerror}") from error
    return descriptor


def _short(client_token: object) -> str | None:
    """Keep a client token that may be refused, but not a megabyte of it."""
    return client_token[:256] if isinstance(client_token, str) else None


def _as_list(targets: object) -> msgspec.Raw:
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        return _ABSENT
    return msgspec.Raw(_encode([target[:256] for target in targets[:100]]))
