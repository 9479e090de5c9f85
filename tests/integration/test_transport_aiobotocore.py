"""The reference transport against the emulator over real sockets: every row of the facts table."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from dispatcher.checkpoint.base import Plan
from dispatcher.emulator.app import run_emulator
from dispatcher.emulator.config import Config
from dispatcher.emulator.faults import Fault, FaultPlan
from dispatcher.emulator.fleet import GeneratedFleet, fleet_id
from dispatcher.model import Answer, Kind
from dispatcher.transport.aiobotocore import AiobotocoreTransport
from dispatcher.transport.base import TaskPage, TaskView

TOKEN = "a" * 64


def plan_for(url: str | None, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "plan_id": "p", "run": "nightly", "command": "reboot", "region": "us-west-2", "endpoint_url": url,
        "intent_digest": "", "selection_digest": "", "inventory_digest": "", "planned_at": 0.0,
    }  # fmt: skip
    return Plan(**(values | changes))


@contextlib.asynccontextmanager
async def opened(
    url: str | None, *, timeout_s: float = 5.0, **changes: Any
) -> AsyncIterator[AiobotocoreTransport]:
    transport = AiobotocoreTransport(plan_for(url, **changes), max_in_flight=8, attempt_timeout_s=timeout_s)
    await transport.open()
    try:
        yield transport
    finally:
        await transport.close()


def ask(
    config: Config, *, targets: tuple[str, ...] = ("smd-1",), timeout_s: float = 5.0, **changes: Any
) -> Answer:
    """Make one call to an emulator of `config`."""

    async def call() -> Answer:
        async with (
            run_emulator(config) as emulator,
            opened(emulator.url, timeout_s=timeout_s, **changes) as transport,
        ):
            return await transport.create_task(targets, TOKEN)

    return asyncio.run(call())


def only(fault: Fault) -> Config:
    return Config(faults=FaultPlan(shares={fault: 1.0}))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.LOST_REPLY, Kind.NO_REPLY),
        (Fault.ERROR_500, Kind.NO_REPLY),
        (Fault.ERROR_500_AFTER, Kind.NO_REPLY),
        (Fault.BARE_429, Kind.BARE_THROTTLE),
        (Fault.BARE_503, Kind.BARE_THROTTLE),
        (Fault.TRUNCATED, Kind.UNREADABLE),
        (Fault.EMPTY_200, Kind.UNREADABLE),
        (Fault.ENDLESS, Kind.NO_REPLY),
        (Fault.RESET_BEFORE, Kind.NO_REPLY),
        (Fault.REDIRECT, Kind.ODD),
        (Fault.DENIED, Kind.DENIED),
    ],
)
def test_every_fault_becomes_its_facts(fault: Fault, kind: Kind) -> None:
    """Whatever comes back is one row of the facts table, and never an exception."""
    assert ask(only(fault)).kind is kind


def test_a_success_brings_the_task() -> None:
    """Task id and ARN come home; tags tell the run and the token."""

    async def call() -> None:
        async with (
            run_emulator(Config()) as emulator,
            opened(emulator.url, tags={"owner": "ops"}) as transport,
        ):
            answer = await transport.create_task(("smd-1", "smd-2"), TOKEN)
            assert answer.kind is Kind.ACCEPTED
            assert answer.task_id is not None
            assert answer.task_arn is not None
            assert answer.task_arn.endswith(answer.task_id)
            (task,) = emulator.ledger.tasks
            assert json.loads(bytes(task.tags)) == {
                "owner": "ops",
                "dispatcher-run": "nightly",
                "dispatcher-token": TOKEN,
            }
            view = await transport.describe_task(answer.task_id)
            assert isinstance(view, TaskView)
            assert view.targets == ("smd-1", "smd-2")
            assert abs(view.created_at - time.time()) < 60
            unknown = await transport.describe_task("st-unknown")
            assert isinstance(unknown, Answer)
            assert unknown.kind is Kind.POISON
            page = await transport.list_tasks(None, 10)
            assert isinstance(page, TaskPage)
            assert [(one.task_id, one.tags["dispatcher-token"]) for one in page.tasks] == [
                (answer.task_id, TOKEN)
            ]
            assert page.next_token is None
            assert isinstance(await transport.list_tasks("no such token", 10), Answer)

    asyncio.run(call())


def test_system_tags_can_be_switched_off() -> None:
    """Without them a call carries the operator's tags alone: TagResource may be missing."""

    async def call() -> None:
        async with run_emulator(Config()) as emulator, opened(emulator.url, system_tags=False) as transport:
            await transport.create_task(("smd-1",), TOKEN)
            (task,) = emulator.ledger.tasks
            assert json.loads(bytes(task.tags)) == {}

    asyncio.run(call())


def test_modelled_refusals_keep_code_and_message() -> None:
    """Unknown device, throttle and quota are told apart by their codes."""
    unknown = ask(Config(fleet=GeneratedFleet(5)), targets=(fleet_id(0), "smd-nobody"))
    assert (unknown.kind, unknown.code) == (Kind.POISON, "ResourceNotFoundException")
    assert "smd-nobody" in (unknown.message or "")
    assert ask(Config(quota=0)).kind is Kind.QUOTA


def test_a_reused_token_is_a_mismatch() -> None:
    """The same token with other targets is never poison: it would be split."""

    async def call() -> Kind:
        async with run_emulator(Config()) as emulator, opened(emulator.url) as transport:
            await transport.create_task(("smd-1",), TOKEN)
            return (await transport.create_task(("smd-2",), TOKEN)).kind

    assert asyncio.run(call()) is Kind.MISMATCH


def test_a_dripping_answer_is_cut_by_the_deadline() -> None:
    """The SDK's time-out is per read; ours is for the whole attempt."""
    begun = time.monotonic()
    answer = ask(only(Fault.DRIP), timeout_s=0.7)
    assert (answer.kind, answer.code) == (Kind.NO_REPLY, "Timeout")
    assert time.monotonic() - begun < 5


def test_an_endless_answer_is_not_read_to_its_end() -> None:
    """At most a mebibyte of a body is read: memory stays flat."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert ask(only(Fault.ENDLESS), timeout_s=3).kind is Kind.NO_REPLY
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_a_redirect_is_not_followed() -> None:
    """A signed request goes where it was signed for: the emulator sees one call."""

    async def call() -> int:
        async with run_emulator(only(Fault.REDIRECT)) as emulator, opened(emulator.url) as transport:
            await transport.create_task(("smd-1",), TOKEN)
            return int(emulator.ledger.summary()["calls"])

    assert asyncio.run(call()) == 1


def test_nothing_listening_means_nothing_sent() -> None:
    """A refused connection is the one fault that leaves no doubt."""

    async def call() -> Answer:
        async with opened("http://127.0.0.1:1") as transport:
            return await transport.create_task(("smd-1",), TOKEN)

    assert asyncio.run(call()).kind is Kind.UNREACHABLE


def test_an_unknown_host_means_nothing_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """So is a name that does not resolve."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")

    async def call() -> Answer:
        async with opened("https://no-such-host.invalid") as transport:
            return await transport.create_task(("smd-1",), TOKEN)

    assert asyncio.run(call()).kind is Kind.UNREACHABLE


def test_configured_endpoints_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment variables of the SDK cannot redirect signed calls."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_SNOW_DEVICE_MANAGEMENT", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert ask(Config()).kind is Kind.ACCEPTED

    async def url() -> str:
        async with opened(None) as transport:
            return str(transport._client.meta.endpoint_url)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    assert asyncio.run(url()) == "https://snow-device-management.us-west-2.amazonaws.com"


def test_a_clock_that_is_off_is_corrected_by_renewing() -> None:
    """After a refusal the service's own clock signs: the credential scope carries its date."""

    async def call() -> str:
        async with run_emulator(Config()) as emulator, opened(emulator.url) as transport:
            transport._note_clock({"HTTPHeaders": {"date": "Tue, 01 Jan 2030 00:00:00 GMT"}})
            await transport.renew()
            seen: list[str] = []
            transport._client.meta.events.register(
                "before-send.snow-device-management.CreateTask",
                lambda request, **_: seen.append(request.headers["Authorization"]) or None,
            )
            assert (await transport.create_task(("smd-1",), TOKEN)).kind is Kind.ACCEPTED
            return seen[0] if isinstance(seen[0], str) else seen[0].decode()

    assert "/20300101/" in asyncio.run(call()) or "/20291231/" in asyncio.run(call())


def test_a_secret_in_a_refusal_is_blanked() -> None:
    """SignatureDoesNotMatch quotes the canonical request with its security token."""
    transport = AiobotocoreTransport(plan_for("http://127.0.0.1:1"), max_in_flight=1, attempt_timeout_s=1)
    message = "The Canonical String: x-amz-security-token:CANARYSECRET host:x AKIAIOSFODNN7EXAMPLE"

    refused = ClientError(
        {
            "Error": {"Code": "SignatureDoesNotMatch", "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": 403, "HTTPHeaders": {}},
        },
        "CreateTask",
    )
    answer = transport._refused(refused, ())
    assert answer.kind is Kind.DENIED
    assert "CANARY" not in (answer.message or "")
    assert "AKIA" not in (answer.message or "")
