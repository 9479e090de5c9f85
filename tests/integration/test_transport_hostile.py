"""The reference transport against servers that are broken or hostile: raw sockets, no emulator."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import resource
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dispatcher.model import Answer, Kind
from dispatcher.transport import aiobotocore, resolving
from tests.contract.service import TOKEN
from tests.contract.service import opened as opened_of

opened = functools.partial(opened_of, "aiobotocore")
Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GOOD = b'{"taskId": "st-0000000000000001", "taskArn": "arn:aws:snow-device-management:us-west-2:1:task/x"}'


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """One answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def request_of(reader: asyncio.StreamReader) -> bytes:
    """Read one request whole."""
    head = await reader.readuntil(b"\r\n\r\n")
    named = dict(line.lower().partition(b":")[::2] for line in head.split(b"\r\n"))
    return head + await reader.readexactly(int(named[b"content-length"]))


@contextlib.asynccontextmanager
async def serving(peer: Peer, **options: Any) -> AsyncIterator[int]:
    """Serve on a free port of loopback; return the port."""
    connected: list[tuple[asyncio.Task[Any] | None, asyncio.StreamWriter]] = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append((asyncio.current_task(), writer))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await peer(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(connection, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task, writer in connected:
            writer.transport.abort()
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task, _ in connected if task is not None), return_exceptions=True)


def ask(peer: Peer, *, times: int = 1) -> list[Answer]:
    """Make calls to a peer, one after the other."""

    async def call() -> list[Answer]:
        async with serving(peer) as port, opened(f"http://127.0.0.1:{port}") as transport:
            return [await transport.create_task(("smd-1",), TOKEN) for _ in range(times)]

    return asyncio.run(call())


def always(answer: bytes) -> Peer:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            writer.write(answer)
            await writer.drain()

    return peer


def test_a_bomb_is_not_unpacked() -> None:
    """A body that would unpack to a gigabyte is no success, and costs no memory."""
    bomb = gzip.compress(bytes(1 << 26), 9) * 16
    assert len(bomb) < 1 << 21
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for body in (bomb, gzip.compress(bytes(1 << 28), 1)[: 1 << 20]):
        (answer,) = ask(always(http(body, "200 OK", "Content-Encoding: gzip")))
        assert answer.kind in (Kind.UNREADABLE, Kind.NO_REPLY)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_a_gigabyte_is_announced() -> None:
    """A Content-Length of a gigabyte is given up after a mebibyte, and not waited for."""
    head = http(b"").replace(b"Content-Length: 0", b"Content-Length: 1073741824")
    (answer,) = ask(always(head + bytes(1 << 21)))
    assert answer.kind is Kind.NO_REPLY


def test_a_connection_closed_between_calls_is_opened_again() -> None:
    """The service closes a connection it kept alive: at most one call has to be made again, in doubt."""
    requests: list[bytes] = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await request_of(reader))
        writer.write(http(GOOD))
        await writer.drain()
        writer.close()

    answers = ask(peer, times=6)
    assert {answer.kind for answer in answers} <= {Kind.ACCEPTED, Kind.NO_REPLY}
    assert [answer.kind for answer in answers].count(Kind.ACCEPTED) == len(requests) >= 3


BODIES = (
    b'{"taskId": ""}', b'{"taskId": 7}', b'{"taskId": null}', b"[]", b"null", b"\xff\xfe", b"<html>",
    b'{"__type": "ThrottlingException", "message": "slow"}', b'{"taskId": "' + b"x" * 300 + b'"}',
    b'{"taskId": "a\\u0000b"}', b"[" * 100_000,
)  # fmt: skip
ANSWERS = (
    b"no http at all\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
)


@pytest.mark.parametrize("answer", [*map(http, BODIES), *ANSWERS])
def test_nothing_odd_is_a_success(answer: bytes) -> None:
    """Whatever comes with status 200 but without a task id leaves doubt."""
    (got,) = ask(always(answer))
    assert got.kind in (Kind.UNREADABLE, Kind.NO_REPLY, Kind.ODD)
    assert got.task_id is None


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[..., ssl.SSLContext]:
    """Make a certificate with the system's openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")

    def make(name: str, *dates: str) -> ssl.SSLContext:
        key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
        subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", key, "-out", cert, *subject, *dates],
            check=True, capture_output=True,
        )  # fmt: skip
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(cert, key)
        return context

    return make


@pytest.mark.parametrize("name", ["localhost", "elsewhere.example"])
def test_a_wrong_certificate_is_not_talked_to(
    certificate: Callable[..., ssl.SSLContext], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown, expired or of another name: the handshake ends, and not a byte of a request was read."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    heard: list[bytes] = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))

    async def call() -> Answer:
        async with (
            serving(peer, ssl=certificate(name)) as port,
            opened(f"https://localhost:{port}") as transport,
        ):
            return await transport.create_task(("smd-1",), TOKEN)

    answer = asyncio.run(call())
    assert answer.kind is Kind.UNREACHABLE, answer
    assert "certificate" in (answer.message or "").lower() or "SSL" in (answer.code or ""), answer
    assert heard == []


def test_a_name_that_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS that fails, changes and comes back: nothing is sent while it is away, the rest is accepted."""
    monkeypatch.setattr(aiobotocore, "is_loopback", lambda _host: True)
    real, turns = socket.getaddrinfo, iter([OSError("no such host"), None, OSError("try again"), None])

    def flapping(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        if host != "service.example":
            return real(host, port, *rest, **named)
        turn = next(turns, None)
        if turn is not None:
            raise turn
        return real("127.0.0.1", port, *rest, **named)

    monkeypatch.setattr(resolving.socket, "getaddrinfo", flapping)

    async def call() -> list[Kind]:
        async with (
            serving(always(http(GOOD, "200 OK", "Connection: close"))) as port,
            opened(f"http://service.example:{port}") as transport,
        ):
            return [(await transport.create_task(("smd-1",), TOKEN)).kind for _ in range(5)]

    kinds = asyncio.run(call())
    assert kinds[0] is Kind.UNREACHABLE
    assert set(kinds) == {Kind.UNREACHABLE, Kind.ACCEPTED}
    assert kinds[-1] is Kind.ACCEPTED
