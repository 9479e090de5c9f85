"""Devices live: one task at a time, seeded endings, cancels, and a past that never changes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.emulator.config import Config, Ending
from dispatcher.emulator.fleet import AnyFleet, GeneratedFleet, fleet_id
from dispatcher.emulator.service import Service

if TYPE_CHECKING:
    from dispatcher.emulator.reply import Reply

DEVICE = fleet_id(0)


def create(
    service: Service, now_s: float, command: str = "reboot", targets: tuple[str, ...] = (DEVICE,)
) -> str:
    sent = {"command": {command: {}}, "targets": list(targets)}
    reply = service.handle("CreateTask", sent, now_s)
    assert reply.status == 200, reply
    return str(reply.body["taskId"])


def execution(service: Service, task_id: str, now_s: float, device: str = DEVICE) -> dict[str, Any]:
    sent = {"taskId": task_id, "managedDeviceId": device}
    return dict(service.handle("DescribeExecution", sent, now_s).body)


def state(service: Service, task_id: str, now_s: float) -> str:
    return str(execution(service, task_id, now_s)["state"])


def describe(service: Service, now_s: float, device: str = DEVICE) -> dict[str, Any]:
    return dict(service.handle("DescribeDevice", {"managedDeviceId": device}, now_s).body)


def cancel(service: Service, task_id: str, now_s: float) -> Reply:
    return service.handle("CancelTask", {"taskId": task_id}, now_s)


@pytest.mark.parametrize("fleet", [AnyFleet(), GeneratedFleet(3)])
def test_a_device_runs_one_task_at_a_time_in_order(fleet: Any) -> None:
    """The next task begins when the one before it has ended, not sooner."""
    service = Service(Config(fleet=fleet))
    tasks = [create(service, 0.0) for _ in range(4)]
    for tenth in range(500):
        states = [state(service, task, tenth / 10) for task in tasks]
        assert states.count("IN_PROGRESS") <= 1
        assert states == sorted(states, key=["SUCCEEDED", "IN_PROGRESS", "QUEUED"].index)
    assert set(states) == {"SUCCEEDED"}


def test_endings_have_their_shares() -> None:
    """Of many executions each ending gets about its share, and all end within `settle_s`."""
    shares = {Ending.FAILED: 0.2, Ending.REJECTED: 0.1, Ending.TIMED_OUT: 0.1}
    service = Service(Config(endings=shares, settle_s=5))
    counts: Counter[str] = Counter()
    for batch in range(100):
        targets = tuple(f"d{batch}-{number}" for number in range(10))
        task = create(service, 0.0, targets=targets)
        listed: Any = service.handle("ListExecutions", {"taskId": task}, 5.0).body["executions"]
        counts.update(entry["state"] for entry in listed)
        assert service.handle("DescribeTask", {"taskId": task}, 5.0).body["state"] == "COMPLETED"
    assert set(counts) == {"FAILED", "REJECTED", "TIMED_OUT", "SUCCEEDED"}
    assert 150 < counts["FAILED"] < 250
    assert 60 < counts["REJECTED"] < 140


def test_offline_devices_never_pick_up() -> None:
    """Their executions stay QUEUED, their task IN_PROGRESS, until it is cancelled."""
    service = Service(Config(offline=1.0))
    task = create(service, 1e9)
    assert state(service, task, 2e9) == "QUEUED"
    body = service.handle("DescribeTask", {"taskId": task}, 2e9).body
    assert (body["state"], "completedAt" in body) == ("IN_PROGRESS", False)
    assert describe(service, 1e9)["lastReachedOutAt"] == describe(service, 1e9)["lastUpdatedAt"]
    assert cancel(service, task, 2e9).status == 200
    assert state(service, task, 2e9 + 0.5) == "CANCELED"
    assert service.handle("DescribeTask", {"taskId": task}, 2e9 + 0.5).body["completedAt"] == 2e9 + 0.5


def test_the_share_of_offline_devices_is_of_devices() -> None:
    """A device that is offline for one task is offline for all."""
    service = Service(Config(offline=0.5))
    targets = tuple(f"d{number}" for number in range(10))
    seen = [
        {device for device in targets if execution(service, task, 1e3, device)["state"] == "QUEUED"}
        for task in [create(service, 0.0, targets=targets) for _ in range(3)]
    ]
    assert seen[0] == seen[1] == seen[2]
    assert 0 < len(seen[0]) < 10


def test_commands_change_the_device() -> None:
    """An unlock passes UNLOCKING to UNLOCKED, a reboot locks again, and a failure changes nothing."""
    service = Service(Config(locked=1.0))
    assert describe(service, 0.0)["deviceState"] == "LOCKED"
    create(service, 0.0, "unlock")
    seen = [describe(service, tenth / 10)["deviceState"] for tenth in range(101)]
    assert list(dict.fromkeys(seen)) == ["LOCKED", "UNLOCKING", "UNLOCKED"]
    create(service, 20.0, "reboot")
    assert describe(service, 30.0)["deviceState"] == "LOCKED"
    broken = Service(Config(locked=1.0, endings={Ending.FAILED: 1.0}))
    create(broken, 0.0, "unlock")
    assert describe(broken, 10.0)["deviceState"] == "LOCKED"


def test_a_device_calls_home() -> None:
    """Never in the future, at least every `reach_out_s`, at each step, and not while it reboots."""
    service = Service(Config(reach_out_s=1.0))
    task = create(service, 100.0)
    before = 0.0
    for tenth in range(1000, 1300):
        now_s = tenth / 10
        reached = describe(service, now_s)["lastReachedOutAt"]
        assert before <= reached <= now_s
        before = reached
        shown = execution(service, task, now_s)
        if shown["state"] == "IN_PROGRESS":
            assert reached == shown["startedAt"]
        else:
            assert now_s - reached <= 1.0


def test_a_cancel_stops_what_is_queued() -> None:
    """Once in effect, queued executions are CANCELED, running ones go on, and the task is CANCELED."""
    service = Service(Config(cancel_lag_s=0.0))
    targets = tuple(f"d{number}" for number in range(10))
    task = create(service, 0.0, targets=targets)
    before = {device: execution(service, task, 2.0, device)["state"] for device in targets}
    assert len(set(before.values())) > 1
    assert cancel(service, task, 2.0).body == {"taskId": task}
    after = {device: execution(service, task, 10.0, device)["state"] for device in targets}
    assert after == {d: "CANCELED" if s == "QUEUED" else "SUCCEEDED" for d, s in before.items()}
    assert service.handle("DescribeTask", {"taskId": task}, 10.0).body["state"] == "CANCELED"


def test_a_cancel_is_refused_where_nothing_is_queued() -> None:
    """Running, ended and cancelled tasks are ValidationExceptions, an unknown one 404."""
    service = Service(Config())
    task = create(service, 0.0)
    assert cancel(service, task, 10.0).code == "ValidationException"
    other = create(service, 20.0)
    assert cancel(service, other, 20.0).status == 200
    assert cancel(service, other, 20.1).status == 200  # taken, not yet in effect
    assert cancel(service, other, 40.0).code == "ValidationException"
    assert cancel(service, "st-0", 0.0).status == 404


def test_a_cancel_may_come_too_late() -> None:
    """What begins within the lag runs, though the cancel was taken: its race."""
    service = Service(Config(cancel_lag_s=100.0))
    task = create(service, 0.0)
    assert cancel(service, task, 0.0).status == 200
    assert state(service, task, 10.0) == "SUCCEEDED"
    assert service.handle("DescribeTask", {"taskId": task}, 10.0).body["state"] == "COMPLETED"


RANK = {"QUEUED": 0, "IN_PROGRESS": 1, "SUCCEEDED": 2, "FAILED": 2, "CANCELED": 2}
steps = st.lists(
    st.tuples(st.sampled_from(["create", "cancel"]), st.integers(0, 5), st.floats(0, 4)), max_size=25
)


@given(steps, st.sampled_from([0.0, 0.5, 3.0]))
def test_the_past_never_changes(history: list[tuple[str, int, float]], lag_s: float) -> None:
    """Whatever is created or cancelled later, states move forward, and an end that was seen stays."""
    service = Service(Config(cancel_lag_s=lag_s, endings={Ending.FAILED: 0.3}))
    tasks: list[str] = []
    seen: dict[str, str] = {}
    now_s = 0.0
    for step, number, wait_s in history:
        if step == "create":
            tasks.append(create(service, now_s))
        elif tasks:
            cancel(service, tasks[number % len(tasks)], now_s)
        now_s += wait_s
        found = {task: state(service, task, now_s) for task in tasks}
        assert list(found.values()).count("IN_PROGRESS") <= 1
        for task, old in seen.items():
            assert RANK[found[task]] > RANK[old] or found[task] == old
            assert not (old == "IN_PROGRESS" and found[task] == "CANCELED")
        seen = found


def test_state_costs_nothing_until_it_is_looked_at() -> None:
    """A task of a device that had none leaves one array element; nothing is drawn or linked for it."""
    service = Service(Config(fleet=GeneratedFleet(1000)))
    for number in range(100):
        create(service, 0.0, targets=tuple(fleet_id(10 * number + index) for index in range(10)))
    assert service.tasks._before == {}
    assert service._life._spans == {}
