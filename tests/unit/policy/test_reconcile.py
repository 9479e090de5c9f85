"""What becomes of one batch: found, absent or unknown, by policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dispatcher.checkpoint.base import Row
from dispatcher.model import BatchState, FoundTask, Part
from dispatcher.policy.reconcile import LAG_S, View, Why, conflicts, decide
from dispatcher.policy.token_window import TokenWindow

NOW = 10_000.0
VIEW = View(now=NOW, window=TokenWindow(600.0), is_complete=True, assume_absent=True, removed=())
TASK = FoundTask("st-1", "arn:st-1", "token")
OTHER = FoundTask("st-2", "arn:st-2", "other", ("b", "c"))


def row(state: BatchState = BatchState.IN_DOUBT, **changes: Any) -> Row:
    """A batch of four that was first sent an hour ago."""
    made = Row(7, 0, 0, ("a", "b", "c", "d"), False, state, 1, NOW - 3_600, NOW, None, None, None, None, None)
    return made._replace(**changes)


def parts(found: Any) -> list[tuple[str, str]]:
    assert found is not None
    return [("".join(part.targets), str(part.state)) for part in found.parts]


@pytest.mark.parametrize("state", [BatchState.IN_DOUBT, BatchState.REJECTED, BatchState.CANCELLED])
def test_a_task_under_its_own_token_is_adopted(state: BatchState) -> None:
    """Whatever was believed of the batch: the task is a fact."""
    ruling, why = decide(row(state), [TASK], {}, VIEW)
    assert ruling is not None
    assert ruling.parts == (Part(("a", "b", "c", "d"), BatchState.ACCEPTED, TASK),)
    assert why is None


@pytest.mark.parametrize("state", [BatchState.ACCEPTED, BatchState.PLANNED])
def test_what_is_accepted_or_planned_is_left_alone(state: BatchState) -> None:
    """A planned batch with a task is first put in doubt with all the others."""
    assert decide(row(state), [TASK], {}, VIEW) == (None, None)


def test_devices_of_another_cut_are_adopted_and_the_rest_is_judged() -> None:
    """The batch is cut by the tasks that have its devices."""
    others = {"b": [OTHER], "c": [OTHER]}
    ruling, _ = decide(row(), [], others, VIEW)
    assert parts(ruling) == [("bc", "accepted"), ("ad", "planned")]
    ruling, why = decide(row(), [], others, replace(VIEW, assume_absent=False))
    assert parts(ruling) == [("bc", "accepted"), ("ad", "in_doubt")]
    assert why is Why.AT_MOST_ONCE
    ruling, _ = decide(row(BatchState.CANCELLED), [], others, VIEW)
    assert parts(ruling) == [("bc", "accepted"), ("ad", "cancelled")]


def test_the_rest_of_a_cut_batch_is_not_said_to_be_resent() -> None:
    """It has another client token than was sent: no resume asks again, whatever the window."""
    young = row(first_sent_at=NOW - 10)
    ruling, why = decide(young, [], {"b": [OTHER]}, VIEW)
    assert (parts(ruling)[-1], why) == (("acd", "in_doubt"), Why.TOO_YOUNG)
    assert ruling is not None
    assert "resume" not in (ruling.message or "")
    assert decide(young, [], {"b": [OTHER]}, replace(VIEW, assume_absent=False))[1] is Why.AT_MOST_ONCE


@pytest.mark.parametrize(
    ("changes", "view", "why"),
    [
        ({"first_sent_at": NOW - 10}, {}, Why.RESENDABLE),
        ({"first_sent_at": NOW - 10}, {"is_complete": False}, Why.RESENDABLE),
        ({}, {"is_complete": False}, Why.INCOMPLETE),
        ({}, {"assume_absent": False}, Why.AT_MOST_ONCE),
        ({"first_sent_at": NOW - 10, "held": 0}, {}, Why.TOO_YOUNG),
        ({"first_sent_at": NOW - 599, "removed": True}, {}, Why.TOO_YOUNG),
        ({"first_sent_at": NOW + 10}, {}, Why.TOO_YOUNG),
        ({"first_sent_at": NOW - 2}, {"window": TokenWindow(1.0)}, Why.TOO_YOUNG),
        ({}, {"unlisted": 1}, Why.UNTRUSTED),
        ({"removed": True}, {"removed": None}, Why.PARKED),
    ],
)
def test_absence_is_concluded_only_where_it_is_sound(
    changes: dict[str, Any], view: dict[str, Any], why: Why
) -> None:
    """Each missing condition keeps the batch in doubt, with the reason."""
    ruling, told = decide(row(**changes), [], {}, replace(VIEW, **view))
    assert told is why
    if ruling is None:
        assert why is Why.RESENDABLE
    else:
        assert parts(ruling) == [("abcd", "in_doubt")]
        assert str(why) in str(ruling.message)


def test_what_harms_nobody_needs_less() -> None:
    """An unlock that is held goes back once a list had time to show it, and though others are not listed."""
    view = replace(VIEW, is_harmful=False, unlisted=3)
    held = row(held=0, first_sent_at=NOW - LAG_S)
    assert parts(decide(held, [], {}, view)[0]) == [("abcd", "planned")]
    assert decide(held, [], {}, VIEW)[1] is Why.TOO_YOUNG


def test_a_device_that_left_the_manifest_is_cancelled() -> None:
    """The rest of its batch goes on; a device that came back goes with it."""
    view = replace(VIEW, removed={"b"})
    ruling, _ = decide(row(removed=True), [], {}, view)
    assert parts(ruling) == [("acd", "planned"), ("b", "cancelled")]
    ruling, _ = decide(row(removed=True, targets=("b",)), [], {}, view)
    assert parts(ruling) == [("b", "cancelled")]
    ruling, _ = decide(row(removed=True), [], {}, VIEW)
    assert parts(ruling) == [("abcd", "planned")]


def test_more_than_one_task_is_a_broken_word() -> None:
    """Two under one token; one under the token and one of another cut; one stored and one listed."""
    second = FoundTask("st-9", None, "token")
    assert conflicts(row(), [TASK], {}) == {}
    assert conflicts(row(), [second, TASK], {}) == {("st-1", "st-9"): ["a", "b", "c", "d"]}
    assert conflicts(row(), [TASK], {"b": [OTHER]}) == {("st-1", "st-2"): ["b"]}
    stored = row(BatchState.ACCEPTED, task_id="st-5")
    assert conflicts(stored, [TASK], {}) == {("st-1", "st-5"): ["a", "b", "c", "d"]}
    assert conflicts(stored, [], {"c": [OTHER]}) == {("st-2", "st-5"): ["c"]}
