"""Rate control in a laboratory of virtual time, and over real sockets: `python -m bench rate`.

Every cell is printed for every contender, and written as a table to bench/results/rate.md with plots of
rates over time beside it. The figures are summaries: the worst cell's median, and how many cells miss a bar.
"""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING

from bench.harness import ROOT, Figure, Figures, Options
from bench.rate import sockets
from bench.rate.cells import NAMES, SLOW_PER_S, change, disturbed, fairness, hold, median_of, scene_of
from bench.rate.plots import plot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.rate.cells import Held
    from bench.rate.world import Scene

BURSTS_S = (1.0, 3.0, 10.0)
LATENCIES_S = (0.005, 0.06, 0.5, 2.0)
USED_BAR, THROTTLED_BAR, SLOW_THROTTLED_BAR = 0.97, 0.01, 0.02
RECONVERGED_BAR_S, RECONVERGED_BAR_CALLS = 30.0, 300.0
FAIR_BAR = 0.95
RESULTS = ROOT / "bench" / "results"


def measure(options: Options) -> Figures:
    """Run the laboratory, then the sockets."""
    rates: Sequence[float] = (10.0, 100.0) if options.quick else (1.0, 10.0, 100.0, 1_000.0)
    if options.full:
        rates = (*rates, 10_000.0)
    latencies = (0.06,) if options.quick else LATENCIES_S
    seeds = 1 if options.quick else 5 if options.full else 3
    lines: list[str] = []
    figures = _holding(rates, latencies, seeds, lines)
    moving = [rate for rate in rates if rate <= 100.0 or options.full]
    figures |= _changes(moving, latencies, seeds, lines)
    figures |= _disturbances(seeds, lines)
    figures |= _fairness(seeds, lines)
    used, throttled = sockets.measure(3_000 if options.quick else 20_000)
    figures["real sockets at 40/s: ideal over wall time"] = Figure((100 * used,), "%", 95.0, low_bar=True)
    figures["real sockets at 40/s: throttled"] = Figure((100 * throttled,), "%", 3.0)
    _keep(lines)
    return figures


def _say(lines: list[str], text: str) -> None:
    lines.append(text)
    print(text, file=sys.stderr, flush=True)


def _holding(rates: Sequence[float], latencies: Sequence[float], seeds: int, lines: list[str]) -> Figures:
    _say(lines, f"| rate | burst | latency | {' | '.join(NAMES)} | search |")
    _say(lines, "|---|---|---|" + "---|" * (len(NAMES) + 1))
    missed = possible = beaten = cells = 0
    least_used, most_throttled = 1.0, 0.0
    for rate, burst_s, latency_s in itertools.product(rates, BURSTS_S, latencies):
        scene = scene_of(rate, burst_s, latency_s)
        found = {
            name: [hold(name, scene, seed) for seed in range(seeds if name == "learn" else 1)]
            for name in NAMES
        }
        told = {name: _medians(runs) for name, runs in found.items()}
        ours, bar = told["learn"], THROTTLED_BAR if rate > SLOW_PER_S else SLOW_THROTTLED_BAR
        is_met = ours[0] >= USED_BAR and ours[1] <= bar
        is_possible = told["oracle"][0] >= USED_BAR and told["oracle"][1] <= bar
        cells += 1
        possible += is_possible
        missed += is_possible and not is_met
        beaten += any(told[peer][0] > ours[0] and told[peer][1] < ours[1] for peer in ("aimd", "botocore"))
        if is_possible:
            least_used, most_throttled = min(least_used, ours[0]), max(most_throttled, ours[1])
        search = median_of([run.search_s for run in found["learn"]])
        wasted = median_of([run.search_throttled for run in found["learn"]])
        marks = {
            name: f"{100 * used:.1f} / {100 * throttled:.2f}" for name, (used, throttled) in told.items()
        }
        marks["learn"] += "" if is_met else " ✗" if is_possible else " (nobody can)"
        cell = " | ".join(marks[name] for name in NAMES)
        where = f"| {rate:g}/s | {scene.burst:g} | {1000 * latency_s:g} ms"
        _say(lines, f"{where} | {cell} | {search:.0f} s, {wasted:.0f} calls |")
    return {
        "holding: cells that an oracle can hold": Figure((float(possible),), f"of {cells}"),
        "holding: of these, cells that miss a bar": Figure((float(missed),), "cells", 0.0),
        "holding: least used, median of a cell": Figure((100 * least_used,), "%", 97.0, low_bar=True),
        "holding: most throttled, median of a cell": Figure((100 * most_throttled,), "%"),
        "cells where AIMD or botocore is better in both": Figure((float(beaten),), "cells", 0.0),
    }


def _medians(runs: Sequence[Held]) -> tuple[float, float]:
    return median_of([run.used for run in runs]), median_of([run.throttled for run in runs])


def _changes(rates: Sequence[float], latencies: Sequence[float], seeds: int, lines: list[str]) -> Figures:
    _say(lines, "")
    _say(lines, "| rate | burst | latency | halved | doubled |")
    _say(lines, "|---|---|---|---|---|")
    missed: dict[float, int] = {0.5: 0, 2.0: 0}
    cells = 0
    for rate, burst_s, latency_s in itertools.product(rates, BURSTS_S, latencies):
        scene = scene_of(rate, burst_s, latency_s)
        if scene.burst < 3.0:
            continue  # an oracle cannot hold it
        cells += 1
        told = []
        for factor in (0.5, 2.0):
            seconds = [change("learn", scene, factor, seed) for seed in range(seeds)]
            middle = median_of(seconds)
            moved = rate * factor
            allowed_s = RECONVERGED_BAR_S if moved >= SLOW_PER_S else RECONVERGED_BAR_CALLS / moved
            missed[factor] += middle > allowed_s
            mark = "" if middle <= allowed_s else " ✗"
            told.append(f"{middle:.0f} s (worst {max(seconds):.0f} s){mark}")
        _say(lines, f"| {rate:g}/s | {scene.burst:g} | {1000 * latency_s:g} ms | {' | '.join(told)} |")
    return {
        f"{name}: cells of {cells} that miss 30 s or 300 calls": Figure(
            (float(missed[factor]),), "cells", 0.0
        )
        for name, factor in (("halved", 0.5), ("doubled", 2.0))
    }


def _disturbances(seeds: int, lines: list[str]) -> Figures:
    _say(lines, "")
    _say(lines, "| 40/s, burst 120, 60 ms | learn | aimd | botocore |")
    _say(lines, "|---|---|---|---|")
    for label, scene in _troubles().items():
        told = []
        for name in NAMES[:3]:
            runs = [disturbed(name, scene, seed) for seed in range(seeds)]
            used, throttled = (median_of([run[part] for run in runs]) for part in (0, 1))
            told.append(f"{100 * used:.1f} / {100 * throttled:.2f}")
        _say(lines, f"| {label} | {' | '.join(told)} |")
    return {}


def _troubles() -> dict[str, Scene]:
    noise = {
        f"{100 * share:g} % throttled by chance": scene_of(40.0, 3.0, 0.06, noise=share, seconds=150.0)
        for share in (0.01, 0.03, 0.1)
    }
    return noise | {
        "503 storm from 60 to 90 s": scene_of(40.0, 3.0, 0.06, storm=(60.0, 90.0), seconds=150.0),
        "quota pause from 60 to 150 s": scene_of(40.0, 3.0, 0.06, quota=(60.0, 150.0), seconds=220.0),
    }


def _fairness(seeds: int, lines: list[str]) -> Figures:
    _say(lines, "")
    _say(lines, "| two runs | latency | start together | 60 s apart |")
    _say(lines, "|---|---|---|---|")
    found: list[float] = []
    for rate, burst_s, latency_s in itertools.product((40.0, 200.0), (3.0, 10.0), (0.06, 0.5)):
        scene = scene_of(rate, burst_s, latency_s)
        told = []
        for join_s in (0.0, 60.0):
            indices = [fairness(scene, join_s, seed) for seed in range(max(seeds, 3))]
            found.append(median_of(indices))
            told.append(f"{found[-1]:.3f} (worst {min(indices):.3f})")
        where = f"| {rate:g}/s, burst {scene.burst:g} | {1000 * latency_s:g} ms"
        _say(lines, f"{where} | {' | '.join(told)} |")
    return {
        "fairness of two runs: Jain's index, median of cells": Figure(
            tuple(found), "", FAIR_BAR, low_bar=True
        )
    }


def _keep(lines: Sequence[str]) -> None:
    """Write the tables, and plots of a constant rate, a halved one, a doubled one and noise."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "rate.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    moving = scene_of(
        40.0, 3.0, 0.06, seconds=180.0, rate_at=lambda at: 40.0 if at < 60.0 else 20.0 if at < 120.0 else 80.0
    )
    (RESULTS / "rate-moving.svg").write_text(plot("40, 20, then 80 calls/s; burst 120; 60 ms", moving))
    fast = scene_of(1_000.0, 1.0, 0.06, seconds=60.0)
    (RESULTS / "rate-fast.svg").write_text(plot("1,000 calls/s; burst 1,000; 60 ms", fast))
