"""The pure service: CreateTask's promises, reads, order of checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.emulator.config import Config, Mismatch
from dispatcher.emulator.fleet import GeneratedFleet, ListedFleet, fleet_id
from dispatcher.emulator.service import Service
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from dispatcher.emulator.reply import Reply


def params(token: str | None = "t1", *targets: str, **other: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"command": {"reboot": {}}, "targets": list(targets or ("smd-a",)), **other}
    return body if token is None else body | {"clientToken": token}


def create(service: Service, now_s: float = 0.0, **change: Any) -> Reply:
    return service.handle("CreateTask", params() | change, now_s)


def test_a_task_has_an_id_and_an_arn_of_the_services_shape() -> None:
    """Ids are `st-` and 16 lower-case alphanumerics; the ARN names region and account."""
    reply = create(Service(Config()))
    task_id = str(reply.body["taskId"])
    assert (reply.status, reply.created) == (200, True)
    assert task_id[:3] == "st-"
    assert len(task_id) == 19
    assert task_id[3:].isalnum()
    assert task_id.islower()
    assert reply.body["taskArn"] == f"arn:aws:snow-device-management:us-west-2:123456789012:task/{task_id}"


def test_the_same_token_within_the_window_gives_the_same_task() -> None:
    """A replay makes nothing and says nothing new."""
    service = Service(Config(token_window_s=10))
    first, replay = create(service), create(service, 9.99)
    assert replay.body == first.body
    assert (replay.created, replay.replayed, len(service.tasks)) == (False, True, 1)


def test_a_token_past_its_window_is_a_new_request() -> None:
    """At the window's end the token is forgotten, and then names the second task."""
    service = Service(Config(token_window_s=10))
    first, second = create(service), create(service, 10.0)
    assert second.created
    assert second.body != first.body
    assert create(service, 19.0).body == second.body


def test_calls_without_a_token_are_never_replays() -> None:
    """Idempotency needs the token."""
    service = Service(Config())
    replies = [service.handle("CreateTask", params(None), 0.0) for _ in range(2)]
    assert [reply.created for reply in replies] == [True, True]


@pytest.mark.parametrize(
    "change",
    [
        {"targets": ["smd-b"]},
        {"command": {"unlock": {}}},
        {"description": "x"},
        {"tags": {"a": "b"}},
    ],
    ids=str,
)
def test_a_token_with_other_parameters_is_refused_in_words(change: dict[str, Any]) -> None:
    """Every parameter counts, and the message speaks of the token."""
    service = Service(Config())
    create(service)
    reply = create(service, **change)
    assert (reply.status, reply.code, len(service.tasks)) == (400, "ValidationException", 1)
    assert "token was already used with different parameters" in str(reply.body["message"])


def test_equal_parameters_may_be_spelt_differently() -> None:
    """The order of tags, and null for absent, are no difference."""
    service = Service(Config())
    create(service, tags={"a": "1", "b": "2"}, description=None)
    assert create(service, tags={"b": "2", "a": "1"}).replayed


@pytest.mark.parametrize(("mode", "tasks"), [(Mismatch.FIRST, 1), (Mismatch.NEW, 2)])
def test_a_mismatch_may_be_silent_instead(mode: Mismatch, tasks: int) -> None:
    """`first` answers with the first task, `new` makes another that the token names from then on."""
    service = Service(Config(mismatch=mode))
    first, second = create(service), create(service, targets=["smd-b"])
    assert (second.status, len(service.tasks)) == (200, tasks)
    assert (second.body == first.body) == (tasks == 1)
    assert create(service, targets=["smd-b"]).body == second.body


def test_one_unknown_device_refuses_the_whole_call() -> None:
    """All or nothing, and the message names the device."""
    service = Service(Config(fleet=GeneratedFleet(2), bad_ids=frozenset({fleet_id(1)})))
    for bad in (fleet_id(1), fleet_id(2), "smd-nowhere"):
        reply = create(service, targets=[fleet_id(0), bad])
        assert (reply.status, reply.code) == (404, "ResourceNotFoundException")
        assert bad in str(reply.body["message"])
    assert len(service.tasks) == 0
    assert create(service, targets=[fleet_id(0)]).created


def test_another_region_sees_nothing() -> None:
    """Devices, tasks and tokens live in one region."""
    service = Service(Config(fleet=ListedFleet(["smd-a"])))
    task_id = create(service).body["taskId"]
    for operation, sent in (("CreateTask", params()), ("DescribeTask", {"taskId": task_id})):
        assert service.handle(operation, sent, 0.0, region="eu-west-1").status == 404
    assert service.handle("ListDevices", {}, 0.0, region="eu-west-1").body == {"devices": []}
    assert service.handle("ListTasks", {}, 0.0, region="eu-west-1").body == {"tasks": []}
    assert service.handle("ListDevices", {}, 0.0, region="us-west-2").body != {"devices": []}


def test_the_bucket_admits_rate_times_time_plus_burst() -> None:
    """Throttled calls get the modelled 429 and cost no permit."""
    service = Service(Config(rate_per_s=10, burst=5))
    replies = [service.handle("CreateTask", params(f"t{number}"), number / 1000) for number in range(1000)]
    admitted = sum(reply.status == 200 for reply in replies)
    assert 14 <= admitted <= 15  # 5 + 10 * 0.999
    throttled = replies[20]
    assert (throttled.status, throttled.code) == (429, "ThrottlingException")


def test_the_burst_defaults_to_one_second() -> None:
    """An idle bucket holds a second's worth and no more."""
    service = Service(Config(rate_per_s=3))
    replies = [service.handle("CreateTask", params(f"t{number}"), 100.0) for number in range(5)]
    assert [reply.status for reply in replies] == [200, 200, 200, 429, 429]


def test_a_replay_costs_a_permit_and_a_refused_parameter_none() -> None:
    """Validation comes before the bucket, the bucket before the token."""
    service = Service(Config(rate_per_s=1, burst=2))
    create(service)
    assert create(service, targets=[]).status == 400
    assert create(service).replayed
    assert create(service).status == 429


def test_a_replay_passes_quota_and_existence() -> None:
    """A known token is answered as the first time, whatever happened since."""
    service = Service(Config(quota=1))
    create(service)
    assert create(service).replayed
    reply = create(service, clientToken="t2")
    assert (reply.status, reply.code) == (402, "ServiceQuotaExceededException")


def test_a_quota_may_free_itself() -> None:
    """A task stops counting at the configured age."""
    service = Service(Config(quota=1, quota_frees_s=5))
    create(service)
    assert create(service, 4.9, clientToken="t2").status == 402
    assert create(service, 5.0, clientToken="t2").status == 200


def test_denied_operations_get_403() -> None:
    """Denial precedes validation; tags need TagResource too."""
    service = Service(Config(deny=frozenset({"ListTasks", "TagResource"})))
    assert service.handle("ListTasks", {"maxResults": 0}, 0.0).code == "AccessDeniedException"
    assert create(service, tags={"a": "b"}).status == 403
    assert create(service).status == 200
    assert create(Service(Config(deny=frozenset({"all"})))).status == 403


def test_executions_go_from_queued_to_succeeded_and_tasks_follow() -> None:
    """States only move forward, and a task completes with its last execution."""
    service = Service(Config(settle_s=10))
    targets = [f"smd-{number}" for number in range(10)]
    task_id = create(service, targets=targets).body["taskId"]
    rank = {"QUEUED": 0, "IN_PROGRESS": 1, "SUCCEEDED": 2}
    seen: set[str] = set()
    before = [0] * 10
    for tenth in range(101):
        now_s = tenth / 10
        listed: Any = service.handle("ListExecutions", {"taskId": task_id}, now_s).body["executions"]
        states = [execution["state"] for execution in listed]
        ranks = [rank[state] for state in states]
        assert all(new >= old for new, old in zip(ranks, before, strict=True))
        before, seen = ranks, seen | set(states)
        task = service.handle("DescribeTask", {"taskId": task_id}, now_s).body
        assert (task["state"] == "COMPLETED") == (set(states) == {"SUCCEEDED"})
        assert ("completedAt" in task) == (task["state"] == "COMPLETED")
    assert seen == set(rank)


def test_executions_filter_by_state() -> None:
    """A state that no device is in lists nothing."""
    service = Service(Config())
    task_id = create(service, targets=["a", "b"]).body["taskId"]
    late = {"taskId": task_id, "state": "SUCCEEDED"}
    assert service.handle("ListExecutions", late, 0.0).body == {"executions": []}
    found: Any = service.handle("ListExecutions", late, 10.0).body["executions"]
    assert [execution["managedDeviceId"] for execution in found] == ["a", "b"]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_pages_cover_everything_once(size: int) -> None:
    """Following next tokens lists each item once, in order."""
    service = Service(Config(fleet=GeneratedFleet(7), bad_ids=frozenset({fleet_id(2)})))
    seen: list[str] = []
    sent: dict[str, Any] = {"maxResults": size}
    while True:
        body: Any = service.handle("ListDevices", sent, 0.0).body
        seen += [device["managedDeviceId"] for device in body["devices"]]
        if "nextToken" not in body:
            break
        sent["nextToken"] = body["nextToken"]
    assert seen == [fleet_id(index) for index in (0, 1, 3, 4, 5, 6)]


@pytest.mark.parametrize("token", ["x", "AAAA", "dGFza3M6MQ==", "ZGV2aWNlczot"])
def test_a_foreign_next_token_is_refused(token: str) -> None:
    """Garbage and another operation's token are validation errors."""
    reply = Service(Config()).handle("ListDevices", {"nextToken": token}, 0.0)
    assert reply.code == "ValidationException"


def test_tasks_filter_by_state() -> None:
    """The state filter looks at the task's state now."""
    service = Service(Config())
    create(service, 0.0)
    create(service, 100.0, clientToken="t2")
    done: Any = service.handle("ListTasks", {"state": "COMPLETED"}, 100.0).body["tasks"]
    going: Any = service.handle("ListTasks", {"state": "IN_PROGRESS"}, 100.0).body["tasks"]
    assert (len(done), len(going)) == (1, 1)


@pytest.mark.parametrize("operation", ["DescribeTask", "ListExecutions"])
def test_an_unknown_task_is_not_found(operation: str) -> None:
    """Reads of a task that never was are 404."""
    assert Service(Config()).handle(operation, {"taskId": "st-0"}, 0.0).status == 404


@pytest.mark.parametrize(
    "setting",
    [
        {"rate_per_s": 0},
        {"rate_per_s": 1, "burst": 0.5},
        {"burst": 2},
        {"quota": -1},
        {"token_window_s": float("nan")},
        {"latency_jitter": 1.5},
        {"settle_s": float("inf")},
        {"account": "1"},
        {"region": ""},
        {"deny": frozenset({"Nothing"})},
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_refused(setting: dict[str, Any]) -> None:
    """Every setting has its range."""
    with pytest.raises(UsageError):
        Config(**setting)
