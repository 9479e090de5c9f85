"""The checkpoint's own cost: the engine over a scripted transport with it, minus the engine without.

With: SQLite, commits in their thread, the registry's marks, all as in a real run. Without: a store that
hands batches out and keeps nothing, on the loop itself. Slices follow each other in one process; the cost
is the CPU time of the process per batch, and the difference is taken slice by slice.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

from bench.harness import Figure, Figures, Options, planned_ids, scratch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.harness import Scratch
    from bench.runs import Spent
    from dispatcher.model import Answer

BAR_US = 6
LEAST_CALLS_PER_S = 5_000
_ENDPOINT = "http://127.0.0.1:9"


def measure(options: Options) -> Figures:
    """Measure in a fresh process."""
    batches, pairs = (5_000, 2) if options.quick else (20_000, 21)
    with scratch() as place:
        found = place.child("bench.durability", batches, pairs)
    above = tuple(
        with_us - without_us for with_us, without_us in zip(found["with"], found["without"], strict=True)
    )
    return {
        "checkpoint alone, CPU a batch": Figure(above, "us", BAR_US),
        "engine without a checkpoint, CPU a batch": Figure(tuple(found["without"]), "us"),
        "engine with its checkpoint": Figure(
            tuple(found["calls_per_s"]), "calls/s", LEAST_CALLS_PER_S, low_bar=True
        ),
    }


class Service:
    """Answers at the next turn of the loop, and counts what it is asked, as a ledger does."""

    def __init__(self) -> None:
        self._tasks: dict[str, Sequence[str]] = {}

    async def __call__(self, targets: Sequence[str], client_token: str) -> Answer:
        from dispatcher.model import Answer, Kind

        await asyncio.sleep(0)
        if client_token in self._tasks:
            raise RuntimeError(f"client token {client_token} was sent twice")
        self._tasks[client_token] = targets
        task_id = f"st-{len(self._tasks):017d}"
        return Answer(kind=Kind.ACCEPTED, task_id=task_id, task_arn=ARN + task_id)

    def verify(self, ids: list[str]) -> None:
        """Raise unless every device came exactly once."""
        found = [target for targets in self._tasks.values() for target in targets]
        if sorted(found) != ids:
            raise RuntimeError(f"{len(found)} devices were sent, {len(set(found))} of them distinct")


ARN = "arn:aws:snow-device-management:us-west-2:123456789012:task/"


async def _slices(place: Scratch, batches: int, pairs: int) -> dict[str, list[float]]:
    from dispatcher.model import MAX_TARGETS

    devices = batches * MAX_TARGETS
    ids = planned_ids(devices)
    found: dict[str, list[float]] = {"with": [], "without": [], "calls_per_s": []}
    for number in range(-1, pairs):  # the first pair warms up
        for side in ["with", "without"] if number % 2 else ["without", "with"]:
            spent = await _slice(place, f"{side}-{number + 1}", devices, ids, durable=side == "with")
            if number >= 0:
                found[side].append(spent.cpu_us)
                if side == "with":
                    found["calls_per_s"].append(spent.calls_per_s)
    return found


async def _slice(place: Scratch, name: str, devices: int, ids: list[str], *, durable: bool) -> Spent:
    from bench.nothing import without_checkpoint
    from bench.runs import prepare, send
    from dispatcher.checkpoint.writer import InlineOffload
    from dispatcher.transport.scripted import ScriptedTransport

    prepared, settings = await asyncio.to_thread(prepare, place, name, devices, _ENDPOINT)
    service = Service()
    transport = ScriptedTransport(service)
    if durable:
        spent = await send(prepared, settings, transport)
    else:
        hollow, store = without_checkpoint(prepared)
        spent = await send(hollow, settings, transport, InlineOffload(), judge=False)
        if store.recorded != len(ids) // 10:
            raise RuntimeError(f"{store.recorded} outcomes were handed in")
        prepared.checkpoint.close()
    service.verify(ids)
    return spent


if __name__ == "__main__":
    import uvloop

    with scratch() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(_slices(folder, int(sys.argv[1]), int(sys.argv[2])))))
