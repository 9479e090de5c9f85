"""Running one seed: its scenario drawn, its world run, its result kept."""

from __future__ import annotations

import gc
import hashlib
import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.simulation.scenario import Scenario, draw
from tests.simulation.world import World

if TYPE_CHECKING:
    from collections.abc import Iterable

SHARED_MEMORY = Path("/dev/shm")
"""Where there is one, files live in memory: nothing here needs a real disk."""


@dataclass(slots=True)
class Result:
    """What one seed came to."""

    seed: int
    broken: list[str]
    digest: str
    """SHA-256 of the log."""
    simulated_s: float
    reached: Counter[str]
    lines: list[str] = field(default_factory=list)


def run_scenario(scenario: Scenario) -> Result:
    """Run one scenario in a folder of its own."""
    where = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="dispatcher-simulation-", dir=where))
    world = World(scenario, folder).run()
    text = "\n".join(world.lines)
    return Result(
        scenario.seed,
        list(world.witness.broken),
        hashlib.sha256(text.encode()).hexdigest(),
        world.loop.virtual_s + world.slept_s,
        world.reached,
        world.lines,
    )


def run_seed(seed: int) -> Result:
    return run_scenario(draw(seed))


def run_seeds(seeds: Iterable[int]) -> list[Result]:
    """Run seeds in this process; logs are dropped, their digests kept."""
    results = []
    for seed in seeds:
        result = run_seed(seed)
        result.lines = []
        results.append(result)
        if seed % 50 == 0:
            gc.collect()
    return results
