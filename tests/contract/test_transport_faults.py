"""Every transport against what a network and a broken server may do, byte by byte over real sockets.

The rule of all of it: a request goes out once, whatever comes back, and only a whole success is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from dispatcher.model import Created, Kind
from dispatcher.transport.base import MAX_BODY_BYTES
from tests.contract.service import ANSWER, BODY, HEAD, KINDS, TOKEN, opened, raw_service, reset, sends

if TYPE_CHECKING:
    from dispatcher.model import Answer
    from tests.contract.service import Script

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(kind: str, script: Script, *, timeout_s: float = 5.0) -> Answer:
    """Make one call; whatever came of it, the service saw it once at the most."""

    async def call() -> Answer:
        async with (
            raw_service(script) as service,
            opened(kind, service.url, timeout_s=timeout_s) as transport,
        ):
            answer = await transport.create_task(("smd-1",), TOKEN)
            assert len(service.requests) <= 1
            return answer

    return asyncio.run(call())


@pytest.mark.parametrize("is_reset", [True, False])
def test_an_answer_cut_at_any_byte_leaves_doubt(kind: str, is_reset: bool) -> None:
    """Reset or closed after any byte but the last: unknown, and the next call is not harmed."""

    async def call() -> None:
        cut = 0

        async def script(_request: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(ANSWER[:cut])
            await writer.drain()
            if cut < len(ANSWER):
                reset(writer) if is_reset else writer.close()

        async with raw_service(script) as service, opened(kind, service.url) as transport:
            step = 1 if kind == "wire" else 7
            for cut in range(0, len(ANSWER), step):
                answer = await transport.create_task(("smd-1",), TOKEN)
                assert answer.created is Created.UNKNOWN, (cut, answer)
            cut, calls = len(ANSWER), len(service.requests)
            assert (await transport.create_task(("smd-1",), TOKEN)).kind is Kind.ACCEPTED
            assert len(service.requests) == calls + 1

    asyncio.run(call())


WHOLE = {
    "a byte at a time": [bytes([byte]) for byte in ANSWER],
    "chunked": [
        CHUNKED,
        b"5\r\n" + BODY[:5] + b"\r\n",
        b"%x\r\n%b\r\n" % (len(BODY) - 5, BODY[5:]),
        b"0\r\n\r\n",
    ],
    "chunked with trailers": [CHUNKED + b"%x;a=b\r\n%b\r\n0\r\nX-T: 1\r\n\r\n" % (len(BODY), BODY)],
    "after 100 Continue": [b"HTTP/1.1 100 Continue\r\n\r\n", ANSWER],
    "after 103 Early Hints": [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ANSWER],
    "odd header case and space": [ANSWER.replace(b"Content-Length: ", b"cOnTeNt-LeNgTh:    ")],
}


@pytest.mark.parametrize("pieces", WHOLE.values(), ids=WHOLE)
def test_a_whole_answer_is_understood(kind: str, pieces: list[bytes]) -> None:
    """However it is framed and cut into packets, and a second call goes over the same connection."""

    async def call() -> None:
        async with raw_service(sends(*pieces)) as service, opened(kind, service.url) as transport:
            for _ in range(2):
                answer = await transport.create_task(("smd-1",), TOKEN)
                assert (answer.kind, answer.task_id) == (Kind.ACCEPTED, "st-1")
            assert (service.connections, len(service.requests)) == (1, 2)

    asyncio.run(call())


ONCE = {
    "Connection: close": HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + BODY,
    "HTTP/1.0": HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + BODY,
    "until the end": b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("answer", ONCE.values(), ids=ONCE)
def test_a_connection_that_ends_is_not_used_again(kind: str, answer: bytes) -> None:
    """An answer that ends its connection is whole, and the next call opens another one."""

    async def call() -> None:
        async with raw_service(sends(answer, close=True)) as service, opened(kind, service.url) as transport:
            for number in (1, 2):
                assert (await transport.create_task(("smd-1",), TOKEN)).kind is Kind.ACCEPTED
                assert service.connections == number

    asyncio.run(call())


@pytest.mark.parametrize(
    "script",
    [
        sends(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", close=True),
        sends(b"SSH-2.0-OpenSSH_9.6\r\n", close=True),
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n" + BODY, close=True),
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 90\r\n\r\n" + BODY, close=True),
        sends(CHUNKED + b"zz\r\n" + BODY, close=True),
        sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", close=True),
        sends(HEAD + BODY[:-1] + b"!"),
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull"),
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n" + b'{"taskId": ""}'),
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        sends(b"HTTP/1.1 204 No Content\r\n\r\n"),
        sends(b"HTTP/1.1 307 Moved\r\nLocation: /task\r\nContent-Length: 0\r\n\r\n"),
        sends(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", close=True),
    ],
)
def test_what_is_no_answer_leaves_doubt(kind: str, script: Script) -> None:
    """Garbage, other protocols, bad framing, bad JSON, no task id: never accepted, never not created."""
    assert ask(kind, script).created is Created.UNKNOWN


@pytest.mark.parametrize(
    "flood",
    [
        HEAD.replace(b"%d" % len(BODY), b"%d" % (MAX_BODY_BYTES + 1)) + b"{" * (MAX_BODY_BYTES + 1),
        CHUNKED + b"%x\r\n" % (MAX_BODY_BYTES * 4) + b" " * (MAX_BODY_BYTES * 2),
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: y\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"y" * 1_000_000,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (MAX_BODY_BYTES * 2),
    ],
    ids=["length", "chunk", "headers", "header", "endless"],
)
def test_an_answer_has_a_size(kind: str, flood: bytes) -> None:
    """A body over a mebibyte, headers without end: cut off, in doubt."""
    assert ask(kind, sends(flood)).created is Created.UNKNOWN


def test_silence_ends_at_the_deadline(kind: str) -> None:
    """Nothing, or a byte now and then: the whole attempt has one deadline."""

    async def silent(_request: bytes, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async def drips(_request: bytes, writer: asyncio.StreamWriter) -> None:
        for byte in ANSWER:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)

    for script in (silent, drips):
        begun_s = time.monotonic()
        answer = ask(kind, script, timeout_s=0.4)
        assert (answer.kind, answer.code) == (Kind.NO_REPLY, "Timeout")
        assert 0.35 < time.monotonic() - begun_s < 4


def test_a_late_answer_is_nobodys(kind: str) -> None:
    """What comes after the deadline is never taken for the answer of another call."""

    async def call() -> None:
        async def script(_request: bytes, writer: asyncio.StreamWriter) -> None:
            if len(service.requests) == 1:
                await asyncio.sleep(0.5)
                writer.write(ANSWER.replace(b"st-1", b"st-9"))
            else:
                writer.write(ANSWER)

        async with raw_service(script) as service, opened(kind, service.url, timeout_s=0.3) as transport:
            assert (await transport.create_task(("smd-1",), TOKEN)).code == "Timeout"
            for _ in range(3):
                assert (await transport.create_task(("smd-2",), TOKEN)).task_id == "st-1"
                await asyncio.sleep(0.1)

    asyncio.run(call())


def test_a_second_answer_is_nobodys(kind: str) -> None:
    """Two answers to one request: the first counts, and the connection is not trusted any more."""

    async def call() -> None:
        other = ANSWER.replace(b"st-1", b"st-9")
        async with raw_service(sends(ANSWER + other)) as service, opened(kind, service.url) as transport:
            for _ in range(3):
                assert (await transport.create_task(("smd-1",), TOKEN)).task_id == "st-1"
            assert service.connections == 3

    asyncio.run(call())


def test_a_connection_closed_while_idle_is_replaced(kind: str) -> None:
    """A server that closes idle connections costs no doubt once its closing has arrived."""

    async def call() -> None:
        async def script(_request: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(ANSWER)
            await writer.drain()
            asyncio.get_running_loop().call_later(0.02, writer.close)

        async with raw_service(script) as service, opened(kind, service.url) as transport:
            for _ in range(3):
                assert (await transport.create_task(("smd-1",), TOKEN)).kind is Kind.ACCEPTED
                await asyncio.sleep(0.1)
            assert (service.connections, len(service.requests)) == (3, 3)

    asyncio.run(call())


def test_a_stale_connection_is_doubt_and_no_second_post(kind: str) -> None:
    """One that is reset as the request arrives: whether it was read nobody knows."""

    async def call() -> None:
        async def script(_request: bytes, writer: asyncio.StreamWriter) -> None:
            if len(service.requests) == 1:
                writer.write(ANSWER)
            else:
                reset(writer)

        async with raw_service(script) as service, opened(kind, service.url) as transport:
            assert (await transport.create_task(("smd-1",), TOKEN)).kind is Kind.ACCEPTED
            assert (await transport.create_task(("smd-2",), TOKEN)).kind is Kind.NO_REPLY
            assert len(service.requests) == 2

    asyncio.run(call())


def test_a_half_closed_connection_answers_or_is_doubt(kind: str) -> None:
    """The service ends its half without a word: in doubt at once, not at the deadline."""

    async def half(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        await asyncio.Event().wait()

    begun_s = time.monotonic()
    assert ask(kind, half).kind is Kind.NO_REPLY
    assert time.monotonic() - begun_s < 4


def test_calls_side_by_side_get_their_own_answers(kind: str) -> None:
    """Each call has a connection to itself: answers in any order go to whoever asked."""

    async def call() -> None:
        async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
            number = request.split(b"smd-")[1].split(b'"')[0]
            await asyncio.sleep(0.01 * (7 - int(number) % 8))
            body = BODY.replace(b"st-1", b"st-" + number)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        async with raw_service(script) as service, opened(kind, service.url) as transport:
            for _ in range(2):
                answers = await asyncio.gather(
                    *(transport.create_task((f"smd-{number}",), TOKEN) for number in range(8))
                )
                assert [answer.task_id for answer in answers] == [f"st-{number}" for number in range(8)]
            assert service.connections == 8

    asyncio.run(call())


def test_a_connection_belongs_to_one_call_at_a_time(kind: str) -> None:
    """Calls that follow each other as fast as they can: each gets its own answer, none is lost."""

    async def call() -> None:
        async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
            body = BODY.replace(b"st-1", b"st-" + request.split(b"smd-")[1].split(b'"')[0])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        async with raw_service(script) as service, opened(kind, service.url) as transport:
            numbers = iter(range(400))

            async def worker() -> None:
                for number in numbers:
                    answer = await transport.create_task((f"smd-{number}",), TOKEN)
                    assert answer.task_id == f"st-{number}"

            await asyncio.gather(*(worker() for _ in range(8)))
            assert (service.connections, len(service.requests)) == (8, 400)

    asyncio.run(call())


def test_a_cancelled_call_leaves_nothing_behind(kind: str) -> None:
    """Its connection is closed: the answer still under way must not meet the next request."""

    async def call() -> None:
        async def script(_request: bytes, writer: asyncio.StreamWriter) -> None:
            if len(service.requests) == 1:
                await asyncio.sleep(0.1)
                writer.write(ANSWER.replace(b"st-1", b"st-9"))
            else:
                writer.write(ANSWER)

        async with raw_service(script) as service, opened(kind, service.url) as transport:
            task = asyncio.create_task(transport.create_task(("smd-1",), TOKEN))
            while not service.requests:
                await asyncio.sleep(0.005)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert (await transport.create_task(("smd-2",), TOKEN)).task_id == "st-1"

    asyncio.run(call())


def test_addresses_are_tried_until_one_answers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a dead address and a live one is reached: failover costs no call."""
    real = socket.getaddrinfo

    def two(host: str, port: int, *arguments: object, **options: object) -> object:
        if host != "two.localhost":
            return real(host, port, *arguments, **options)  # type: ignore[arg-type]
        stream = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*stream, ("127.0.0.2", port)), (*stream, ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", two)

    async def call() -> None:
        async with raw_service(sends(ANSWER)) as service:
            url = service.url.replace("127.0.0.1", "two.localhost")
            async with opened(kind, url) as transport:
                assert (await transport.create_task(("smd-1",), TOKEN)).kind is Kind.ACCEPTED

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    asyncio.run(call())


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the authority the one that is trusted, as an operator would."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(path))


def server_side(authority: trustme.CA, name: str, highest: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    if highest is not None:
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, highest
    return context


def over_tls(kind: str, context: ssl.SSLContext) -> Answer:
    async def call() -> Answer:
        async with (
            raw_service(sends(ANSWER), tls=context) as service,
            opened(kind, service.url) as transport,
        ):
            answer = await transport.create_task(("smd-1",), TOKEN)
            assert len(service.requests) == (answer.kind is Kind.ACCEPTED)
            return answer

    return asyncio.run(call())


def test_tls_is_spoken(kind: str, authority: trustme.CA, bundle: None) -> None:
    """With a certificate that AWS_CA_BUNDLE vouches for."""
    assert over_tls(kind, server_side(authority, "127.0.0.1")).kind is Kind.ACCEPTED


def test_a_certificate_of_another_host_is_refused(kind: str, authority: trustme.CA, bundle: None) -> None:
    """Nothing is sent to a host that cannot prove its name."""
    assert over_tls(kind, server_side(authority, "127.0.0.2")).kind is Kind.UNREACHABLE


def test_an_unknown_authority_is_refused(kind: str, bundle: None) -> None:
    """Nor to one that nobody vouches for."""
    assert over_tls(kind, server_side(trustme.CA(), "127.0.0.1")).kind is Kind.UNREACHABLE


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_tls_is_refused(kind: str, authority: trustme.CA, bundle: None) -> None:
    """Nor over anything older than TLS 1.2."""
    context = server_side(authority, "127.0.0.1", ssl.TLSVersion.TLSv1_1)
    assert over_tls(kind, context).kind is Kind.UNREACHABLE


def test_a_server_that_speaks_no_tls_is_not_talked_to(kind: str, bundle: None) -> None:
    """A plain answer to the handshake: nothing was sent."""

    async def call() -> Kind:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(ANSWER)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with opened(kind, url) as transport:
                return (await transport.create_task(("smd-1",), TOKEN)).kind

    assert asyncio.run(call()) is Kind.UNREACHABLE


def test_a_handshake_that_never_ends_is_given_up(kind: str, bundle: None) -> None:
    """Half of an attempt's time is for connecting; nobody accepts here, and nothing was sent."""

    async def call(port: int) -> Kind:
        async with opened(kind, f"https://127.0.0.1:{port}", timeout_s=0.6) as transport:
            return (await transport.create_task(("smd-1",), TOKEN)).kind

    with socket.create_server(("127.0.0.1", 0)) as server:
        assert asyncio.run(call(server.getsockname()[1])) is Kind.UNREACHABLE
