"""The benchmarks' stub server: a client nobody here wrote can use it, and its ledger cannot be fooled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config

from bench.stub import Book, Stub, WrongRun, digest_of, running

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server() -> Iterator[Stub]:
    with running() as stub:
        yield stub


@pytest.fixture
def stub(server: Stub) -> Stub:
    server.reset()
    return server


@pytest.fixture(scope="module")
def client(server: Stub) -> Iterator[Any]:
    client = boto3.client(
        "snow-device-management",
        region_name="us-west-2",
        endpoint_url=server.url,
        aws_access_key_id="a",
        aws_secret_access_key="b",
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )
    yield client
    client.close()


def create(client: Any, token: str, *targets: str) -> str:
    answer = client.create_task(clientToken=token, command={"reboot": {}}, targets=list(targets))
    assert answer["taskArn"].endswith(answer["taskId"])
    return str(answer["taskId"])


def test_boto3_gets_a_task_for_every_client_token(stub: Stub, client: Any) -> None:
    """Two client tokens make two tasks, and the ledger has both tasks' devices."""
    assert create(client, "one", "smd-a", "smd-b") != create(client, "two", "smd-c")
    found = stub.verify(["smd-a", "smd-b", "smd-c"])
    assert (found.calls, found.tasks, found.replays) == (2, 2, 0)
    assert found.first_call_s is not None


def test_a_repeated_client_token_is_answered_with_its_task(stub: Stub, client: Any) -> None:
    """A replay makes no task, and is no duplicate."""
    assert create(client, "one", "smd-a") == create(client, "one", "smd-a")
    found = stub.verify(["smd-a"])
    assert (found.calls, found.tasks, found.replays) == (2, 1, 1)


def test_a_device_in_two_tasks_is_found(stub: Stub, client: Any) -> None:
    """The same device under two client tokens voids the run."""
    create(client, "one", "smd-a", "smd-b")
    create(client, "two", "smd-b")
    assert stub.ledger().repeated == 1
    with pytest.raises(WrongRun, match="1 devices have more than one"):
        stub.verify(["smd-a", "smd-b"])


def test_a_forgotten_or_a_foreign_device_is_found(stub: Stub, client: Any) -> None:
    """A run that left a device out, or sent another instead, is void."""
    create(client, "one", "smd-a")
    with pytest.raises(WrongRun, match="1 devices have a task, 2 should"):
        stub.verify(["smd-a", "smd-b"])
    with pytest.raises(WrongRun, match="not the devices"):
        stub.verify(["smd-z"])


def test_a_client_token_with_other_targets_is_found(stub: Stub, client: Any) -> None:
    """A token that names two different batches voids the run, though no device is repeated."""
    create(client, "one", "smd-a")
    create(client, "one", "smd-b")
    with pytest.raises(WrongRun, match="1 client tokens came with other targets"):
        stub.verify(["smd-a"])


def test_another_operation_is_not_found(client: Any) -> None:
    """DescribeTask gets a 404, which a courtesy look-up takes for no answer."""
    with pytest.raises(client.exceptions.ClientError, match="404"):
        client.describe_task(taskId="st-1")


def test_a_reset_forgets_everything() -> None:
    """After a reset the ledger is that of a new stub."""
    book = Book()
    book.create_task(b'{"clientToken": "one", "targets": ["smd-a"]}')
    assert book.ledger().digest == digest_of(["smd-a"])
    book.reset()
    assert book.ledger() == Book().ledger()
