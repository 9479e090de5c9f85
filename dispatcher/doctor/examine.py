"""All checks of a manifest: this machine is looked at, the service is asked, and both are judged."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

from dispatcher.checkpoint.files import check_surroundings
from dispatcher.checkpoint.lease import lock_paths
from dispatcher.doctor import machine, permissions, service
from dispatcher.doctor.base import Check, Checkup, skip
from dispatcher.doctor.stored import Stored, look_up
from dispatcher.preview import preview
from dispatcher.transport.aiobotocore import configured_region
from dispatcher.transport.credentials import Found, NoCredentials
from dispatcher.transport.inspecting import Answered, Inspector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dispatcher.manifest import Manifest
    from dispatcher.settings import Resolved

DEVICES = "list_devices"
READS: dict[str, tuple[str, dict[str, Any]]] = {
    "describe_task": ("DescribeTask", {"taskId": "st-" + "0" * 17}),
    "list_tasks": ("ListTasks", {"maxResults": 1}),
    DEVICES: ("ListDevices", {"maxResults": 1}),
}
"""What is asked of the service: nothing that changes anything. The task id is nobody's."""
SENDS = {"create_task": permissions.CREATE, "tag_resource": permissions.TAG}
"""What only a simulation can tell, since trying it out would command devices."""


@dataclass(frozen=True, slots=True)
class Case:
    """A manifest, and what would hold if it were run."""

    manifest: Manifest
    settings: Resolved
    region: str | None
    origin: str
    stored: Stored

    @classmethod
    def of(cls, manifest: Manifest, settings: Resolved) -> Case:
        """Find the region and what is stored. Raises `UsageError` for a broken AWS configuration."""
        region, origin = settings.region, settings.origins["region"]
        if region is None:
            region, origin = configured_region(settings.profile), "AWS configuration"
        return cls(manifest, settings, region, origin, look_up(manifest, settings, region))

    @property
    def tag_keys(self) -> list[str]:
        return permissions.tag_keys(self.manifest)

    def policy(self, account: str | None = None) -> dict[str, Any]:
        """Return the IAM policy that a run needs and no more, in the account that is known."""
        known = self.manifest.account or account or self.stored.account
        return permissions.policy(self.tag_keys, region=self.region, account=known)


@dataclass(slots=True)
class Heard:
    """What the network told."""

    credentials: Found | NoCredentials | None
    """None where none are needed."""
    ignored: list[str]
    """What names an endpoint in the AWS configuration, and has no say."""
    why: str = ""
    """Why STS or IAM were not asked, or not of use."""
    identity: Answered | None = None
    reads: dict[str, Answered] = field(default_factory=dict)
    sends: dict[str, Answered] = field(default_factory=dict)

    @property
    def answers(self) -> list[Answered]:
        """Those that are dated and signed: IAM's say nothing that STS's does not."""
        return [*self.reads.values(), *([] if self.identity is None else [self.identity])]

    @property
    def account(self) -> str | None:
        found = None if self.identity is None else self.identity.body.get("Account")
        return None if found is None else str(found)


def examine(
    manifest: Manifest,
    settings: Resolved,
    *,
    ignored: Sequence[str] = (),
    urls: Mapping[str, str] | None = None,
) -> Checkup:
    """Check everything that can be checked without sending, and return what came of it.

    Args:
        manifest: the intent.
        settings: what a run would use.
        ignored: what names an endpoint in the environment, and has no say.
        urls: where services are instead, by their SDK name: for tests.

    Raises:
        UsageError: manifest, inventory or AWS configuration cannot be read.
    """
    case = Case.of(manifest, settings)
    # No stored plan is compared here: what is stored is judged by itself.
    found = preview(manifest, dataclasses.replace(settings, checkpoint=Path(os.devnull)))
    heard = None if case.region is None else asyncio.run(_listen(case, case.region, urls or {}))
    unheard = [*ignored, *(heard.ignored if heard else ())]
    checks = (
        machine.check_manifest(found),
        machine.check_limits(settings),
        service.check_region(case.region, case.origin),
        service.check_endpoint(settings.endpoint_url, settings.origins["endpoint_url"], unheard),
        *(_judge_answers(case, heard) if heard else _not_asked()),
        *_judge_machine(case, found.devices),
    )
    return Checkup(found.run, checks, case.policy(heard.account if heard else None))


async def _listen(case: Case, region: str, urls: Mapping[str, str]) -> Heard:
    settings = case.settings
    async with Inspector(
        region=region, endpoint_url=settings.endpoint_url, profile=settings.profile, urls=urls
    ) as inspector:
        heard = Heard(await inspector.credentials(), inspector.ignored())
        questions = [inspector.ask(name, parameters) for name, (_, parameters) in READS.items()]
        heard.why, answers = await asyncio.gather(
            _ask_iam(case, region, inspector, heard), asyncio.gather(*questions)
        )
        heard.reads = dict(zip(READS, answers, strict=True))
        return heard


async def _ask_iam(case: Case, region: str, inspector: Inspector, heard: Heard) -> str:
    """Ask STS who we are, and IAM what we may; return why it went no further."""
    if case.settings.endpoint_url is not None:
        return "the endpoint is not AWS's"
    if isinstance(heard.credentials, NoCredentials):
        return "there are no credentials"
    heard.identity = await inspector.ask("get_caller_identity", {}, service="sts")
    if not heard.identity.succeeded:
        return "AWS does not say who you are"
    arn = str(heard.identity.body.get("Arn"))
    role = permissions.assumed_role(arn)
    if role is not None:
        found = await inspector.ask("get_role", {"RoleName": role[0]}, service="iam")
        arn = str(found.body.get("Role", {}).get("Arn") or role[1])
    if not permissions.can_be_simulated(arn):
        return "IAM can simulate users and roles alone"
    wanted = {name: action for name, action in SENDS.items() if action != permissions.TAG or case.tag_keys}
    questions = [
        permissions.simulation(arn, action, region=region, account=heard.account, keys=case.tag_keys)
        for action in wanted.values()
    ]
    answers = await asyncio.gather(
        *(inspector.ask("simulate_principal_policy", one, service="iam") for one in questions)
    )
    heard.sends = dict(zip(wanted, answers, strict=True))
    return ""


def _not_asked() -> list[Check]:
    names = ("credentials", "identity", "reachability", "clock", *SENDS, *READS)
    return [skip(name, "not asked: no region is set") for name in names]


def _judge_answers(case: Case, heard: Heard) -> list[Check]:
    where = case.settings.endpoint_url or "AWS"
    wanted = [(case.manifest.account, "the manifest"), (case.stored.account, "the checkpoint")]
    checks = [
        service.check_credentials(heard.credentials, heard.answers, now_s=time.time()),
        service.check_identity(heard.identity, wanted, why=heard.why),
        service.check_reachability(where, list(heard.reads.values())),
        service.check_clock(heard.answers),
    ]
    for name, action in SENDS.items():
        if action == permissions.TAG and not case.tag_keys:
            checks.append(skip(name, f"{action}: not needed, tasks carry no tags"))
        else:
            checks.append(permissions.check_send(name, action, heard.sends.get(name), why=heard.why))
    is_aws = case.settings.endpoint_url is None
    return [
        *checks,
        *(service.check_read(n, READS[n][0], one) for n, one in heard.reads.items() if n != DEVICES),
        service.check_devices(DEVICES, heard.reads[DEVICES], is_aws=is_aws),
    ]


def _judge_machine(case: Case, devices: int) -> list[Check]:
    settings, stored = case.settings, case.stored
    run, where, trusts = stored.run, stored.path.parent, settings.allow_network_fs
    state = machine.check_folder("state_folder", settings.state_dir, allow_network=trusts)
    folders = [state]
    if where != settings.state_dir:
        beside = machine.check_folder(
            "checkpoint_folder", where, lambda _: check_surroundings(stored.path), allow_network=trusts
        )
        folders.append(beside)
    checkpoint = machine.check_checkpoint(stored)
    if checkpoint.message == state.message:
        checkpoint = skip(checkpoint.name, "not looked at: the state folder cannot be used")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (None if limit == resource.RLIM_INFINITY else limit for limit in limits)
    return [
        *folders,
        checkpoint,
        machine.check_lock(lock_paths(stored.path, settings.state_dir, run), run),
        machine.check_disk(where, max(machine.WAL_BYTES, machine.run_bytes(devices) - stored.bytes)),
        machine.check_sqlite(apsw.sqlite_lib_version()),
        machine.check_open_files(soft, hard, max_in_flight=settings.max_in_flight),
    ]
