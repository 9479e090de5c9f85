"""Tasks the service made: the record of each, the client tokens that name them, who had one before."""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from dispatcher.emulator.draws import draw, name_of
from dispatcher.model import Command

if TYPE_CHECKING:
    from dispatcher.emulator.config import Config
    from dispatcher.emulator.reply import Params

_encode = msgspec.json.Encoder(order="deterministic").encode
_decode_ids = msgspec.json.Decoder(list[str]).decode
_NO_TAGS = msgspec.Raw(b"{}")
_COMMANDS = frozenset(command.value for command in Command)
_NONE = 0  # in the tables of task numbers: none; others are numbers plus one


class Task(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="record", tag="task"):
    """One task, as stored and as the ledger shows it. Lists stay encoded: a tenth of the memory."""

    task_id: str
    created_at: float
    """Unix time."""
    client_token: str | None
    command: str
    targets: msgspec.Raw
    """JSON array of the device ids that got it: as sent, but for `BadTarget.SKIP`."""
    description: str | None
    tags: msgspec.Raw
    """JSON object, as sent; later changes are the tag store's."""
    region: str
    number: int
    """0-based, in order of creation."""

    def device_ids(self) -> list[str]:
        """Return the targets, decoded."""
        return _decode_ids(self.targets)

    def tag_map(self) -> dict[str, str]:
        """Return the tags it was made with, decoded."""
        return msgspec.json.decode(self.tags, type=dict[str, str])


class Cancel(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="record", tag="cancel"):
    """A cancel that the service took: part of its state, not of the ledger."""

    number: int
    """The task's number."""
    at: float
    """Unix time."""


def as_raw(value: object) -> msgspec.Raw:
    """Encode a JSON value with sorted keys, so that equal values have equal bytes."""
    return msgspec.Raw(_encode(value)) if value else _NO_TAGS


def command_of(params: Params) -> str:
    """Return the one command that the (validated) union names."""
    command: dict[str, object] = params["command"]
    return next(name for name, body in command.items() if body is not None and name in _COMMANDS)


class TaskStore:
    """All tasks of the service, in order of creation, by id, by client token and by device.

    Tasks of a device form a chain from the newest back. Where the fleet has positions the newest is an
    array element, and links exist only for tasks whose devices had one before: a fleet that gets one task
    each costs four bytes a device.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._by_id: dict[str, Task] = {}
        self._by_token: dict[str, Task] = {}
        self._counted: deque[float] = deque()
        self._canceled: dict[int, float] = {}
        self._last_by_index = array("I", bytes(4 * len(config.fleet)))
        self._last_by_id: dict[str, int] = {}
        self._before: dict[int, array[int]] = {}
        self.in_order: list[Task] = []

    def __len__(self) -> int:
        return len(self.in_order)

    def get(self, task_id: str) -> Task | None:
        """Return the task with this id."""
        return self._by_id.get(task_id)

    def visible(self, task_id: str, now_s: float) -> Task | None:
        """Return the task with this id, unless the service has dropped it."""
        task, keeps_s = self._by_id.get(task_id), self._config.task_keeps_s
        if task is None or (keeps_s is not None and now_s - task.created_at >= keeps_s):
            return None
        return task

    def by_token(self, client_token: str | None, now_s: float) -> Task | None:
        """Return the task this client token made, unless the service has forgotten it."""
        task = self._by_token.get(client_token) if client_token is not None else None
        if task is None or now_s - task.created_at >= self._config.token_window_s:
            return None
        share = self._config.forget_tokens
        if share > 0 and draw(self._config.seed, "forgets", task.client_token) < share:
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

    def add(self, params: Params, targets: list[str], client_token: str | None, now_s: float) -> Task:
        """Make a task of validated parameters for these devices."""
        number = len(self.in_order)
        description = params.get("description")
        task = Task(
            # The time is part of the name: a service started again must not repeat its ids.
            task_id="st-" + name_of(self._config.seed, "task", number, now_s),
            created_at=now_s,
            client_token=client_token,
            command=command_of(params),
            targets=as_raw(targets),
            description=description if isinstance(description, str) else None,
            tags=as_raw(params.get("tags")),
            region=self._config.region,
            number=number,
        )
        self.put(task, targets)
        return task

    def put(self, task: Task, targets: list[str]) -> None:
        """Add a task that is next in number; `targets` are its devices."""
        self.in_order.append(task)
        self._by_id[task.task_id] = task
        if task.client_token is not None:
            self._by_token[task.client_token] = task
        if self._config.quota is not None:
            self._counted.append(task.created_at)
        self._link(task.number, targets)

    def _link(self, number: int, targets: list[str]) -> None:
        index_of, by_index, by_id = self._config.fleet.index_of, self._last_by_index, self._last_by_id
        links = []
        for device_id in targets if len(set(targets)) == len(targets) else dict.fromkeys(targets):
            index = index_of(device_id)
            if index is None:
                links.append(by_id.get(device_id, _NONE))
                by_id[device_id] = number + 1
            else:
                links.append(by_index[index])
                by_index[index] = number + 1
        if any(links):
            self._before[number] = array("I", links)

    def last_of(self, device_id: str) -> Task | None:
        """Return the newest task of a device."""
        index = self._config.fleet.index_of(device_id)
        link = self._last_by_id.get(device_id, _NONE) if index is None else self._last_by_index[index]
        return self.in_order[link - 1] if link else None

    def has_before(self, task: Task) -> bool:
        """Say whether a device of this task had another before it."""
        return task.number in self._before

    def before(self, task: Task, device_id: str) -> Task | None:
        """Return the task that one of its devices had before this one."""
        links = self._before.get(task.number)
        if links is None:
            return None
        link = links[list(dict.fromkeys(task.device_ids())).index(device_id)]
        return self.in_order[link - 1] if link else None

    def cancel(self, change: Cancel) -> None:
        """Take down when a task was cancelled."""
        self._canceled[change.number] = change.at

    def canceled_at(self, task: Task) -> float | None:
        """Return when the task was first cancelled, before its lag."""
        return self._canceled.get(task.number) if self._canceled else None


def is_same_request(task: Task, params: Params, targets: list[str]) -> bool:
    """Say whether validated parameters are those the task was made of."""
    return (
        task.command == command_of(params)
        and task.targets == as_raw(targets)
        and task.description == params.get("description")
        and task.tags == as_raw(params.get("tags"))
    )
