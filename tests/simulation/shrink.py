"""A failing scenario made small: items are left out as long as the same promise still breaks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.simulation.runs import run_scenario

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.scenario import Scenario


def promises(broken: list[str]) -> set[str]:
    """Return which promises broke, without the details that change as a scenario shrinks."""
    return {text.partition(":")[0] for text in broken}


def shrink(scenario: Scenario, *, run: Callable[[Scenario], list[str]] | None = None) -> Scenario:
    """Return a scenario that breaks one of the same promises with as few items as could be found.

    Blocks of items are dropped, at first half of them, then ever smaller ones (delta debugging, Zeller
    2002); then whole lives at the end, and bad devices.
    """
    run = run or (lambda candidate: run_scenario(candidate).broken)
    wanted = promises(run(scenario))
    if not wanted:
        return scenario

    def breaks(candidate: Scenario) -> bool:
        return bool(promises(run(candidate)) & wanted)

    size = max(1, len(scenario.items) // 2)
    while True:
        start, dropped = 0, False
        while start < len(scenario.items):
            candidate = scenario.without(set(range(start, start + size)))
            if breaks(candidate):
                scenario, dropped = candidate, True
            else:
                start += size
        if size == 1 and not dropped:
            break
        size = max(1, size // 2)
    for lives in range(1, scenario.lives):
        if breaks(replace(scenario, lives=lives)):
            scenario = replace(scenario, lives=lives)
            break
    if scenario.bad and breaks(replace(scenario, bad=frozenset())):
        scenario = replace(scenario, bad=frozenset())
    return scenario
