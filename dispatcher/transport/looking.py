"""What the reads answer, taken apart with care: whoever answers may not be the service at all."""

from __future__ import annotations

import datetime
from typing import Any, TypeGuard

from dispatcher.model import Answer, Kind
from dispatcher.transport.base import TaskPage, TaskSummary, TaskView, clean


def view_of(response: dict[str, Any], service_now: float | None) -> TaskView | Answer:
    """Read a DescribeTask answer; `service_now` is its Date header in Unix seconds."""
    created_at, targets = response.get("createdAt"), response.get("targets")
    if not isinstance(created_at, datetime.datetime) or not _is_text_list(targets):
        return _unreadable("DescribeTask")
    description = response.get("description")
    return TaskView(
        created_at=created_at.timestamp(),
        service_now=service_now,
        targets=tuple(targets),
        description=description if isinstance(description, str) else None,
        tags=_tags(response.get("tags")),
    )


def page_of(response: dict[str, Any]) -> TaskPage | Answer:
    """Read a ListTasks answer. One without a list of tasks is no page: it must not pass for an empty one."""
    rows, token = response.get("tasks"), response.get("nextToken")
    if not isinstance(rows, list) or not (token is None or isinstance(token, str)):
        return _unreadable("ListTasks")
    found: list[TaskSummary] = []
    for row in rows:
        task_id = row.get("taskId") if isinstance(row, dict) else None
        if not isinstance(task_id, str) or not 1 <= len(task_id) <= 256 or not task_id.isprintable():
            return _unreadable("ListTasks")
        arn = row.get("taskArn")
        named = clean(arn, 2_048) if isinstance(arn, str) else None
        found.append(TaskSummary(task_id, named, _tags(row.get("tags"))))
    return TaskPage(tuple(found), token or None)


def _tags(found: object) -> dict[str, str]:
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, str)}


def _is_text_list(found: object) -> TypeGuard[list[str]]:
    return isinstance(found, list) and all(isinstance(one, str) for one in found)


def _unreadable(operation: str) -> Answer:
    return Answer(kind=Kind.UNREADABLE, code="Unreadable", message=f"no {operation} answer of the service")
