"""The emulator refuses what the service's model refuses, where botocore's own validator is lenient."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.emulator.api import load_api
from dispatcher.emulator.validation import sentence

GOOD: dict[str, Any] = {"command": {"reboot": {}}, "targets": ["smd-1"], "clientToken": "t"}


def problems_of(params: dict[str, Any], operation: str = "CreateTask") -> list[str]:
    problems: list[str] = []
    load_api().operations[operation].check(params, "", problems)
    return problems


@pytest.mark.parametrize(
    "change",
    [
        {"targets": []},
        {"targets": [f"smd-{number}" for number in range(11)]},
        {"targets": "smd-1"},
        {"targets": [1]},
        {"targets": None},
        {"command": {}},
        {"command": {"reboot": {}, "unlock": {}}},
        {"command": {"erase": {}}},
        {"command": {"reboot": None}},
        {"command": {"reboot": []}},
        {"command": "reboot"},
        {"description": ""},
        {"description": "x" * 129},
        {"description": "2026-11-23"},
        {"description": "a:b"},
        {"description": "line\n"},
        {"clientToken": ""},
        {"clientToken": "x" * 65},
        {"clientToken": "a b"},
        {"clientToken": "é"},
        {"clientToken": 7},
        {"tags": {"owner": 1}},
        {"tags": ["owner"]},
    ],
    ids=str,
)
def test_a_parameter_outside_the_model_is_a_problem(change: dict[str, Any]) -> None:
    """Each constraint of CreateTaskInput is enforced."""
    named = {problem.split("'")[1].partition(".")[0] for problem in problems_of(GOOD | change)}
    assert named == set(change)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"targets": [f"smd-{number}" for number in range(10)]},
        {"description": "x" * 128},
        {"description": "Nightly reboot, wave_2. Go! #1"},
        {"clientToken": "!" * 64},
        {"clientToken": None},
        {"tags": {}},
        {"tags": {"owner": "ops"}},
        {"command": {"reboot": {}, "unlock": None}},
        {"unheardOf": 1},
    ],
    ids=str,
)
def test_the_limits_themselves_are_allowed(change: dict[str, Any]) -> None:
    """Values at the bounds, nulls of optional members and unknown members pass."""
    assert problems_of(GOOD | change) == []


def test_required_members_must_be_there() -> None:
    """Every missing member is named."""
    assert [problem.split("'")[1] for problem in problems_of({})] == ["command", "targets"]


@pytest.mark.parametrize("value", [0, 101, "ten", True, 1.5])
def test_a_page_size_must_be_an_integer_from_1_to_100(value: object) -> None:
    """Bounds of integers hold, and a boolean is not one."""
    assert len(problems_of({"maxResults": value}, "ListTasks")) == 1


def test_states_are_an_enumeration() -> None:
    """A state outside the model's list is refused."""
    assert problems_of({"state": "COMPLETED"}, "ListTasks") == []
    assert "enum value set" in problems_of({"state": "DONE"}, "ListTasks")[0]


def test_the_message_counts_its_problems() -> None:
    """The sentence reads as those of AWS services do."""
    message = sentence(problems_of({}))
    assert message.startswith("2 validation errors detected: Value at 'command' failed to satisfy")
