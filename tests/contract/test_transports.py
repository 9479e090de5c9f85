"""Every transport against the emulator over real sockets: every row of the facts table."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from dispatcher.emulator.app import run_emulator
from dispatcher.emulator.config import Config
from dispatcher.emulator.faults import Fault, FaultPlan
from dispatcher.emulator.fleet import GeneratedFleet, fleet_id
from dispatcher.errors import UsageError
from dispatcher.model import Answer, Kind
from dispatcher.transport.base import TaskPage, TaskView
from dispatcher.transport.wire import WireTransport
from tests.contract.service import ANSWER, KINDS, TOKEN, opened, plan_for, raw_service, sends


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(
    kind: str,
    config: Config,
    *,
    targets: tuple[str, ...] = ("smd-1",),
    timeout_s: float = 5.0,
    **changes: Any,
) -> Answer:
    """Make one call to an emulator of `config`."""

    async def call() -> Answer:
        async with (
            run_emulator(config) as emulator,
            opened(kind, emulator.url, timeout_s=timeout_s, **changes) as transport,
        ):
            return await transport.create_task(targets, TOKEN)

    return asyncio.run(call())


def only(fault: Fault) -> Config:
    return Config(faults=FaultPlan(shares={fault: 1.0}))


@pytest.mark.parametrize(
    ("fault", "expected"),
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
def test_every_fault_becomes_its_facts(kind: str, fault: Fault, expected: Kind) -> None:
    """Whatever comes back is one row of the facts table, and never an exception."""
    assert ask(kind, only(fault)).kind is expected


def test_a_success_brings_the_task(kind: str) -> None:
    """Task id and ARN come home; tags tell the run and the token."""

    async def call() -> None:
        async with (
            run_emulator(Config()) as emulator,
            opened(kind, emulator.url, tags={"owner": "ops"}) as transport,
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


def test_system_tags_can_be_switched_off(kind: str) -> None:
    """Without them a call carries the operator's tags alone: TagResource may be missing."""

    async def call() -> None:
        async with (
            run_emulator(Config()) as emulator,
            opened(kind, emulator.url, system_tags=False) as transport,
        ):
            await transport.create_task(("smd-1",), TOKEN)
            (task,) = emulator.ledger.tasks
            assert json.loads(bytes(task.tags)) == {}

    asyncio.run(call())


def test_modelled_refusals_keep_code_and_message(kind: str) -> None:
    """Unknown device, throttle and quota are told apart by their codes."""
    unknown = ask(kind, Config(fleet=GeneratedFleet(5)), targets=(fleet_id(0), "smd-nobody"))
    assert (unknown.kind, unknown.code) == (Kind.POISON, "ResourceNotFoundException")
    assert "smd-nobody" in (unknown.message or "")
    assert ask(kind, Config(quota=0)).kind is Kind.QUOTA


def test_a_reused_token_is_a_mismatch(kind: str) -> None:
    """The same token with other targets is never poison: it would be split."""

    async def call() -> Kind:
        async with run_emulator(Config()) as emulator, opened(kind, emulator.url) as transport:
            await transport.create_task(("smd-1",), TOKEN)
            return (await transport.create_task(("smd-2",), TOKEN)).kind

    assert asyncio.run(call()) is Kind.MISMATCH


def test_a_dripping_answer_is_cut_by_the_deadline(kind: str) -> None:
    """The SDK's time-out is per read; ours is for the whole attempt."""
    begun = time.monotonic()
    answer = ask(kind, only(Fault.DRIP), timeout_s=0.7)
    assert (answer.kind, answer.code) == (Kind.NO_REPLY, "Timeout")
    assert time.monotonic() - begun < 5


def test_an_endless_answer_is_not_read_to_its_end(kind: str) -> None:
    """At most a mebibyte of a body is read: memory stays flat."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert ask(kind, only(Fault.ENDLESS), timeout_s=3).kind is Kind.NO_REPLY
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_a_redirect_is_not_followed(kind: str) -> None:
    """A signed request goes where it was signed for: the emulator sees one call."""

    async def call() -> int:
        async with run_emulator(only(Fault.REDIRECT)) as emulator, opened(kind, emulator.url) as transport:
            await transport.create_task(("smd-1",), TOKEN)
            return int(emulator.ledger.summary()["calls"])

    assert asyncio.run(call()) == 1


def test_nothing_listening_means_nothing_sent(kind: str) -> None:
    """A refused connection is the one fault that leaves no doubt."""

    async def call() -> Answer:
        async with opened(kind, "http://127.0.0.1:1") as transport:
            return await transport.create_task(("smd-1",), TOKEN)

    assert asyncio.run(call()).kind is Kind.UNREACHABLE


def test_an_unknown_host_means_nothing_sent(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is a name that does not resolve."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")

    async def call() -> Answer:
        async with opened(kind, "https://no-such-host.invalid") as transport:
            return await transport.create_task(("smd-1",), TOKEN)

    assert asyncio.run(call()).kind is Kind.UNREACHABLE


def test_configured_endpoints_are_ignored(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment variables of the SDK cannot redirect signed calls."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_SNOW_DEVICE_MANAGEMENT", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert ask(kind, Config()).kind is Kind.ACCEPTED

    async def url() -> str:
        async with opened(kind, None) as transport:
            return str(transport._client.meta.endpoint_url)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    assert asyncio.run(url()) == "https://snow-device-management.us-west-2.amazonaws.com"


def test_a_clock_that_is_off_is_corrected_by_renewing(kind: str) -> None:
    """After a refusal the service's own clock signs: the credential scope carries its date."""
    refusal = (
        b"HTTP/1.1 403 Forbidden\r\nDate: Tue, 01 Jan 2030 00:00:00 GMT\r\nx-amzn-ErrorType: "
        b"InvalidSignatureException\r\nContent-Length: 2\r\n\r\n{}"
    )

    async def call() -> list[str]:
        async def script(_request: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(ANSWER if len(service.requests) > 2 else refusal)

        async with raw_service(script) as service, opened(kind, service.url) as transport:
            for expected in (Kind.DENIED, Kind.DENIED):
                assert (await transport.create_task(("smd-1",), TOKEN)).kind is expected
            await transport.renew()
            assert (await transport.create_task(("smd-1",), TOKEN)).kind is Kind.ACCEPTED
            return [re.search(rb"Credential=[^/]+/(\d{8})/", head)[1].decode() for head in service.requests]  # type: ignore[index]

    before, still, after = asyncio.run(call())
    assert before == still != after
    assert after in ("20291231", "20300101")


def test_expired_credentials_are_not_sent_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the service calls them expired, whatever our clock says, nothing leaves that they would sign."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "odd token/+=é")

    async def call() -> None:
        body = b'{"__type": "ExpiredTokenException"}'
        refusal = sends(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        async with raw_service(refusal) as service, opened(kind, service.url) as transport:
            assert (await transport.create_task(("smd-1",), TOKEN)).kind is Kind.EXPIRED
            assert (await transport.create_task(("smd-1",), TOKEN)).kind is Kind.NO_CREDENTIALS
            answer = await transport.renew()
            assert answer is not None
            assert answer.kind is Kind.DENIED  # the environment of a process cannot change
            (request,) = service.requests
            assert b"x-amz-security-token: odd token/+=" in request.lower().replace(b"\xc3\xa9", b"")

    asyncio.run(call())


REFUSALS = [
    (
        "429 Slow\r\nx-amzn-ErrorType: ThrottlingException:http://x/",
        "{}",
        Kind.THROTTLED,
        "ThrottlingException",
    ),
    (
        "400 Bad\r\nx-amzn-errortype: ValidationException",
        '{"message":"m"}',
        Kind.POISON,
        "ValidationException",
    ),
    ("404 No", '{"code":"a#ResourceNotFoundException"}', Kind.POISON, "ResourceNotFoundException"),
    ("404 No", '{"__type":"com.x#ResourceNotFoundException"}', Kind.POISON, "ResourceNotFoundException"),
    ("402 Pay", '{"__type":"ServiceQuotaExceededException"}', Kind.QUOTA, "ServiceQuotaExceededException"),
    ("400 Bad", '{"__type":"IdempotentParameterMismatch"}', Kind.MISMATCH, "IdempotentParameterMismatch"),
    ("403 No", '{"__type":"AccessDeniedException","Message":"no"}', Kind.DENIED, "AccessDeniedException"),
    ("500 Oops", "<html>oops</html>", Kind.NO_REPLY, "HTTP 500"),
    ("502 Oops", "", Kind.NO_REPLY, "HTTP 502"),
    ("503 Busy", "not json", Kind.BARE_THROTTLE, "HTTP 503"),
    ("403 No", "<html>a proxy</html>", Kind.ODD, "HTTP 403"),
    ("300 Many", "{}", Kind.ODD, "HTTP 300"),
    ("201 Made", '{"taskId":"st-1"}', Kind.ACCEPTED, None),
    ("202 Later", "{}", Kind.UNREADABLE, "NoTaskId"),
]


def test_an_answer_is_read_as_the_sdk_reads_it(kind: str) -> None:
    """The code may stand in a header or in either of two members, with a namespace or an address."""

    async def call() -> None:
        async def script(_request: bytes, writer: asyncio.StreamWriter) -> None:
            head, body, *_ = REFUSALS[len(service.requests) - 1]
            writer.write(f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())

        async with raw_service(script) as service, opened(kind, service.url) as transport:
            for head, _, expected, code in REFUSALS:
                answer = await transport.create_task(("smd-1",), TOKEN)
                assert (answer.kind, answer.code) == (expected, code), head
            assert service.connections == 1

    asyncio.run(call())


def test_a_proxy_is_left_to_the_reference_transport(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the wire transport cannot do it says, and the call is made all the same."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")

    async def call() -> Answer:
        transport = WireTransport(plan_for(None), max_in_flight=1, attempt_timeout_s=2)
        await transport.open()
        try:
            assert not transport.is_direct
            return await transport.create_task(("smd-1",), TOKEN)
        finally:
            await transport.close()

    assert asyncio.run(call()).kind is Kind.UNREACHABLE  # of the proxy: nothing listens there
    assert "a proxy is set; aiobotocore sends instead" in caplog.text


def test_a_bundle_that_cannot_be_read_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything is planned to be sent: one line that names the file."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "nowhere.pem"))

    async def call() -> None:
        async with opened("wire", "https://127.0.0.1:1"):
            raise AssertionError

    with pytest.raises(UsageError, match=r"nowhere\.pem cannot be read: No such file"):
        asyncio.run(call())


def test_looking_at_a_request_uses_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request that shows how requests look leaves credentials as fresh as they were."""

    async def call() -> None:
        async with opened("wire", "http://127.0.0.1:1") as transport:
            assert transport._keeper.current is not None
            assert not transport._keeper.current.is_used

    asyncio.run(call())


def test_a_secret_in_a_refusal_is_blanked(kind: str) -> None:
    """SignatureDoesNotMatch quotes the canonical request with its security token."""
    transport = KINDS[kind](plan_for("http://127.0.0.1:1"), max_in_flight=1, attempt_timeout_s=1)
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
