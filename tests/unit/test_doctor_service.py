"""What doctor says of the service's answers."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.doctor import permissions, service
from dispatcher.doctor.base import Verdict
from dispatcher.manifest import Manifest
from dispatcher.transport.credentials import Found, NoCredentials
from dispatcher.transport.inspecting import Answered

if TYPE_CHECKING:
    from pathlib import Path

GOOD = Answered(status=200, elapsed_s=0.012)
DENIED = Answered(status=403, code="AccessDeniedException")
EXPIRED = Answered(status=403, code="ExpiredTokenException")
NOT_THERE = Answered(status=404, code="ResourceNotFoundException")
NO_ANSWER = Answered(code="EndpointConnectionError", message="Connection refused")
PROXY = Answered(status=502, code="502")
ARN = "arn:aws:iam::111122223333:user/ops"
NOW_S = 1_000_000_000.0


def test_region_and_endpoint_tell_where_they_are_from() -> None:
    assert service.check_region("us-west-2", "fleet.yaml").message == "us-west-2 (fleet.yaml)"
    nowhere = service.check_region(None, "AWS configuration")
    assert (nowhere.verdict, "AWS_REGION" in str(nowhere.hint)) == (Verdict.FAIL, True)
    assert service.check_endpoint(None, "default", ()).message == "AWS's own, by region"
    own = service.check_endpoint("http://127.0.0.1:9", "flag", ())
    assert (own.verdict, own.message) == (Verdict.OK, "http://127.0.0.1:9 (flag), not AWS")
    ignored = service.check_endpoint(None, "default", ["AWS_ENDPOINT_URL"])
    assert ignored.verdict is Verdict.WARN
    assert ignored.message.endswith("ignored: AWS_ENDPOINT_URL")


def credentials(method: str, *, token: str | None = None, expires_at: float | None = None) -> Found:
    """Credentials of which only the key and the secret are missing."""
    return Found(SimpleNamespace(token=token), method, expires_at)


@pytest.mark.parametrize(
    ("found", "answers", "verdict", "said"),
    [
        (NoCredentials("the chain found none"), [], Verdict.FAIL, "the chain found none"),
        (None, [GOOD], Verdict.OK, "an endpoint on this host needs none"),
        (credentials("env"), [GOOD, DENIED], Verdict.OK, "found by env"),
        (credentials("env"), [GOOD, EXPIRED], Verdict.FAIL, "found by env, refused: ExpiredTokenException"),
        (credentials("env", token="t"), [GOOD], Verdict.OK, "temporary"),
        (credentials("sso", expires_at=NOW_S + 60), [], Verdict.OK, "until 2001-09-09T01:47:40Z"),
        (credentials("sso", expires_at=NOW_S), [], Verdict.FAIL, "expired at 2001-09-09T01:46:40Z"),
    ],
)
def test_credentials(
    found: Found | NoCredentials | None, answers: list[Answered], verdict: Verdict, said: str
) -> None:
    check = service.check_credentials(found, answers, now_s=NOW_S)
    assert check.verdict is verdict
    assert said in check.message
    assert (check.hint is None) == (verdict is Verdict.OK)


def test_the_hint_of_the_chain_is_passed_on() -> None:
    check = service.check_credentials(NoCredentials("it ended", hint="run: aws sso login"), [], now_s=NOW_S)
    assert check.hint == "run: aws sso login"


@pytest.mark.parametrize(
    ("account", "wanted", "verdict"),
    [
        ("111122223333", [(None, "the manifest"), (None, "the checkpoint")], Verdict.OK),
        ("111122223333", [("111122223333", "the manifest"), (None, "the checkpoint")], Verdict.OK),
        ("111122223333", [("999999999999", "the manifest"), (None, "the checkpoint")], Verdict.FAIL),
        ("111122223333", [(None, "the manifest"), ("999999999999", "the checkpoint")], Verdict.FAIL),
    ],
)
def test_the_account_is_held_against_what_is_known(
    account: str, wanted: list[tuple[str | None, str]], verdict: Verdict
) -> None:
    answer = Answered(status=200, body={"Account": account, "Arn": ARN})
    check = service.check_identity(answer, wanted, why="")
    assert check.verdict is verdict
    if verdict is Verdict.FAIL:
        source = next(source for expected, source in wanted if expected)
        assert f"but {source} says 999999999999" in check.message


def test_an_identity_that_is_not_told() -> None:
    assert service.check_identity(None, [], why="no keys").message == "not asked: no keys"
    assert service.check_identity(EXPIRED, [], why="").verdict is Verdict.FAIL
    assert service.check_identity(NO_ANSWER, [], why="").verdict is Verdict.WARN


@pytest.mark.parametrize(
    ("answers", "verdict", "said"),
    [
        ([GOOD, DENIED, NOT_THERE], Verdict.OK, "AWS answered in 0 ms"),
        ([GOOD, GOOD, NO_ANSWER], Verdict.WARN, "AWS answered 2 of 3 calls; Connection refused"),
        ([GOOD, PROXY, PROXY], Verdict.WARN, "AWS answered 1 of 3 calls; HTTP 502"),
        ([NO_ANSWER, PROXY, PROXY], Verdict.FAIL, "not as the service does: HTTP 502"),
        ([NO_ANSWER, NO_ANSWER, NO_ANSWER], Verdict.FAIL, "AWS does not answer: Connection refused"),
    ],
)
def test_reachability(answers: list[Answered], verdict: Verdict, said: str) -> None:
    check = service.check_reachability("AWS", answers)
    assert check.verdict is verdict
    assert said in check.message


def test_reads_name_the_action() -> None:
    check = service.check_read("list_tasks", "ListTasks", DENIED)
    assert check.verdict is Verdict.WARN
    assert check.message.startswith("ListTasks is denied (AccessDeniedException)")
    assert "--policy" in str(check.hint)
    assert service.check_read("describe_task", "DescribeTask", NOT_THERE).verdict is Verdict.OK
    unknown = service.check_read("list_tasks", "ListTasks", EXPIRED)
    assert (unknown.verdict, unknown.message) == (
        *(Verdict.SKIP, "ListTasks: not known, HTTP 403 ExpiredTokenException"),
    )
    assert service.check_read("list_tasks", "ListTasks", NO_ANSWER).message.endswith("no answer")


def test_devices() -> None:
    """AWS shows none: the wrong region or account, most likely. An emulator may know any id."""
    some = Answered(status=200, body={"devices": [{"id": "x"}]})
    for answer, is_aws, verdict in (
        *((some, True, Verdict.OK), (GOOD, True, Verdict.WARN), (GOOD, False, Verdict.OK)),
        *((DENIED, True, Verdict.SKIP), (NO_ANSWER, True, Verdict.SKIP)),
    ):
        assert service.check_devices("list_devices", answer, is_aws=is_aws).verdict is verdict


@pytest.mark.parametrize(
    ("skew_s", "verdict", "said"),
    [
        (0.9, Verdict.OK, "agrees with the service's"),
        (-60.0, Verdict.OK, "60 s ahead of the service's"),
        (61.0, Verdict.WARN, "61 s behind the service's"),
        (-240.0, Verdict.WARN, "240 s ahead of the service's"),
        (241.0, Verdict.FAIL, "241 s behind the service's"),
        (-3600.0, Verdict.FAIL, "3600 s ahead of the service's"),
    ],
)
def test_the_clock(skew_s: float, verdict: Verdict, said: str) -> None:
    """The quickest answer is believed; those without a date say nothing."""
    answers = [
        Answered(status=200, elapsed_s=4.0, skew_s=9_999.0),
        Answered(status=200, elapsed_s=0.1, skew_s=skew_s),
        NO_ANSWER,
    ]
    check = service.check_clock(answers)
    assert (check.verdict, check.message) == (verdict, said)


def test_without_a_date_the_clock_is_not_judged() -> None:
    assert service.check_clock([NO_ANSWER, GOOD]).verdict is Verdict.SKIP


# Permissions


def tag_keys(folder: Path, **keys: Any) -> list[str]:
    """The keys of the tags that a manifest with these keys gives."""
    content = {"name": "fleet", "command": "reboot", "inventory": {"targets": ["smd-a"]}} | keys
    (folder / "fleet.json").write_text(json.dumps(content))
    return permissions.tag_keys(Manifest.load(folder / "fleet.json"))


def actions(policy: dict[str, Any]) -> dict[str, Any]:
    return {one["Sid"]: one["Action"] for one in policy["Statement"]}


def test_the_policy_allows_what_a_run_needs_and_no_more(tmp_path: Path) -> None:
    keys = tag_keys(tmp_path, tags={"owner": "ops"})
    found = permissions.policy(keys, region="us-gov-west-1", account="111122223333")
    assert actions(found) == {
        "DispatcherSend": ["snow-device-management:CreateTask", "snow-device-management:ListTasks"],
        "DispatcherLook": ["snow-device-management:DescribeTask"],
        "DispatcherTag": ["snow-device-management:TagResource"],
    }
    _, look, tag = found["Statement"]
    assert look["Resource"] == ("arn:aws-us-gov:snow-device-management:us-gov-west-1:111122223333:task/*")
    assert tag["Condition"] == {
        "ForAllValues:StringEquals": {"aws:TagKeys": ["dispatcher-run", "dispatcher-token", "owner"]}
    }


def test_without_tags_the_policy_has_no_tagging(tmp_path: Path) -> None:
    keys = tag_keys(tmp_path, system_tags=False)
    assert keys == []
    assert "DispatcherTag" not in actions(permissions.policy(keys, region=None, account=None))
    assert tag_keys(tmp_path, system_tags=False, tags={"owner": "ops"}) == ["owner"]
    assert permissions.task_arn("*", region=None, account=None) == "arn:aws:snow-device-management:*:*:task/*"


def test_who_can_be_simulated() -> None:
    session = "arn:aws:sts::111122223333:assumed-role/Ops/alice"
    assert permissions.assumed_role(session) == ("Ops", "arn:aws:iam::111122223333:role/Ops")
    assert permissions.assumed_role(ARN) is None
    assert permissions.can_be_simulated(ARN)
    assert permissions.can_be_simulated("arn:aws:iam::111122223333:role/path/Ops")
    assert not permissions.can_be_simulated("arn:aws:iam::111122223333:root")
    assert not permissions.can_be_simulated("arn:aws:sts::111122223333:federated-user/alice")


@pytest.mark.parametrize(
    ("result", "verdict", "said"),
    [
        ({"EvalDecision": "allowed"}, Verdict.OK, "allows CreateTask"),
        ({"EvalDecision": "implicitDeny"}, Verdict.FAIL, "denies CreateTask: no policy allows it"),
        ({"EvalDecision": "explicitDeny"}, Verdict.FAIL, "denies CreateTask: an explicit deny"),
        (
            {"EvalDecision": "implicitDeny", "MissingContextValues": ["aws:SourceIp"]},
            *(Verdict.WARN, "could not know aws:SourceIp"),
        ),
    ],
)
def test_a_simulation(result: dict[str, Any], verdict: Verdict, said: str) -> None:
    answer = Answered(status=200, body={"EvaluationResults": [result]})
    check = permissions.check_send("create_task", permissions.CREATE, answer, why="")
    assert check.verdict is verdict
    assert said in check.message


def test_no_simulation_is_a_skip_with_a_reason() -> None:
    check = permissions.check_send("create_task", permissions.CREATE, DENIED, why="")
    assert check.verdict is Verdict.SKIP
    assert "iam:SimulatePrincipalPolicy answered AccessDeniedException" in check.message
    assert "--limit 1" in str(check.hint)
    check = permissions.check_send("tag_resource", permissions.TAG, None, why="there are no credentials")
    assert check.message.endswith("there are no credentials")
