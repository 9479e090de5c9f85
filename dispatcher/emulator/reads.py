"""The operations that only look: DescribeTask, ListDevices, ListExecutions, ListTasks."""

from __future__ import annotations

import base64
import binascii
from itertools import islice
from typing import TYPE_CHECKING

from dispatcher.emulator import tasks as progress
from dispatcher.emulator.reply import Method, Params, Reply, arn, error, not_found

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dispatcher.emulator.config import Config
    from dispatcher.emulator.tasks import Task, TaskStore

PAGE = 100
"""Items of a page without `maxResults`: as many as shape MaxResults allows."""

Item = tuple[int, dict[str, object]]
"""(position, what is listed): a next token names the position it goes on from."""


class Reads:
    """Views of one service's fleet and tasks."""

    def __init__(self, config: Config, store: TaskStore) -> None:
        self._config = config
        self._tasks = store
        self.operations: dict[str, Method] = {
            "DescribeTask": self.describe_task,
            "ListDevices": self.list_devices,
            "ListExecutions": self.list_executions,
            "ListTasks": self.list_tasks,
        }

    def describe_task(self, params: Params, now_s: float, region: str) -> Reply:
        """Show one task."""
        task = self._visible(params["taskId"], region)
        if task is None:
            return not_found(params["taskId"])
        body = self._summary(task, now_s) | {
            "createdAt": task.created_at,
            "lastUpdatedAt": progress.last_change_at(self._config, task, now_s),
            "targets": task.device_ids(),
        }
        if task.description is not None:
            body["description"] = task.description
        if body["state"] == "COMPLETED":
            body["completedAt"] = progress.completed_at(self._config, task)
        return Reply(200, body)

    def list_executions(self, params: Params, now_s: float, region: str) -> Reply:
        """List the executions of one task, optionally those in one state."""
        task = self._visible(params["taskId"], region)
        if task is None:
            return not_found(params["taskId"])
        wanted = params.get("state")

        def items(start: int) -> Iterator[Item]:
            shown = progress.device_executions(self._config, task, now_s)
            for position, execution in islice(enumerate(shown), start, None):
                if wanted is None or execution["state"] == wanted:
                    yield position, execution

        return _page("executions", params, items)

    def list_tasks(self, params: Params, now_s: float, region: str) -> Reply:
        """List tasks in order of creation, optionally those in one state."""
        made = self._tasks.in_order if region == self._config.region else []
        wanted = params.get("state")

        def items(start: int) -> Iterator[Item]:
            for position in range(start, len(made)):
                summary = self._summary(made[position], now_s)
                if wanted is None or summary["state"] == wanted:
                    yield position, summary

        return _page("tasks", params, items)

    def list_devices(self, params: Params, now_s: float, region: str) -> Reply:  # noqa: ARG002
        """List the fleet; no device of it belongs to a job, so a job filter finds none."""
        fleet = self._config.fleet
        count = len(fleet) if region == self._config.region and params.get("jobId") is None else 0

        def items(start: int) -> Iterator[Item]:
            for position in range(start, count):
                device_id = fleet.id_at(position)
                if device_id not in self._config.bad_ids:
                    device_arn = arn(self._config, "managed-device", device_id)
                    yield (
                        position,
                        {"managedDeviceArn": device_arn, "managedDeviceId": device_id, "tags": {}},
                    )

        return _page("devices", params, items)

    def _visible(self, task_id: str, region: str) -> Task | None:
        return self._tasks.get(task_id) if region == self._config.region else None

    def _summary(self, task: Task, now_s: float) -> dict[str, object]:
        return {
            "state": progress.task_state(self._config, task, now_s),
            "tags": task.tag_map(),
            "taskArn": arn(self._config, "task", task.task_id),
            "taskId": task.task_id,
        }


def _page(name: str, params: Params, items: Callable[[int], Iterator[Item]]) -> Reply:
    """Answer with one page of the items from the position that the next token names."""
    start = _position(name, params.get("nextToken"))
    if start is None:
        return error("ValidationException", "nextToken is not one that this operation gave")
    size = params.get("maxResults") or PAGE
    found = list(islice(items(start), size + 1))
    body: dict[str, object] = {name: [item for _, item in found[:size]]}
    if len(found) > size:
        body["nextToken"] = base64.b64encode(f"{name}:{found[size][0]}".encode()).decode()
    return Reply(200, body)


def _position(name: str, next_token: str | None) -> int | None:
    """Return the position a next token stands for, 0 without one, None for one that is not ours."""
    if next_token is None:
        return 0
    try:
        found, _, position = base64.b64decode(next_token, validate=True).decode("ascii").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return int(position) if found == name and position.isdigit() and len(position) < 19 else None
