"""The command line of the simulation: `python -m tests.simulation --help`."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from typing import TYPE_CHECKING

from tests.simulation import coverage
from tests.simulation.hunt import MAX_SEEDS, hunt, table
from tests.simulation.mutants import MUTANTS, planted
from tests.simulation.runs import Result, run_scenario, run_seeds
from tests.simulation.scenario import draw
from tests.simulation.shrink import shrink

if TYPE_CHECKING:
    from collections.abc import Sequence

YEAR_S = 365.25 * 86_400
BLOCK = 25
"""Seeds that a worker takes at once."""


def replay_command(seed: int) -> str:
    """Return the one command that shows a seed again."""
    return f"python -m tests.simulation --seed {seed}"


def run_many(seeds: Sequence[int], workers: int | None = None) -> list[Result]:
    """Run seeds on all cores; results come in the order of the seeds."""
    workers = workers or os.cpu_count() or 1
    blocks = [seeds[start : start + BLOCK] for start in range(0, len(seeds), BLOCK)]
    if workers == 1 or len(blocks) == 1:
        return [result for block in blocks for result in run_seeds(block)]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        return [result for block in pool.imap(run_seeds, blocks) for result in block]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run one seed and print its scenario and its log")
    parser.add_argument("--shrink", action="store_true", help="with --seed: leave out what does not matter")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="with --seed: plant this bug first")
    parser.add_argument("--seeds", default="0:1000", metavar="A:B", help="run seeds A to B - 1 (0:1000)")
    parser.add_argument("--twice", action="store_true", help="run every seed twice and compare the logs")
    parser.add_argument("--coverage", action="store_true", help="print what was reached, and how often")
    parser.add_argument("--mutants", action="store_true", help="hunt every planted bug and print the table")
    options = parser.parse_args(arguments)
    if options.mutants:
        return _hunt_all()
    if options.seed is not None:
        return _one(options.seed, options.mutant, shrinks=options.shrink)
    first, _, last = options.seeds.partition(":")
    return _many(range(int(first), int(last)), is_twice=options.twice, shows_coverage=options.coverage)


def _one(seed: int, mutant: str | None, *, shrinks: bool) -> int:
    def go() -> Result:
        scenario = draw(seed)
        if shrinks:
            scenario = shrink(scenario)
        print(scenario.text())
        return run_scenario(scenario)

    if mutant is None:
        result = go()
    else:
        with planted(mutant):
            result = go()
    print("\n".join(result.lines))
    print(f"log {result.digest}")
    print("\n".join(result.broken) or "nothing broken")
    return 1 if result.broken else 0


def _many(seeds: Sequence[int], *, is_twice: bool, shows_coverage: bool) -> int:
    began_s = time.perf_counter()
    results = run_many(seeds)
    wall_s = time.perf_counter() - began_s
    simulated_s = sum(result.simulated_s for result in results)
    reached = coverage.total(results)
    if shows_coverage:
        print(coverage.table(reached))
    failed = [result for result in results if result.broken]
    for result in failed:
        print(
            f"seed {result.seed}: {'; '.join(result.broken)[:400]}\n  replay: {replay_command(result.seed)}"
        )
    print(
        f"{len(results):,} seeds in {wall_s:.1f} s, {simulated_s / YEAR_S:.3f} simulated years"
        f" ({simulated_s / wall_s:,.0f} : 1), {len(failed)} with broken promises"
    )
    unreached = coverage.missing(reached) if len(results) >= 1_000 else []
    for name in unreached:
        print(f"never reached: {name}")
    differing = _differing(results, run_many(seeds)) if is_twice else []
    if is_twice:
        print(f"run twice: {len(results) - len(differing):,} logs byte-identical, {len(differing)} not")
    return 1 if failed or unreached or differing else 0


def _differing(first: list[Result], second: list[Result]) -> list[int]:
    return [one.seed for one, two in zip(first, second, strict=True) if one.digest != two.digest]


def _hunt_all() -> int:
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        catches = pool.map(hunt, MUTANTS, chunksize=1)
    print(table(catches))
    escaped = [catch.name for catch in catches if catch.seeds is None]
    print(
        f"\n{len(catches) - len(escaped)} of {len(catches)} caught within {MAX_SEEDS:,} seeds",
        file=sys.stderr,
    )
    return 1 if escaped else 0
