"""Where the time of a call goes over the wire transport: CPU a call by stage, plain and over TLS.

Each step of a ladder does all that the one before did and one thing more, against the same stub, in slices
that follow each other in one process, over connections that stand already; a stage is the difference of two
steps, taken round by round. So nothing is instrumented, and what a stage costs is what the whole would save
without it: the turns of the loop, the garbage and the waiting for the interpreter's lock included.

    bare      64 connections, each sends the next request as soon as it has an answer: write, read, parse
    pool      the same bytes through the pool: an idle connection, a deadline
    call      `create_task`: the body, the signature, the answer judged
    engine    a run without a checkpoint: client token, gate, permit, outcome, what is learnt
    dispatch  a run as it is: claims, blocks of outcomes, the registry's marks, beats

What "alone" stands before was measured by itself, over and over (`pieces`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import ssl
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from bench import stub
from bench.harness import Figure, Figures, Options, planned_ids, scratch
from bench.pieces import PIECES, measured_alone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from bench.harness import Scratch
    from dispatcher.prepared import Prepared
    from dispatcher.settings import Resolved
    from dispatcher.transport.wire import WireTransport
    from dispatcher.transport.wire_connection import Broken, Reply
    from dispatcher.transport.wire_pool import Origin

WORKERS = 64
STAGES = {
    "bare": "write, read and parse: the bare wire",
    "pool": "pool and deadline",
    "call": "body, signature, answer judged",
    "engine": "client token, gate, permit, outcome, learning",
    "dispatch": "checkpoint: claims, blocks, marks",
}
"""The steps in order, and what each adds."""


def measure(options: Options) -> Figures:
    """Measure in a fresh process."""
    batches, rounds = (1_000, 2) if options.quick else (16_000, 7)
    with scratch() as place, stub.running(tls_in=place.folder) as server:
        place.environment["AWS_CA_BUNDLE"] = str(server.bundle)
        found = place.child("bench.profile", server.url, server.tls_url, server.bundle, batches, rounds)
    figures: Figures = {}
    for scheme in ("plain", "TLS"):
        steps: dict[str, list[float]] = found[scheme]
        before = [0.0] * rounds
        for step, says in STAGES.items():
            added = tuple(now - then for now, then in zip(steps[step], before, strict=True))
            figures[f"{scheme}: {says}"] = Figure(added, "us")
            before = steps[step]
        figures[f"{scheme}: the whole dispatch"] = Figure(tuple(steps["dispatch"]), "us")
    for name, says in PIECES.items():
        figures[says] = Figure(tuple(found["alone"][name]), "us")
    return figures


class _Recorder:
    """Stands in for a pool: keeps what would be sent, and says that it was accepted."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []

    async def ask(self, request: bytes) -> Reply:
        from dispatcher.transport.wire_connection import Reply

        self.requests.append(request)
        return Reply(200, [], b'{"taskId":"st-0"}')


class Ladder:
    """The steps, against one address of one stub."""

    def __init__(self, place: Scratch, server: stub.Stub, url: str, batches: int) -> None:
        self._place = place
        self._server = server
        self._url = url
        self._tls = ssl.create_default_context(cafile=server.bundle) if url.startswith("https") else None
        self._devices = 10 * batches
        self._ids = planned_ids(self._devices)
        self._plans = 0
        self._requests: list[bytes] = []

    async def climb(self, steps: Sequence[str]) -> dict[str, float]:
        """Do each step once; return microseconds of CPU a call."""
        found = {}
        for step in steps:
            self._server.reset()
            found[step] = await getattr(self, f"_{step}")()
            self._server.verify(self._ids)
        return found

    async def _plan(self) -> tuple[Prepared, Resolved]:
        from bench.runs import prepare

        self._plans += 1
        name = f"{'tls' if self._tls else 'plain'}-{self._plans}"
        return await asyncio.to_thread(prepare, self._place, name, self._devices, self._url)

    async def _calls(self) -> tuple[WireTransport, list[tuple[tuple[str, ...], str]]]:
        """Return an open transport and what to call it with."""
        from dispatcher.plan import ClientTokens

        prepared, settings = await self._plan()
        transport = await wire_transport(prepared, settings)
        tokens = ClientTokens(prepared.plan)
        calls = [(row.targets, tokens.of(row.targets)) for row in prepared.checkpoint.rows()]
        prepared.checkpoint.close()
        return transport, calls

    async def _signed(self) -> list[bytes]:
        """Return the requests of a run, made once."""
        if not self._requests:
            transport, calls = await self._calls()
            pool, recorder = transport._pool, _Recorder()
            transport._pool = cast("Any", recorder)
            for call in calls:
                await transport.create_task(*call)
            transport._pool = pool
            await transport.close()
            self._requests = recorder.requests
        return self._requests

    def _origin(self) -> Origin:
        from dispatcher.transport.wire_pool import Origin

        address = urlsplit(self._url)
        return Origin(address.hostname or "", address.port or 0, self._tls)

    async def _warm(self, transport: WireTransport) -> None:
        """Open the connections, and let the stub forget how."""
        await asyncio.gather(*(transport.create_task(("smd-warm",), f"warm-{n}") for n in range(WORKERS)))
        self._server.reset()

    async def _bare(self) -> float:
        from dispatcher.transport.wire_connection import Connection

        requests, (host, port, tls) = await self._signed(), self._origin()
        loop = asyncio.get_running_loop()
        opened = [
            await loop.create_connection(lambda: Connection(loop), host, port, ssl=tls)
            for _ in range(WORKERS)
        ]
        idle = [connection for _, connection in opened]

        async def ask(request: bytes) -> Reply | Broken:
            connection = idle.pop()
            end = await connection.ask(request)
            idle.append(connection)
            return end

        try:
            return await _each(requests, ask)
        finally:
            for connection in idle:
                connection.abort()

    async def _pool(self) -> float:
        from dispatcher.transport.wire_pool import Pool

        requests, pool = await self._signed(), Pool(self._origin(), timeout_s=10.0)
        await asyncio.gather(*map(pool.ask, requests[:WORKERS]))
        self._server.reset()
        try:
            return await _each(requests, pool.ask)
        finally:
            pool.close()

    async def _call(self) -> float:
        transport, calls = await self._calls()
        await self._warm(transport)
        try:
            return await _each(calls, lambda call: transport.create_task(*call))
        finally:
            await transport.close()

    async def _engine(self) -> float:
        from bench.nothing import without_checkpoint
        from bench.runs import send
        from dispatcher.checkpoint.writer import InlineOffload

        prepared, settings = await self._plan()
        transport = await wire_transport(prepared, settings)
        await self._warm(transport)
        hollow, _ = without_checkpoint(prepared)
        try:
            return (await send(hollow, settings, transport, InlineOffload(), judge=False)).cpu_us
        finally:
            prepared.checkpoint.close()
            await transport.close()

    async def _dispatch(self) -> float:
        from bench.runs import send

        prepared, settings = await self._plan()
        transport = await wire_transport(prepared, settings)
        await self._warm(transport)
        try:
            return (await send(prepared, settings, transport)).cpu_us
        finally:
            await transport.close()


async def wire_transport(prepared: Prepared, settings: Resolved) -> WireTransport:
    """Open the wire transport of a plan."""
    from dispatcher.library import open_sdk_transport

    wired = dataclasses.replace(settings, transport="wire")
    return cast("WireTransport", await open_sdk_transport(prepared.plan, wired))


async def _each(items: Sequence[Any], ask: Callable[[Any], Awaitable[object]]) -> float:
    """Ask for every item, 64 at once; return microseconds of CPU a call."""
    from bench.runs import started

    left = iter(items)

    async def worker() -> None:
        for item in left:
            await ask(item)

    cpu_s, _ = started()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(WORKERS):
            tasks.create_task(worker())
    return 1e6 * (time.process_time() - cpu_s) / len(items)


async def _measured(place: Scratch, server: stub.Stub, batches: int, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {"plain": {}, "TLS": {}, "alone": {}}
    ladders = {
        "plain": Ladder(place, server, server.url, batches),
        "TLS": Ladder(place, server, server.tls_url, batches),
    }
    for number in range(-1, rounds):  # the first round warms up
        for scheme, ladder in ladders.items():
            steps = list(STAGES) if number % 2 else list(STAGES)[::-1]
            for step, spent_us in (await ladder.climb(steps)).items():
                if number >= 0:
                    found[scheme].setdefault(step, []).append(spent_us)
        alone = await measured_alone(place, server.url, f"alone-{number + 1}")
        if number >= 0:
            for name, spent_us in alone.items():
                found["alone"].setdefault(name, []).append(spent_us)
    return found


if __name__ == "__main__":
    import uvloop

    url, tls_url, bundle, count, times = sys.argv[1:]
    with scratch() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        one = stub.Stub(url, tls_url, Path(bundle))
        print(json.dumps(runner.run(_measured(folder, one, int(count), int(times)))))
