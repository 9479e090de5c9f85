"""Mutants, hunted: how many seeds it takes to catch each planted bug."""

from __future__ import annotations

from typing import NamedTuple

from tests.simulation.mutants import MUTANTS, planted
from tests.simulation.runs import run_seed

MAX_SEEDS = 1_000
CAUGHT_AT: dict[str, int] = {}
"""How many seeds it took when docs/simulation.md was written: where `make test` looks first."""


class Catch(NamedTuple):
    """What caught a mutant."""

    name: str
    seeds: int | None
    """How many seeds it took; None where it escaped."""
    broken: str


def hunt(name: str, *, first: int = 0, limit: int = MAX_SEEDS) -> Catch:
    """Run seeds from `first` on with a planted bug until one breaks a promise."""
    with planted(name):
        for count in range(1, limit + 1):
            try:
                broken = run_seed(first + count - 1).broken
            except Exception as error:  # noqa: BLE001  (a bug may break the instrument too: that is a catch)
                broken = [f"{type(error).__name__}: {error}"]
            if broken:
                return Catch(name, count, broken[0])
    return Catch(name, None, "")


def table(catches: list[Catch]) -> str:
    """Render for docs/simulation.md."""
    lines = ["| planted bug | caught at seed | by |", "|---|---|---|"]
    for catch in catches:
        at = "escaped" if catch.seeds is None else str(catch.seeds)
        lines.append(f"| {MUTANTS[catch.name][0]} | {at} | {catch.broken.partition(':')[0]} |")
    return "\n".join(lines)
