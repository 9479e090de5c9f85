"""Tasks the service made: the record of each, the client tokens that name them, how they progress.

A device's execution has no state of its own: it is a pure function of task, device and time, so a
million tasks cost nothing to advance.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec

from dispatcher.emulator.draws import draw, name_of
from dispatcher.model import Command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatcher.emulator.config import Config
    from dispatcher.emulator.reply import Params

_encode = msgspec.json.Encoder(order="deterministic").encode
_NO_TAGS = msgspec.Raw(b"{}")
_COMMANDS = frozenset(command.value for command in Command)


class Task(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="record", tag="task"):
    """One task, as stored and as the ledger shows it. Lists stay encoded: a tenth of the memory."""

    task_id: str
    created_at: float
    """Unix time."""
    client_token: str | None
    command: str
    targets: msgspec.Raw
    """JSON array of device ids, as sent."""
    description: str | None
    tags: msgspec.Raw
    """JSON object."""
    region: str
    number: int
    """0-based, in order of creation."""

    def device_ids(self) -> list[str]:
        """Return the targets, decoded."""
        return msgspec.json.decode(self.targets, type=list[str])

    def tag_map(self) -> dict[str, str]:
        """Return the tags, decoded."""
        return msgspec.json.decode(self.tags, type=dict[str, str])


def as_raw(value: object) -> msgspec.Raw:
    """Encode a JSON value with sorted keys, so that equal values have equal bytes."""
    return msgspec.Raw(_encode(value)) if value else _NO_TAGS


def command_of(params: Params) -> str:
    """Return the one command that the (validated) union names."""
    command: dict[str, object] = params["command"]
    return next(name for name, body in command.items() if body is not None and name in _COMMANDS)


class TaskStore:
    """All tasks of the service, in order of creation, by id and by client token."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._by_id: dict[str, Task] = {}
        self._by_token: dict[str, Task] = {}
        self._counted: deque[float] = deque()
        self.in_order: list[Task] = []

    def __len__(self) -> int:
        return len(self.in_order)

    def get(self, task_id: str) -> Task | None:
        """Return the task with this id."""
        return self._by_id.get(task_id)

    def by_token(self, client_token: str | None, now_s: float) -> Task | None:
        """Return the task this client token made, unless the token window has passed."""
        task = self._by_token.get(client_token) if client_token is not None else None
        if task is None or now_s - task.created_at >= self._config.token_window_s:
            return None
        return task

    def has_quota(self, now_s: float) -> bool:
        """Say whether one more task fits the quota."""
        if self._config.quota is None:
            return True
        frees_s = self._config.quota_frees_s
        while frees_s is not None and self._counted and now_s - self._counted[0] >= frees_s:
            self._counted.popleft()
        return len(self._counted) < self._config.quota

    def add(self, params: Params, client_token: str | None, now_s: float) -> Task:
        """Make a task of validated parameters."""
        number = len(self.in_order)
        description = params.get("description")
        task = Task(
            # The time is part of the name: a service started again must not repeat its ids.
            task_id="st-" + name_of(self._config.seed, "task", number, now_s),
            created_at=now_s,
            client_token=client_token,
            command=command_of(params),
            targets=as_raw(params["targets"]),
            description=description if isinstance(description, str) else None,
            tags=as_raw(params.get("tags")),
            region=self._config.region,
            number=number,
        )
        self.in_order.append(task)
        self._by_id[task.task_id] = task
        if client_token is not None:
            self._by_token[client_token] = task
        if self._config.quota is not None:
            self._counted.append(now_s)
        return task


def is_same_request(task: Task, params: Params) -> bool:
    """Say whether validated parameters are those the task was made of."""
    return (
        task.command == command_of(params)
        and task.targets == as_raw(params["targets"])
        and task.description == params.get("description")
        and task.tags == as_raw(params.get("tags"))
    )


def execution_state(config: Config, task: Task, device_id: str, now_s: float) -> str:
    """Return how far the device is: QUEUED for a while, IN_PROGRESS, then SUCCEEDED."""
    begins_s, ends_s = _span(config, task, device_id)
    age_s = now_s - task.created_at
    if age_s < begins_s:
        return "QUEUED"
    return "IN_PROGRESS" if age_s < ends_s else "SUCCEEDED"


def completed_at(config: Config, task: Task) -> float:
    """Return the Unix time at which the task's last execution ends."""
    return task.created_at + max(_span(config, task, device_id)[1] for device_id in task.device_ids())


def task_state(config: Config, task: Task, now_s: float) -> str:
    """Return IN_PROGRESS until every execution has ended, then COMPLETED."""
    if now_s - task.created_at >= config.settle_s:  # spares the sums for all but the newest tasks
        return "COMPLETED"
    return "COMPLETED" if now_s >= completed_at(config, task) else "IN_PROGRESS"


def last_change_at(config: Config, task: Task, now_s: float) -> float:
    """Return the Unix time of the latest state change of any execution, or of the creation."""
    moments = (
        task.created_at + offset_s
        for device_id in task.device_ids()
        for offset_s in _span(config, task, device_id)
    )
    return max((moment for moment in moments if moment <= now_s), default=task.created_at)


def _span(config: Config, task: Task, device_id: str) -> tuple[float, float]:
    """Return the ages at which the device begins and ends its execution, both within `settle_s`."""
    begins_s = config.settle_s * 0.4 * draw(config.seed, "begins", task.task_id, device_id)
    runs_s = config.settle_s * (0.1 + 0.5 * draw(config.seed, "runs", task.task_id, device_id))
    return begins_s, begins_s + runs_s


def device_executions(config: Config, task: Task, now_s: float) -> Iterator[dict[str, object]]:
    """Yield every device's execution, as ListExecutions shows it."""
    for number, device_id in enumerate(dict.fromkeys(task.device_ids()), start=1):
        yield {
            "executionId": str(number),
            "managedDeviceId": device_id,
            "state": execution_state(config, task, device_id, now_s),
            "taskId": task.task_id,
        }
