"""The engine's own cost: a run over the aiobotocore transport against a bare aiobotocore loop.

Both send the same requests to the same stub with the same client settings and 64 calls in flight, in slices
that follow each other in one process (engine, bare, bare, engine, ...); the cost of a call is the CPU time
of the process, so the engine's side has its checkpoint's commits, claims and registry marks in it, and the
transport's guards. The difference is taken slice by slice.

The stub answers after 40 ms, as a service on a network does. Against one that answers at once, what is
measured is how many answers a turn of the event loop happens to serve, and no service is that near.

Some 650 calls a second is what one core does with the SDK, and both parts of the engine are dear at so few: a
commit every tenth of a second, of some 2 ms of CPU, serves 65 calls; and the engine itself, 20 us a call
where it is all that runs, takes four times that with the SDK's code between its calls (caches are cold).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from bench import stub
from bench.harness import REGION, Figure, Figures, Options, planned_ids, scratch

if TYPE_CHECKING:
    from bench.harness import Scratch
    from bench.runs import Spent

WORKERS = 64
LATENCY_S = 0.04
BAR_US = 60


def measure(options: Options) -> Figures:
    """Measure in a fresh process, so that nothing else of the benchmarks is in its memory."""
    batches, pairs = (500, 2) if options.quick else (4_000, 6)
    with scratch() as place, stub.running(LATENCY_S) as server:
        found = place.child("bench.overhead", server.url, batches, pairs)
    above = tuple(with_us - bare_us for with_us, bare_us in zip(found["engine"], found["bare"], strict=True))
    return {
        "engine above bare aiobotocore, CPU a call": Figure(above, "us", BAR_US),
        "bare aiobotocore, CPU a call": Figure(tuple(found["bare"]), "us"),
        "engine over aiobotocore, CPU a call": Figure(tuple(found["engine"]), "us"),
        "engine over aiobotocore": Figure(tuple(found["engine_calls_per_s"]), "calls/s"),
    }


async def _slices(place: Scratch, url: str, batches: int, pairs: int) -> dict[str, list[float]]:
    from dispatcher.model import MAX_TARGETS

    server = stub.Stub(url)
    devices = batches * MAX_TARGETS
    ids = planned_ids(devices)
    found: dict[str, list[float]] = {"bare": [], "engine": [], "engine_calls_per_s": []}
    async with _bare_client(url) as client:
        for number in range(-1, pairs):  # the first pair warms up
            order = ["engine", "bare"] if number % 2 else ["bare", "engine"]
            for side in order:
                server.reset()
                if side == "bare":
                    spent = await _bare(client, ids, f"bare-{number}")
                else:
                    spent = await _engine(place, server, devices, f"engine-{number + 1}")
                server.verify(ids)
                if number >= 0:
                    found[side].append(spent.cpu_us)
                    if side == "engine":
                        found["engine_calls_per_s"].append(spent.calls_per_s)
    return found


async def _engine(place: Scratch, server: stub.Stub, devices: int, name: str) -> Spent:
    """Send a planned run with our engine, over connections that stand already, as the bare side's do."""
    from bench.runs import prepare, send
    from dispatcher.library import open_sdk_transport

    prepared, settings = await asyncio.to_thread(prepare, place, name, devices, server.url)
    transport = await open_sdk_transport(prepared.plan, settings)
    try:
        await asyncio.gather(
            *(transport.create_task(["smd-warm-up"], f"{name}-{number}") for number in range(2 * WORKERS))
        )
        server.reset()
        return await send(prepared, settings, transport)
    finally:
        await transport.close()


def _bare_client(url: str) -> Any:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession

    return AioSession().create_client(
        "snow-device-management",
        region_name=REGION,
        endpoint_url=url,
        aws_access_key_id="emulator",
        aws_secret_access_key="emulator",
        config=AioConfig(
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=WORKERS,
            connect_timeout=5,
            read_timeout=10,
            parameter_validation=False,
            proxies={},
        ),
    )


async def _bare(client: Any, ids: list[str], name: str) -> Spent:
    """Send the same batches with the SDK alone: no plan, no checkpoint, no limits, answers not looked at."""
    from bench.runs import Spent, started
    from dispatcher.model import MAX_TARGETS
    from dispatcher.plan import SYSTEM_TAG_RUN, SYSTEM_TAG_TOKEN

    starts = iter(range(0, len(ids), MAX_TARGETS))

    async def worker() -> None:
        for start in starts:
            token = f"{name}-{start:0{63 - len(name)}d}"
            await client.create_task(
                targets=ids[start : start + MAX_TARGETS],
                clientToken=token,
                command={"reboot": {}},
                tags={SYSTEM_TAG_RUN: name, SYSTEM_TAG_TOKEN: token},
            )

    cpu_s, wall_s = started()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(WORKERS):
            tasks.create_task(worker())
    calls = len(ids) // MAX_TARGETS
    return Spent(time.process_time() - cpu_s, time.perf_counter() - wall_s, calls)


if __name__ == "__main__":
    import uvloop

    with scratch() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(_slices(folder, sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
