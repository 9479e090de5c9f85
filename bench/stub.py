"""A service that does nothing but answer CreateTask, as cheaply as Python can, and keep a ledger.

The emulator checks, throttles and fails as the real service may, and costs as much as the client under
test. Here the client alone is to be measured: one asyncio protocol, the least of HTTP, one dictionary. It
still behaves where it matters: a client token seen before is answered with the task it made, and every
device is counted, so that a fast run which loses or repeats a device scores nothing.

    POST /task      200 with a task id
    GET /_ledger    what arrived since the last reset, as `Ledger`
    POST /_reset    forget it all

Started by `running()` in a process of its own, so that its CPU time is not the client's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import ssl
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, cast

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

ARN = "arn:aws:snow-device-management:us-west-2:123456789012:task/"
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """What the stub saw since its last reset."""

    calls: int
    tasks: int
    """Client tokens seen; each made one task."""
    replays: int
    """Calls under a token that was seen before."""
    mismatches: int
    """Replays whose targets were not those of the first call."""
    devices: int
    """Distinct devices with a task."""
    repeated: int
    """Devices in more than one task."""
    digest: str
    """`digest_of` the devices with a task."""
    first_call_s: float | None
    """Instant of the first call, on the clock of `time.monotonic`, which Linux shares between processes."""


class _Call(msgspec.Struct):
    clientToken: str  # noqa: N815  (the API's name)
    targets: msgspec.Raw


def digest_of(device_ids: Iterable[str]) -> str:
    """Return a digest of a set of devices, whatever its order."""
    return hashlib.sha256("\n".join(sorted(device_ids)).encode()).hexdigest()


class Book:
    """Tokens and their tasks; a call costs one look-up, the rest is worked out when the ledger is read."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._calls = 0
        self._mismatches = 0
        self._first_call_s: float | None = None
        self._made: dict[str, tuple[str, bytes]] = {}

    def create_task(self, body: bytes) -> bytes:
        """Make or repeat a task; return the answer's body."""
        if self._first_call_s is None:
            self._first_call_s = time.monotonic()
        self._calls += 1
        call = _decode(body)
        targets = bytes(call.targets)
        made = self._made.get(call.clientToken)
        if made is None:
            made = self._made[call.clientToken] = (f"st-{len(self._made):017d}", targets)
        elif made[1] != targets:
            self._mismatches += 1
        return f'{{"taskId":"{made[0]}","taskArn":"{ARN}{made[0]}"}}'.encode()

    def ledger(self) -> Ledger:
        """Work out who got how many tasks."""
        tasks: Counter[str] = Counter()
        for _, targets in self._made.values():
            tasks.update(msgspec.json.decode(targets, type=list[str]))
        return Ledger(
            calls=self._calls,
            tasks=len(self._made),
            replays=self._calls - len(self._made),
            mismatches=self._mismatches,
            devices=len(tasks),
            repeated=sum(count > 1 for count in tasks.values()),
            digest=digest_of(tasks),
            first_call_s=self._first_call_s,
        )


_decode = msgspec.json.Decoder(_Call).decode


class _Connection(asyncio.Protocol):
    """Requests with a Content-Length, one after the other."""

    def __init__(self, book: Book, latency_s: float) -> None:
        self._book = book
        self._latency_s = latency_s
        self._rest = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._rest += data
        while (end := self._rest.find(b"\r\n\r\n")) >= 0:
            head = self._rest[:end]
            found = _CONTENT_LENGTH.search(head)
            size = end + 4 + (int(found[1]) if found else 0)
            if len(self._rest) < size:
                return
            body, self._rest = self._rest[end + 4 : size], self._rest[size:]
            answer = self._answer(head, body)
            if self._latency_s and head.startswith(b"POST /task"):
                asyncio.get_running_loop().call_later(self._latency_s, self._transport.write, answer)
            else:
                self._transport.write(answer)

    def _answer(self, head: bytes, body: bytes) -> bytes:
        if head.startswith(b"POST /task "):
            try:
                reply = self._book.create_task(body)
            except msgspec.DecodeError:
                return _BAD_REQUEST
        elif head.startswith(b"GET /_ledger "):
            reply = msgspec.json.encode(self._book.ledger())
        elif head.startswith(b"POST /_reset "):
            self._book.reset()
            reply = b"{}"
        else:
            return _NOT_FOUND
        return _HEAD % (len(reply), reply)


class Stub:
    """A stub in another process."""

    def __init__(self, url: str, tls_url: str = "", bundle: Path | None = None) -> None:
        self.url = url
        self.tls_url = tls_url
        """The same book over TLS, where that was asked for."""
        self.bundle = bundle
        """The certificate of the authority that vouches for it."""

    def ledger(self) -> Ledger:
        """Return what arrived since the last reset."""
        return msgspec.json.decode(self._ask("GET", "/_ledger"), type=Ledger)

    def reset(self) -> None:
        """Let the stub forget what arrived."""
        self._ask("POST", "/_reset")

    def _ask(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(self.url + path, method=method)
        with _DIRECT.open(request, timeout=60) as answer:
            body: bytes = answer.read()
            return body

    def verify(self, device_ids: Iterable[str]) -> Ledger:
        """Return the ledger; raise `WrongRun` unless exactly these devices got exactly one task each."""
        found, wanted = self.ledger(), set(device_ids)
        problems = [
            f"{found.devices} devices have a task, {len(wanted)} should" * (found.devices != len(wanted)),
            f"{found.repeated} devices have more than one" * bool(found.repeated),
            f"{found.mismatches} client tokens came with other targets" * bool(found.mismatches),
            "they are not the devices that were planned" * (found.digest != digest_of(wanted)),
        ]
        if any(problems):
            raise WrongRun("the ledger disagrees: " + "; ".join(filter(None, problems)))
        return found


class WrongRun(Exception):
    """A benchmark's run did not do what it claims; its figures are void."""


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def running(latency_s: float = 0.0, *, tls_in: Path | None = None) -> Iterator[Stub]:
    """Serve on a free port of this machine, in a process of its own, until the block ends.

    A CreateTask is answered `latency_s` after it arrived. With `tls_in`, a folder, it is served over TLS too,
    and the folder gets the certificates.
    """
    command = [sys.executable, "-m", "bench.stub", str(latency_s)]
    bundle = None
    if tls_in is not None:
        bundle = _certify(tls_in)
        command.append(str(tls_in / "stub.pem"))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        urls = process.stdout.readline().split()
        if not urls:
            raise RuntimeError("the stub server did not start")
        yield Stub(urls[0], urls[-1], bundle)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _certify(folder: Path) -> Path:
    """Make an authority and the stub's certificate; return the authority's file."""
    import trustme

    authority = trustme.CA()
    authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(
        str(folder / "stub.pem")
    )
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    return folder / "authority.pem"


async def _serve(latency_s: float, certificate: str | None) -> None:
    book = Book()
    contexts: list[tuple[str, ssl.SSLContext | None]] = [("http", None)]
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        contexts.append(("https", context))
    urls, servers = [], []
    for scheme, tls in contexts:
        server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(book, latency_s), "127.0.0.1", 0, backlog=1024, ssl=tls
        )
        servers.append(server)
        urls.append(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    print(*urls, flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    from uvloop import new_event_loop

    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(float(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
