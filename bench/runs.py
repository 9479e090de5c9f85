"""A run inside this process, as the command makes one, with its parts open to be exchanged."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.harness import REGION, Scratch
from dispatcher.clock import SystemClock
from dispatcher.intent import Intent
from dispatcher.manifest import Manifest
from dispatcher.observe import Hooks
from dispatcher.prepare import Preparation
from dispatcher.run import Run
from dispatcher.settings import Resolved, Settings

if TYPE_CHECKING:
    from dispatcher.checkpoint.writer import Offload
    from dispatcher.prepared import Prepared
    from dispatcher.transport.base import Transport

CEILING_PER_S = 1e5
"""Far above what any client reaches, and "learnt" before: the window is what limits."""
BURST = 1_000
"""With a small burst, 64 calls that come home in one turn of the loop would wait microseconds each."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What sending one run cost this process, all its threads together."""

    cpu_s: float
    wall_s: float
    calls: int

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU per call."""
        return 1e6 * self.cpu_s / self.calls

    @property
    def calls_per_s(self) -> float:
        return self.calls / self.wall_s


def prepare(place: Scratch, name: str, devices: int, endpoint_url: str) -> tuple[Prepared, Resolved]:
    """Plan a run of a generated fleet."""
    manifest = Manifest.load(place.manifest(name, devices))
    settings = Settings(
        endpoint_url=endpoint_url,
        state_dir=place.state,
        rate_per_s=CEILING_PER_S,
        burst=BURST,
        max_in_flight=64,
    ).resolve(manifest)
    prepared = Preparation(settings).of_manifest(Intent.of(manifest, settings, REGION))
    prepared.checkpoint.learn(rate=CEILING_PER_S, now=time.time())
    return prepared, settings


async def send(
    prepared: Prepared,
    settings: Resolved,
    transport: Transport,
    offload: Offload | None = None,
    *,
    judge: bool = True,
) -> Spent:
    """Send a planned run to its end: first claim to last commit; `judge` that everything was accepted."""
    run = Run(prepared, settings, Hooks(), SystemClock(), offload=offload)
    cpu_s, wall_s = started()
    summary = await run.go(transport)
    spent = Spent(time.process_time() - cpu_s, time.perf_counter() - wall_s, summary.calls)
    run.close()
    if judge and (summary.exit or summary.counts.accepted != summary.counts.devices):
        raise RuntimeError(f"the run went wrong: {summary}")
    return spent


def started() -> tuple[float, float]:
    """Begin a measurement with no garbage of the last one about; return CPU and wall seconds."""
    gc.collect()
    return time.process_time(), time.perf_counter()
