"""The dispatcher as a contestant: `python -m bench.peers.ours wire|aiobotocore|whole URL IDS WORKERS`.

`whole` is the command itself, from exec to exit: CSV, plan, calls, commits, summary.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.harness import scratch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.model import Answer
    from dispatcher.transport.base import Transport


class Timed:
    """A transport that notes how long each call took."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.latencies_ms: list[float] = []

    async def create_task(self, targets: Sequence[str], client_token: str) -> Answer:
        began_s = time.perf_counter()
        answer = await self._transport.create_task(targets, client_token)
        self.latencies_ms.append(1e3 * (time.perf_counter() - began_s))
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def dispatch(kind: str, url: str, devices: int) -> dict[str, Any]:
    """Plan, open connections, and measure from the first claim to the last commit."""
    from bench.runs import prepare, send
    from dispatcher.library import open_sdk_transport

    with scratch() as place:
        prepared, settings = await asyncio.to_thread(prepare, place, "fleet", devices, url)
        settings = dataclasses.replace(settings, transport=kind)
        transport = await open_sdk_transport(prepared.plan, settings)
        try:
            timed = Timed(transport)
            spent = await send(prepared, settings, timed)
        finally:
            await transport.close()
    return {"cpu_s": spent.cpu_s, "wall_s": spent.wall_s, "latencies_ms": timed.latencies_ms}


def whole(url: str, devices: int, workers: int) -> dict[str, Any]:
    """Run the command, and count all it ever used."""
    with scratch() as place:
        manifest = place.manifest("fleet", devices)
        command = [
            *(sys.executable, "-m", "dispatcher", "run", str(manifest), "--json", "--transport", "wire"),
            *("--endpoint-url", url, "--rate", "100000", "--burst", "1000", "--max-in-flight", str(workers)),
        ]
        began_s, before = time.perf_counter(), os.times()
        done = subprocess.run(command, env=place.environment, capture_output=True, text=True, check=False)
        wall_s, after = time.perf_counter() - began_s, os.times()
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {"cpu_s": cpu_s, "wall_s": wall_s, "latencies_ms": []}


if __name__ == "__main__":
    import uvloop

    how, where, path, count = sys.argv[1:]
    size = len(Path(path).read_text(encoding="ascii").split())
    if how == "whole":
        found = whole(where, size, int(count))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(dispatch(how, where, size))
    print(json.dumps(found))
