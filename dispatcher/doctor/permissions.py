"""The IAM policy that a run needs and no more, and what a simulation of the caller's own says. Pure.

Actions, resource types and condition keys are those of AWS's service authorization reference: CreateTask and
ListTasks know no resource, DescribeTask a task. Which resource TagResource is asked for when a task is
created with tags is written nowhere, so it is bounded by its tag keys, which holds either way.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dispatcher.doctor.base import Check, fail, ok, skip, warn
from dispatcher.doctor.service import ATTACH
from dispatcher.plan import SYSTEM_TAG_RUN, SYSTEM_TAG_TOKEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.manifest import Manifest
    from dispatcher.transport.inspecting import Answered

CREATE, TAG = "CreateTask", "TagResource"
_PREFIX = "snow-device-management"
_ASSUMED = re.compile(r"arn:(?P<partition>[^:]+):sts::(?P<account>\d+):assumed-role/(?P<role>[^/]+)/.*")
_PRINCIPAL = re.compile(r"arn:[^:]+:iam::\d+:(user|role)/.+")


def tag_keys(manifest: Manifest) -> list[str]:
    """Return the keys of all tags that a run of `manifest` gives to its tasks."""
    system = [] if manifest.system_tags is False else [SYSTEM_TAG_RUN, SYSTEM_TAG_TOKEN]
    return sorted([*manifest.tags, *system])


def policy(keys: Sequence[str], *, region: str | None, account: str | None) -> dict[str, Any]:
    """Return the least policy of a run whose tasks get tags of these keys; what is not known is `*`."""
    statements: list[dict[str, Any]] = [
        _allow("Send", [f"{_PREFIX}:{CREATE}", f"{_PREFIX}:ListTasks"], "*"),
        _allow("Look", [f"{_PREFIX}:DescribeTask"], task_arn("*", region=region, account=account)),
    ]
    if keys:
        condition = {"ForAllValues:StringEquals": {"aws:TagKeys": list(keys)}}
        statements.append(_allow("Tag", [f"{_PREFIX}:{TAG}"], "*") | {"Condition": condition})
    return {"Version": "2012-10-17", "Statement": statements}


def _allow(sid: str, actions: list[str], resource: str) -> dict[str, Any]:
    return {"Sid": f"Dispatcher{sid}", "Effect": "Allow", "Action": actions, "Resource": resource}


def task_arn(task_id: str, *, region: str | None, account: str | None) -> str:
    """Return a task's ARN; what is not known is a wildcard."""
    partition = "aws"
    for prefix, name in (("cn-", "aws-cn"), ("us-gov-", "aws-us-gov")):
        if region is not None and region.startswith(prefix):
            partition = name
    return f"arn:{partition}:{_PREFIX}:{region or '*'}:{account or '*'}:task/{task_id}"


def assumed_role(arn: str) -> tuple[str, str] | None:
    """Return name and ARN of the role behind an assumed-role session; None for another caller.

    The ARN lacks the role's path, which a session's ARN does not tell.
    """
    found = _ASSUMED.fullmatch(arn)
    if found is None:
        return None
    return found["role"], f"arn:{found['partition']}:iam::{found['account']}:role/{found['role']}"


def can_be_simulated(arn: str) -> bool:
    """Whether IAM knows policies of this caller: users and roles, neither root nor federated users."""
    return _PRINCIPAL.fullmatch(arn) is not None


def simulation(
    arn: str, action: str, *, region: str, account: str | None, keys: Sequence[str]
) -> dict[str, Any]:
    """Return the parameters of a SimulatePrincipalPolicy of one action, as a run would use it."""
    context = [("aws:RequestedRegion", "string", [region])]
    if keys:
        context.append(("aws:TagKeys", "stringList", list(keys)))
    return {
        "PolicySourceArn": arn,
        "ActionNames": [f"{_PREFIX}:{action}"],
        "ResourceArns": [task_arn("st-any", region=region, account=account) if action == TAG else "*"],
        "ContextEntries": [
            {"ContextKeyName": name, "ContextKeyType": kind, "ContextKeyValues": values}
            for name, kind, values in context
        ],
    }


def check_send(name: str, action: str, simulated: Answered | None, *, why: str) -> Check:
    """Judge by IAM's simulation what cannot be tried out; `why` says why there is none."""
    results = [] if simulated is None else simulated.body.get("EvaluationResults", ())
    if simulated is not None and not results:
        why = f"iam:SimulatePrincipalPolicy answered {simulated.code or 'nothing of use'}"
    if not results:
        hint = "`dispatcher run MANIFEST --limit 1` tries it on one device" if action == CREATE else None
        return skip(name, f"{action}: not known without sending, and not simulated: {why}", hint)
    word, missing = results[0].get("EvalDecision"), results[0].get("MissingContextValues") or ()
    if word == "allowed":
        return ok(name, f"IAM's simulation allows {action}")
    if missing:
        said = f"IAM's simulation denies {action}, but could not know {', '.join(map(str, missing))}"
        return warn(name, said, f"check those; else {ATTACH}")
    why = "an explicit deny" if word == "explicitDeny" else "no policy allows it"
    off = ", or set `system_tags: false`" if action == TAG else ""
    return fail(name, f"IAM's simulation denies {action}: {why}", ATTACH + off)
