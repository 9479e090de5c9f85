"""The operations on tasks that exist: look at them and their executions, cancel them."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import islice
from typing import TYPE_CHECKING

from dispatcher.emulator.paging import Item, page
from dispatcher.emulator.reply import Method, Params, Reply, arn, invalid, not_found
from dispatcher.emulator.tasks import Cancel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatcher.emulator.config import Config
    from dispatcher.emulator.life import Life, Span
    from dispatcher.emulator.tags import TagStore
    from dispatcher.emulator.tasks import Task, TaskStore


class TaskCalls:
    """Views of one service's tasks, and the cancel."""

    def __init__(self, config: Config, store: TaskStore, life: Life, tags: TagStore) -> None:
        self._config = config
        self._tasks = store
        self._life = life
        self._tags = tags
        self.operations: dict[str, Method] = {
            "CancelTask": self.cancel_task,
            "DescribeExecution": self.describe_execution,
            "DescribeTask": self.describe_task,
            "ListExecutions": self.list_executions,
            "ListTasks": self.list_tasks,
        }

    def cancel_task(self, params: Params, now_s: float, region: str) -> Reply:
        """Cancel what is still QUEUED once the cancel takes effect; refuse where nothing is QUEUED now."""
        task = self._visible(params["taskId"], now_s, region)
        if task is None:
            return not_found(params["taskId"])
        body = {"taskId": task.task_id}
        states = [span.state(now_s) for span in self._life.spans(task).values()]
        if "QUEUED" not in states:
            return invalid(f"task {task.task_id} is not QUEUED any more and cannot be cancelled")
        if self._tasks.canceled_at(task) is not None:  # taken, and not yet in effect
            return Reply(200, body)
        change = Cancel(number=task.number, at=now_s)
        self._tasks.cancel(change)
        self._life.forget()
        return Reply(200, body, change=change)

    def describe_execution(self, params: Params, now_s: float, region: str) -> Reply:
        """Show what one device did with one task."""
        task = self._visible(params["taskId"], now_s, region)
        spans = {} if task is None else self._life.spans(task)
        device_id = params["managedDeviceId"]
        if task is None or device_id not in spans:
            return not_found(f"{params['taskId']} on {device_id}")
        span = spans[device_id]
        number = 1 + list(spans).index(device_id)
        body = _execution(task, number, device_id, span, now_s)
        body["lastUpdatedAt"] = max((at for at in span.changes() if at <= now_s), default=task.created_at)
        if span.begins_at <= now_s and span.canceled_at is None:
            body["startedAt"] = span.begins_at
        return Reply(200, body)

    def describe_task(self, params: Params, now_s: float, region: str) -> Reply:
        """Show one task."""
        task = self._visible(params["taskId"], now_s, region)
        if task is None:
            return not_found(params["taskId"])
        body = self._summary(task, now_s) | {
            "createdAt": task.created_at,
            "lastUpdatedAt": self._life.last_change_at(task, now_s),
            "targets": task.device_ids(),
        }
        if task.description is not None:
            body["description"] = task.description
        ends_at = self._life.completed_at(task)
        if body["state"] != "IN_PROGRESS" and ends_at <= now_s:
            body["completedAt"] = ends_at
        return Reply(200, body)

    def list_executions(self, params: Params, now_s: float, region: str) -> Reply:
        """List the executions of one task, optionally those in one state."""
        task = self._visible(params["taskId"], now_s, region)
        if task is None:
            return not_found(params["taskId"])
        wanted = params.get("state")

        def items(start: int) -> Iterator[Item]:
            for position, (device_id, span) in islice(enumerate(self._life.spans(task).items()), start, None):
                if wanted is None or span.state(now_s) == wanted:
                    yield position, _execution(task, position + 1, device_id, span, now_s)
                elif self._config.page_then_filter:
                    yield position, None

        return page("executions", params, items)

    def list_tasks(self, params: Params, now_s: float, region: str) -> Reply:
        """List tasks in order of creation or against it, optionally those in one state."""
        made = self._tasks.in_order if region == self._config.region else []
        first, end = self._listed(made, now_s)
        wanted = params.get("state")
        is_backward = self._config.list_newest_first

        def items(start: int) -> Iterator[Item]:
            towards = range(min(start, end - 1), first - 1, -1) if is_backward else range(start, end)
            for position in towards:
                if position < first:  # dropped out since the page before
                    continue
                state = None if wanted is None else self._life.task_state(made[position], now_s)
                if state == wanted:
                    yield position, self._summary(made[position], now_s)
                elif self._config.page_then_filter:
                    yield position, None

        return page("tasks", params, items, first=end - 1 if is_backward else first)

    def _listed(self, made: list[Task], now_s: float) -> tuple[int, int]:
        """Return the range of positions whose tasks are old enough, and not too old, to be listed."""
        config, first, end = self._config, 0, len(made)
        keeps_s = min(
            math.inf if config.list_keeps_s is None else config.list_keeps_s,
            math.inf if config.task_keeps_s is None else config.task_keeps_s,
        )
        if keeps_s < math.inf:
            first = bisect_right(made, now_s - keeps_s, key=_created_at)
        if config.list_lag_s:
            end = bisect_right(made, now_s - config.list_lag_s, key=_created_at)
        return first, max(first, end)

    def _visible(self, task_id: str, now_s: float, region: str) -> Task | None:
        return self._tasks.visible(task_id, now_s) if region == self._config.region else None

    def _summary(self, task: Task, now_s: float) -> dict[str, object]:
        return {
            "state": self._life.task_state(task, now_s),
            "tags": self._tags.of_task(task),
            "taskArn": arn(self._config, "task", task.task_id),
            "taskId": task.task_id,
        }


def _created_at(task: Task) -> float:
    return task.created_at


def _execution(task: Task, number: int, device_id: str, span: Span, now_s: float) -> dict[str, object]:
    return {
        "executionId": str(number),
        "managedDeviceId": device_id,
        "state": span.state(now_s),
        "taskId": task.task_id,
    }
