"""Whatever is unknown of the real service is a setting, and each alternative is modelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.emulator.config import BadTarget, Config, Mismatch, parse_ending
from dispatcher.emulator.fleet import GeneratedFleet, fleet_id, job_id, job_index
from dispatcher.emulator.service import Service
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from dispatcher.emulator.reply import Reply

GOOD, BAD = fleet_id(0), fleet_id(5)


def create(service: Service, token: str, *targets: str, now_s: float = 0.0, **more: Any) -> Reply:
    sent = {"command": {"reboot": {}}, "targets": list(targets or (GOOD,)), "clientToken": token}
    return service.handle("CreateTask", sent | more, now_s)


def listed(service: Service, now_s: float, **params: Any) -> list[str]:
    """Follow next tokens to the end."""
    found: list[str] = []
    while True:
        body: Any = service.handle("ListTasks", params, now_s).body
        found += [entry["taskId"] for entry in body["tasks"]]
        if "nextToken" not in body:
            return found
        params["nextToken"] = body["nextToken"]


# ------------------------------------------------------------------------------ client tokens


def test_a_service_may_forget_tokens() -> None:
    """A forgotten token makes another task each time: what a client must notice, not cause."""
    service = Service(Config(forget_tokens=1.0))
    assert [create(service, "t").created for _ in range(3)] == [True, True, True]
    some = Service(Config(forget_tokens=0.5))
    for token in map(str, range(200)):
        create(some, token)
        create(some, token)
    assert 250 < len(some.tasks) < 350


@pytest.mark.parametrize(
    ("mode", "status", "code"),
    [
        (Mismatch.PARAMETERS, 400, "IdempotentParameterMismatchException"),
        (Mismatch.CONFLICT, 409, "ConflictException"),
    ],
)
def test_a_mismatch_may_have_a_code_of_its_own(mode: Mismatch, status: int, code: str) -> None:
    """As sister services answer it; nothing is made."""
    service = Service(Config(mismatch=mode))
    create(service, "t", GOOD)
    reply = create(service, "t", BAD)
    assert (reply.status, reply.code, len(service.tasks)) == (status, code, 1)


# -------------------------------------------------------------------------------- bad targets


@pytest.mark.parametrize(
    ("mode", "status", "targets"),
    [
        (BadTarget.NOT_FOUND, 404, None),
        (BadTarget.VALIDATION, 400, None),
        (BadTarget.SKIP, 200, [GOOD]),
        (BadTarget.ACCEPT, 200, [GOOD, BAD]),
    ],
)
def test_one_bad_target_of_two(mode: BadTarget, status: int, targets: list[str] | None) -> None:
    """It fails the call, is left out, or is taken; a replay is answered as the first call was."""
    service = Service(Config(fleet=GeneratedFleet(5), bad_target=mode))
    reply = create(service, "t", GOOD, BAD)
    assert reply.status == status
    assert (None if reply.task is None else reply.task.device_ids()) == targets
    again = create(service, "t", GOOD, BAD)
    assert (again.status, again.body) == (status, reply.body)
    assert again.replayed is (status == 200)


def test_a_bad_target_alone() -> None:
    """Skipping leaves nothing and is a 404; accepting makes a task that never ends."""
    assert create(Service(Config(fleet=GeneratedFleet(5), bad_target=BadTarget.SKIP)), "t", BAD).status == 404
    service = Service(Config(fleet=GeneratedFleet(5), bad_target=BadTarget.ACCEPT))
    task_id = create(service, "t", BAD).body["taskId"]
    assert service.handle("DescribeTask", {"taskId": task_id}, 1e6).body["state"] == "IN_PROGRESS"


# ---------------------------------------------------------------------------------- ListTasks


def test_list_tasks_may_lag_and_forget() -> None:
    """A task shows from one age to another; DescribeTask knows it all the while."""
    service = Service(Config(list_lag_s=2.0, list_keeps_s=10.0))
    task_id = str(create(service, "t", now_s=100.0).body["taskId"])
    assert [bool(listed(service, 100.0 + age)) for age in (0, 1.9, 2, 9.9, 10)] == [0, 0, 1, 1, 0]
    assert service.handle("DescribeTask", {"taskId": task_id}, 200.0).status == 200


def test_tasks_may_vanish_from_everything() -> None:
    """Past `task_keeps_s` no operation knows it, while its client token still may."""
    service = Service(Config(task_keeps_s=10.0))
    task_id = str(create(service, "t").body["taskId"])
    for operation in ("DescribeTask", "CancelTask", "ListExecutions"):
        assert service.handle(operation, {"taskId": task_id}, 10.0).status == 404
    assert listed(service, 10.0) == []
    assert create(service, "t", now_s=10.0).replayed


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_list_tasks_has_either_order(newest_first: bool, size: int) -> None:
    """Every page's next token goes on where it ended, in both directions."""
    service = Service(Config(list_newest_first=newest_first, list_lag_s=1.0, list_keeps_s=100.0))
    made = [str(create(service, f"t{number}", now_s=float(number)).body["taskId"]) for number in range(8)]
    expected = made[:7]  # the eighth is too young
    assert listed(service, 7.5, maxResults=size) == (expected[::-1] if newest_first else expected)


def test_a_task_made_between_two_pages_shifts_nothing() -> None:
    """Newest first, a new task does not make a page repeat another."""
    service = Service(Config(list_newest_first=True))
    made = [create(service, f"t{number}").body["taskId"] for number in range(4)]
    page: Any = service.handle("ListTasks", {"maxResults": 2}, 0.0).body
    create(service, "late")
    rest: Any = service.handle("ListTasks", {"maxResults": 5, "nextToken": page["nextToken"]}, 0.0).body
    assert [entry["taskId"] for entry in rest["tasks"]] == made[1::-1]


def test_a_filter_may_leave_empty_pages() -> None:
    """Pages cut before the filter are short or empty, have next tokens, and lose nothing."""
    service = Service(Config(page_then_filter=True))
    made = [str(create(service, f"t{number}", now_s=100.0 * number).body["taskId"]) for number in range(5)]
    first: Any = service.handle("ListTasks", {"maxResults": 2, "state": "IN_PROGRESS"}, 400.0).body
    assert first["tasks"] == []
    assert "nextToken" in first
    assert listed(service, 400.0, maxResults=2, state="IN_PROGRESS") == made[4:]


# ----------------------------------------------------------------------------------- throttle


def test_reads_have_a_rate_of_their_own() -> None:
    """It is shared by all that model a throttle; tag operations do not, and CreateTask has its own."""
    service = Service(Config(read_rate_per_s=1.0, read_burst=2.0))
    replies = [service.handle("ListTasks", {}, 0.0), service.handle("ListDevices", {}, 0.0)]
    assert [reply.status for reply in replies] == [200, 200]
    assert service.handle("ListTasks", {}, 0.0).code == "ThrottlingException"
    made = create(service, "t")
    assert made.status == 200
    assert service.handle("ListTagsForResource", {"resourceArn": made.body["taskArn"]}, 0.0).status == 200
    assert service.handle("ListTasks", {}, 1.0).status == 200


def test_all_may_share_one_rate() -> None:
    """Then reads spend CreateTask's permits."""
    service = Service(Config(rate_per_s=2.0, shared_rate=True))
    assert service.handle("ListTasks", {}, 0.0).status == 200
    assert [create(service, token).status for token in "ab"] == [200, 429]


# --------------------------------------------------------------------------------------- tags


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"": "x"}, "keys have 1 to 8"),
        ({"k" * 9: "x"}, "keys have 1 to 8"),
        ({"k": "v" * 5}, "values have at most 4"),
        ({"AWS:k": "v"}, "do not begin with aws:"),
        ({"a": "", "b": "", "c": ""}, "at most 2 tags"),
    ],
    ids=str,
)
def test_tags_have_limits(tags: dict[str, str], words: str) -> None:
    """Beyond them CreateTask and TagResource are ValidationExceptions, and nothing changes."""
    service = Service(Config(max_tags=2, max_tag_key=8, max_tag_value=4))
    refused = create(service, "t", tags=tags)
    assert (refused.code, len(service.tasks)) == ("ValidationException", 0)
    arn = create(service, "t", tags={"a": "1"}).body["taskArn"]
    reply = service.handle("TagResource", {"resourceArn": arn, "tags": tags}, 0.0)
    assert reply.code == "ValidationException"
    assert words in str(reply.body["message"])
    assert service.handle("ListTagsForResource", {"resourceArn": arn}, 0.0).body == {"tags": {"a": "1"}}


def test_the_limit_counts_what_is_held() -> None:
    """A new value for a key takes no room, another key does."""
    service = Service(Config(max_tags=1))
    arn = create(service, "t", tags={"a": "1"}).body["taskArn"]
    assert service.handle("TagResource", {"resourceArn": arn, "tags": {"a": "2"}}, 0.0).status == 200
    assert service.handle("TagResource", {"resourceArn": arn, "tags": {"b": "2"}}, 0.0).status == 400


def test_tags_of_a_task_do_not_touch_its_token() -> None:
    """A retagged task is still the one its first request made, and shows its new tags everywhere."""
    service = Service(Config())
    made = create(service, "t", tags={"a": "1"})
    service.handle("TagResource", {"resourceArn": made.body["taskArn"], "tags": {"b": "2"}}, 0.0)
    assert create(service, "t", tags={"a": "1"}).replayed
    for operation in ("DescribeTask", "ListTasks"):
        body: Any = service.handle(operation, {"taskId": made.body["taskId"]}, 0.0).body
        shown = body["tasks"][0] if operation == "ListTasks" else body
        assert shown["tags"] == {"a": "1", "b": "2"}


ARN = "arn:aws:snow-device-management:us-west-2:123456789012:"


@pytest.mark.parametrize(
    ("arn", "status"),
    [
        (f"{ARN}managed-device/{GOOD}", 200),
        (f"{ARN}managed-device/{BAD}", 404),
        (f"{ARN}task/st-0", 404),
        (ARN.replace("us-west-2", "eu-west-1") + f"managed-device/{GOOD}", 404),
        (ARN.replace("123456789012", "210987654321") + f"managed-device/{GOOD}", 404),
        (ARN.replace("aws:", "aws-cn:") + f"managed-device/{GOOD}", 404),
        (f"{ARN}fleet/{GOOD}", 400),
        (f"{ARN}task/", 400),
        ("smd-a", 400),
    ],
    ids=str,
)
def test_a_resource_is_found_by_its_arn(arn: str, status: int) -> None:
    """Account, region and partition count; what is no ARN of this service is a bad request."""
    service = Service(Config(fleet=GeneratedFleet(5)))
    for operation, more in (("TagResource", {"tags": {}}), ("UntagResource", {"tagKeys": []})):
        assert service.handle(operation, {"resourceArn": arn, **more}, 0.0).status == status
    assert service.handle("ListTagsForResource", {"resourceArn": arn}, 0.0).status == status


# --------------------------------------------------------------------------- jobs and settings


def test_a_job_leads_to_its_device() -> None:
    """ListDevices by a job's id finds its one device, also on the second page of nothing."""
    service = Service(Config(fleet=GeneratedFleet(10_000_000)))
    body: Any = service.handle("ListDevices", {"jobId": job_id(9_999_999)}, 0.0).body
    assert [entry["managedDeviceId"] for entry in body["devices"]] == [fleet_id(9_999_999)]
    for stranger in (job_id(10_000_000), "JID-x", "x" * 64):
        assert service.handle("ListDevices", {"jobId": stranger}, 0.0).body == {"devices": []}
    assert job_index(job_id(7)) == 7
    assert job_index(job_id(7).replace("JID0", "JID1")) is None


@pytest.mark.parametrize(
    "setting",
    [
        {"read_rate_per_s": 0},
        {"read_burst": 2},
        {"shared_rate": True},
        {"shared_rate": True, "rate_per_s": 1, "read_rate_per_s": 1},
        {"forget_tokens": 1.1},
        {"offline": -0.1},
        {"locked": float("nan")},
        {"reach_out_s": 0},
        {"cancel_lag_s": -1},
        {"list_keeps_s": float("inf")},
        {"max_tags": -1},
        {"max_tag_key": 0},
        {"endings": dict([parse_ending("failed=0.6"), parse_ending("rejected=0.6")])},
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_refused(setting: dict[str, Any]) -> None:
    """Every setting has its range."""
    with pytest.raises(UsageError):
        Config(**setting)


@pytest.mark.parametrize("text", ["faild=0.1", "failed", "failed=2", "failed=x", "succeeded=1"])
def test_an_ending_that_cannot_be_is_refused(text: str) -> None:
    """A name that is one of three, and a share."""
    with pytest.raises(UsageError):
        parse_ending(text)
