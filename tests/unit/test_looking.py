"""The reads' answers: whatever else answers must not pass for an empty list or a task."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from dispatcher.model import Answer, Kind
from dispatcher.transport.base import TaskPage, TaskSummary, TaskView
from dispatcher.transport.looking import page_of, view_of

CREATED = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
ROW = {"taskId": "st-1", "taskArn": "arn:1", "state": "COMPLETED", "tags": {"a": "b"}}


def test_a_page_is_read() -> None:
    """Ids, ARNs and tags; the end has no token, and an empty one is none."""
    page = page_of({"tasks": [ROW, {"taskId": "st-2"}], "nextToken": "n"})
    assert page == TaskPage((TaskSummary("st-1", "arn:1", {"a": "b"}), TaskSummary("st-2", None, {})), "n")
    for end in ({}, {"nextToken": ""}):
        assert page_of({"tasks": []} | end) == TaskPage((), None)


@pytest.mark.parametrize(
    "response",
    [
        {},
        {"tasks": None},
        {"tasks": "none"},
        {"tasks": [{}]},
        {"tasks": ["st-1"]},
        {"tasks": [{"taskId": ""}]},
        {"tasks": [{"taskId": "st\n1"}]},
        {"tasks": [], "nextToken": 7},
    ],
)
def test_what_is_no_page_is_no_answer(response: dict[str, Any]) -> None:
    """An answer without tasks would prove every task absent."""
    answer = page_of(response)
    assert isinstance(answer, Answer)
    assert answer.kind is Kind.UNREADABLE


def test_a_task_is_read() -> None:
    """With devices, instant and description; what is missing of tags is none."""
    view = view_of({"createdAt": CREATED, "targets": ["b", "a"], "description": "d"}, 5.0)
    assert view == TaskView(CREATED.timestamp(), 5.0, ("b", "a"), "d", {})


@pytest.mark.parametrize("response", [{}, {"createdAt": CREATED}, {"createdAt": 5, "targets": ["a"]},
                                      {"createdAt": CREATED, "targets": [1]}])  # fmt: skip
def test_what_is_no_task_is_no_answer(response: dict[str, Any]) -> None:
    """Nothing is matched by half a description."""
    assert isinstance(view_of(response, None), Answer)
