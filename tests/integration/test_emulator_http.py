"""The emulator over HTTP, seen by boto3 and by a bare HTTP client."""

from __future__ import annotations

import asyncio
import datetime
import io
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import boto3
import pytest
from botocore.config import Config as ClientConfig
from botocore.exceptions import ClientError

from dispatcher.emulator.app import Emulator, run_emulator, signed_region
from dispatcher.emulator.config import Config
from dispatcher.emulator.fleet import GeneratedFleet, fleet_id

if TYPE_CHECKING:
    from collections.abc import Callable


def with_emulator(config: Config, use: Callable[[Emulator], None]) -> None:
    """Run blocking code beside an emulator."""

    async def main() -> None:
        async with run_emulator(config) as emulator:
            await asyncio.to_thread(use, emulator)

    asyncio.run(main())


def boto3_client(emulator: Emulator, region: str = "us-west-2") -> Any:
    return boto3.client(
        "snow-device-management",
        region_name=region,
        endpoint_url=emulator.url,
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="secret",
        config=ClientConfig(retries={"total_max_attempts": 1}),
    )


def test_boto3_creates_and_reads_a_task() -> None:
    """All five operations work unchanged, and what they return parses into the model's types."""

    def use(emulator: Emulator) -> None:
        client = boto3_client(emulator)
        targets = [fleet_id(index) for index in range(10)]
        made = client.create_task(
            command={"unlock": {}}, targets=targets, clientToken="t1", description="Go!", tags={"a": "b"}
        )
        task = client.describe_task(taskId=made["taskId"])
        assert task["taskArn"] == made["taskArn"]
        assert (task["targets"], task["description"], task["tags"]) == (targets, "Go!", {"a": "b"})
        age = datetime.datetime.now(datetime.UTC) - task["createdAt"]
        assert abs(age) < datetime.timedelta(minutes=1)
        listed = client.list_tasks()["tasks"]
        assert [entry["taskId"] for entry in listed] == [made["taskId"]]
        executions = client.list_executions(taskId=made["taskId"])["executions"]
        assert [execution["managedDeviceId"] for execution in executions] == targets
        pages = client.get_paginator("list_devices").paginate(PaginationConfig={"PageSize": 7})
        assert [device["managedDeviceId"] for page in pages for device in page["devices"]] == [
            fleet_id(index) for index in range(25)
        ]

    with_emulator(Config(fleet=GeneratedFleet(25)), use)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"targets": ["smd-nowhere"]}, 404, "ResourceNotFoundException"),
        ({"targets": [fleet_id(0)] * 11}, 400, "ValidationException"),
        ({"description": "2026-11-23"}, 400, "ValidationException"),
        ({"clientToken": "x" * 65}, 400, "ValidationException"),
    ],
    ids=str,
)
def test_boto3_raises_the_modelled_error(change: dict[str, Any], status: int, code: str) -> None:
    """Code, status and message arrive where botocore looks for them."""

    def use(emulator: Emulator) -> None:
        client = boto3_client(emulator)
        good = {"command": {"reboot": {}}, "targets": [fleet_id(0)], "clientToken": "t"}
        with pytest.raises(getattr(client.exceptions, code)) as caught:
            client.create_task(**good | change)
        response = caught.value.response
        assert response["Error"]["Code"] == code
        assert response["Error"]["Message"]
        assert response["ResponseMetadata"]["HTTPStatusCode"] == status
        assert len(response["ResponseMetadata"]["RequestId"]) == 36
        assert emulator.ledger.summary()["by_code"] == {code: 1}

    with_emulator(Config(fleet=GeneratedFleet(1)), use)


def test_the_signed_region_decides() -> None:
    """A client of another region finds no device, and the ledger names its region."""

    def use(emulator: Emulator) -> None:
        with pytest.raises(ClientError, match="ResourceNotFound"):
            boto3_client(emulator, "eu-west-1").create_task(command={"reboot": {}}, targets=[fleet_id(0)])
        assert emulator.ledger.calls[0].region == "eu-west-1"

    with_emulator(Config(fleet=GeneratedFleet(1)), use)


@pytest.mark.parametrize(
    ("header", "region"),
    [
        ("AWS4-HMAC-SHA256 Credential=AK/20260101/eu-west-1/svc/aws4_request, Signature=x", "eu-west-1"),
        ("AWS4-HMAC-SHA256 Credential=AK/20260101", None),
        ("Bearer x", None),
        ("", None),
    ],
)
def test_the_scope_is_read_leniently(header: str, region: str | None) -> None:
    """An absent or odd Authorization header means the default region."""
    assert signed_region(header) == region


GOOD = {"command": {"reboot": {}}, "targets": ["smd-a"], "clientToken": "t"}


def test_the_ledger_is_served() -> None:
    """Summary as JSON, calls and tasks as JSON Lines; looking at it is not a call."""

    async def main() -> None:
        async with run_emulator(Config()) as emulator, aiohttp.ClientSession(emulator.url) as session:
            for _ in range(2):
                async with session.post("/task", json=GOOD) as response:
                    assert response.status == 200
            async with session.get("/_ledger") as response:
                summary = await response.json()
            assert (summary["calls"], summary["tasks"], summary["replays"]) == (2, 1, 1)
            async with session.get("/_ledger/calls") as response:
                calls = [json.loads(line) for line in (await response.text()).splitlines()]
            async with session.get("/_ledger/tasks") as response:
                tasks = [json.loads(line) for line in (await response.text()).splitlines()]
            assert [call["task_id"] for call in calls] == [tasks[0]["task_id"]] * 2
            assert abs(calls[0]["at"] - tasks[0]["created_at"]) < 1
            for method, path in (("GET", "/_ledger/other"), ("POST", "/_ledger")):
                async with session.request(method, path) as response:
                    assert response.status == 404

    asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "ValidationException"),
        (b"{", 400, "SerializationException"),
        (b"[]", 400, "SerializationException"),
        (b'"\xff"', 400, "SerializationException"),
        (b"[" * 100_000, 400, "SerializationException"),
        (b'{"targets": ["\\ud800"]}', 400, "SerializationException"),
        (b" " * (1 << 20) + b"{}", 413, "RequestEntityTooLargeException"),
    ],
    ids=["empty", "cut", "list", "bytes", "deep", "surrogate", "large"],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, status: int, code: str) -> None:
    """Bad JSON and bodies over 1 MiB are refused, recorded, and make nothing."""

    async def main() -> None:
        async with run_emulator(Config()) as emulator, aiohttp.ClientSession(emulator.url) as session:
            async with session.post("/task", data=io.BytesIO(body)) as response:
                assert (response.status, response.headers["x-amzn-ErrorType"]) == (status, code)
                assert (await response.json())["message"]
                assert "Date" in response.headers
            assert emulator.ledger.calls[0].code == code
            async with session.post("/task", json=GOOD) as response:
                assert response.status == 200

    asyncio.run(main())


def test_a_body_that_cannot_be_decoded_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """It says gzip and is not: the client's fault, and no traceback of the emulator."""

    async def main() -> None:
        async with run_emulator(Config()) as emulator, aiohttp.ClientSession(emulator.url) as session:
            headers = {"Content-Encoding": "gzip"}
            async with session.post("/task", data=b"\x1f\x8b", headers=headers) as response:
                assert (response.status, response.headers["x-amzn-ErrorType"]) == (
                    400,
                    "SerializationException",
                )

    asyncio.run(main())
    assert not caplog.records


def test_an_unknown_path_is_a_call_too() -> None:
    """A client that follows a redirect, or calls a wrong path, is seen in the ledger."""

    async def main() -> None:
        async with run_emulator(Config()) as emulator, aiohttp.ClientSession(emulator.url) as session:
            async with session.post("/elsewhere", json=GOOD) as response:
                assert (response.status, response.headers["x-amzn-ErrorType"]) == (
                    404,
                    "UnknownOperationException",
                )
            assert emulator.ledger.summary()["by_operation"] == {"Unknown": 1}

    asyncio.run(main())


def test_calls_in_flight_are_counted() -> None:
    """While calls wait out their latency, later arrivals see them in flight."""

    async def main() -> None:
        config = Config(latency_s=0.2)
        async with run_emulator(config) as emulator, aiohttp.ClientSession(emulator.url) as session:

            async def create(number: int) -> None:
                async with session.post("/task", json=GOOD | {"clientToken": f"t{number}"}) as response:
                    assert response.status == 200

            await asyncio.gather(*(create(number) for number in range(8)))
            await create(8)
            assert emulator.ledger.max_in_flight == 8
            assert emulator.ledger.calls[-1].in_flight == 1

    asyncio.run(main())
