"""Every fault as a client meets it on the wire."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from dispatcher.emulator.app import Emulator, run_emulator
from dispatcher.emulator.config import Config
from dispatcher.emulator.faults import Fault, FaultPlan, Outage

GOOD = {"command": {"reboot": {}}, "targets": ["smd-a"], "clientToken": "t"}


async def exchange(emulator: Emulator, *, limit: int = 1 << 20, seconds: float = 5.0) -> bytes:
    """Send one CreateTask over a fresh connection; return what comes until it ends, or up to `limit`."""
    host, _, port = emulator.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(GOOD).encode()
    head = f"POST /task HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    received = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while len(received) < limit and (chunk := await reader.read(65536)):
                received += chunk
    finally:
        writer.transport.abort()
    return bytes(received)


def answer(fault: Fault, *, seed: int = 0, limit: int = 1 << 20) -> tuple[bytes, bytes, int]:
    """Return head and body of the answer under one certain fault, and the number of tasks made."""

    async def main() -> tuple[bytes, bytes, int]:
        config = Config(seed=seed, faults=FaultPlan(shares={fault: 1.0}))
        async with run_emulator(config) as emulator:
            head, _, body = (await exchange(emulator, limit=limit)).partition(b"\r\n\r\n")
            assert emulator.ledger.calls[0].fault == fault
            return head, body, len(emulator.ledger.tasks)

    return asyncio.run(main())


def header(head: bytes, name: bytes) -> bytes | None:
    lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    return lines.get(name)


@pytest.mark.parametrize(
    ("fault", "status"), [(Fault.BARE_429, b"429"), (Fault.BARE_503, b"503"), (Fault.REDIRECT, b"307")]
)
def test_a_proxys_answer_has_no_code(fault: Fault, status: bytes) -> None:
    """Status and HTML, no error type, nothing made."""
    head, body, tasks = answer(fault)
    assert head.split(b" ")[1] == status
    assert header(head, b"content-type").startswith(b"text/html")  # type: ignore[union-attr]
    assert header(head, b"x-amzn-errortype") is None
    assert header(head, b"location") == (b"/elsewhere" if fault is Fault.REDIRECT else None)
    assert body.startswith(b"<html>")
    assert tasks == 0


@pytest.mark.parametrize(
    ("fault", "status", "code", "made"),
    [
        (Fault.DENIED, b"403", b"accessdeniedexception", 0),
        (Fault.ERROR_500, b"500", b"internalserverexception", 0),
        (Fault.ERROR_500_AFTER, b"500", b"internalserverexception", 1),
    ],
)
def test_modelled_faults_have_a_code_and_a_message(
    fault: Fault, status: bytes, code: bytes, made: int
) -> None:
    """They look as the service's own errors do."""
    head, body, tasks = answer(fault)
    assert (head.split(b" ")[1], header(head, b"x-amzn-errortype"), tasks) == (status, code, made)
    assert json.loads(body)["message"]


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.LOST_THEN_404])
def test_a_lost_reply_is_a_closed_connection(fault: Fault) -> None:
    """The task is made and not one byte comes back."""
    assert answer(fault) == (b"", b"", 1)


def test_reset_before_is_a_reset() -> None:
    """The peer's kernel reports a reset, and nothing was made."""
    with pytest.raises(ConnectionResetError):
        answer(Fault.RESET_BEFORE)


def test_empty_200_is_an_empty_object() -> None:
    """A 200 without a task id, although the task was made."""
    head, body, tasks = answer(Fault.EMPTY_200)
    assert (head.split(b" ")[1], body, tasks) == (b"200", b"{}", 1)


def test_truncated_takes_both_forms() -> None:
    """Over a few seeds: a body shorter than its length says, and a whole one that is no JSON."""
    forms = set()
    for seed in range(8):
        head, body, tasks = answer(Fault.TRUNCATED, seed=seed)
        assert (head.split(b" ")[1], tasks) == (b"200", 1)
        with pytest.raises(json.JSONDecodeError):
            json.loads(body)
        forms.add(int(header(head, b"content-length") or 0) == len(body))
    assert forms == {True, False}


def test_endless_does_not_end() -> None:
    """The body is still coming after 8 MiB."""
    head, body, tasks = answer(Fault.ENDLESS, limit=8 << 20)
    assert (head.split(b" ")[1], tasks) == (b"200", 1)
    assert header(head, b"content-length") is None
    assert len(body) > 7 << 20


def test_drip_brings_a_byte_at_a_time() -> None:
    """Within a second some bytes of the body have come, and by far not all."""

    async def main() -> None:
        async with run_emulator(Config(faults=FaultPlan(shares={Fault.DRIP: 1.0}))) as emulator:
            with pytest.raises(TimeoutError):
                await exchange(emulator, seconds=0.7)
            assert len(emulator.ledger.tasks) == 1

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["reset", "503"])
def test_an_outage_is_seen_by_every_call_in_it(mode: Any) -> None:
    """From the first call on, here: connections are reset, or answered with a proxy's 503."""

    async def main() -> None:
        outage = Outage(start_s=0, length_s=1000, mode=mode)
        async with run_emulator(Config(faults=FaultPlan(outage=outage))) as emulator:
            for _ in range(3):
                if mode == "reset":
                    with pytest.raises(ConnectionResetError):
                        await exchange(emulator)
                else:
                    assert (await exchange(emulator)).startswith(b"HTTP/1.1 503")
            assert emulator.ledger.summary()["by_fault"] == {"outage": 3}
            assert not emulator.ledger.tasks

    asyncio.run(main())


def test_a_client_that_leaves_is_no_longer_in_flight() -> None:
    """A call whose client has gone ends at once, whatever its latency."""

    async def main() -> None:
        async with run_emulator(Config(latency_s=60)) as emulator:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await exchange(emulator, seconds=0.1)
            assert [call.in_flight for call in emulator.ledger.calls] == [1, 1, 1]

    asyncio.run(main())
