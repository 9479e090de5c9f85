"""CreateTask against the emulator: calls per second, and per second of its own CPU.

The driver is the cheapest client that Python has: one asyncio protocol a connection, requests built
beforehand, an answer cut at its Content-Length and never parsed. It runs in this process and the emulator
in another, so that two cores serve the two. CPU time is the emulator's own, from /proc: the figure holds
on a machine that others use, too. Every task is counted in the ledger afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, cast

import uvloop

from bench.harness import Figure, Figures, Options
from dispatcher.emulator.fleet import fleet_id

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 32
TARGETS = 10
FLEET = 10_000_000
WARM_UP = 0.1
"""Share of the calls that are sent before measuring begins."""


def measure(options: Options) -> Figures:
    """Send calls for distinct devices of a fleet of ten million."""
    calls = 2_000 if options.quick else 30_000
    per_cpu_s, per_s = [], []
    for _ in range(options.repetitions(5)):
        cpu_s, wall_s, sent = _once(calls)
        per_cpu_s.append(sent / cpu_s)
        per_s.append(sent / wall_s)
    return {
        "CreateTask per second of its CPU": Figure(tuple(per_cpu_s), "/s", 3000, low_bar=True),
        "CreateTask per second": Figure(tuple(per_s), "/s"),
    }


def _once(calls: int) -> tuple[float, float, int]:
    requests = [_request(number) for number in range(calls)]
    first = int(calls * WARM_UP)
    with _emulator() as (process, url), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_drive(url, requests[:first]))
        cpu_s, began_s = _cpu_s(process), time.monotonic()
        runner.run(_drive(url, requests[first:]))
        wall_s, cpu_s = time.monotonic() - began_s, _cpu_s(process) - cpu_s
        with _DIRECT.open(url + "/_ledger", timeout=60) as answer:
            found = json.load(answer)
    wanted = {"calls": calls, "tasks": calls, "devices": calls * TARGETS, "devices_with_many_tasks": 0}
    if any(found[name] != value for name, value in wanted.items()):
        raise RuntimeError(f"the ledger disagrees: {found}")
    return cpu_s, wall_s, calls - first


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def _emulator() -> Iterator[tuple[int, str]]:
    command = [sys.executable, "-m", "dispatcher", "emulator", "--devices", str(FLEET)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "listening on" not in line:
            raise RuntimeError("the emulator did not start")
        yield process.pid, line.split()[-1]
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _cpu_s(pid: int) -> float:
    """Return the CPU time of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _request(number: int) -> bytes:
    """Build a call as signed clients send it: tags, description, and a scope to read the region from."""
    body = json.dumps(
        {
            "command": {"reboot": {}},
            "targets": [fleet_id(number * TARGETS + index) for index in range(TARGETS)],
            "clientToken": hashlib.sha256(str(number).encode()).hexdigest(),
            "description": "Nightly reboot",
            "tags": {"dispatcher-run": "bench", "dispatcher-token": f"{number:016x}"},
        }
    ).encode()
    head = (
        "POST /task HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        "X-Amz-Date: 20261123T000000Z\r\nAuthorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261123/"
        "us-west-2/snow-device-management/aws4_request, SignedHeaders=host;x-amz-date, "
        f"Signature={'0' * 64}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection(asyncio.Protocol):
    """Sends the next request when the answer to the last is whole."""

    def __init__(self, requests: Iterator[bytes], done: asyncio.Future[None]) -> None:
        self._requests = requests
        self._done = done
        self._rest = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is none by class
        self._next()

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, end, body = self._rest.partition(b"\r\n\r\n")
        if not end:
            return
        if not head.startswith(b"HTTP/1.1 200 "):
            self._fail(RuntimeError(f"answered {self._rest[:200]!r}"))
            return
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
        if len(body) >= size:
            self._rest = body[size:]
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or RuntimeError("the emulator hung up"))

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def _next(self) -> None:
        assert self._transport is not None
        request = next(self._requests, None)
        if request is not None:
            self._transport.write(request)
        elif not self._done.done():
            self._done.set_result(None)
            self._transport.close()


async def _drive(url: str, requests: list[bytes]) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    loop = asyncio.get_running_loop()
    left = iter(requests)
    ends = [loop.create_future() for _ in range(CONNECTIONS)]
    for done in ends:
        await loop.create_connection(lambda done=done: _Connection(left, done), host, int(port))  # type: ignore[misc]
    await asyncio.gather(*ends)
