"""What the peers' run leaves behind: a table for people (and for the README), and a plot."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from bench import drawing
from bench.harness import ROOT, commit, machine_facts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.peers import Result

RESULTS = ROOT / "bench" / "results"


def write(results: Mapping[str, Result], skipped: Mapping[str, str], *, base: str, quick: bool) -> None:
    """Write peers.md and peers.svg to bench/results/; a quick run's go to other names."""
    stem = "peers-quick" if quick else "peers"
    RESULTS.mkdir(parents=True, exist_ok=True)
    facts = machine_facts()
    lines = [
        "<!-- written by `python -m bench peers` -->",
        f"Commit {commit()}, {facts['cores']} cores of {facts['cpu']}, Python {facts['python']}.",
        "Medians of interleaved repetitions, one stub server on loopback, every run's ledger verified.",
        "",
        *table(results, base=base),
        *([""] if skipped else []),
        *(f"Skipped: {name}: {why}." for name, why in skipped.items()),
    ]
    (RESULTS / f"{stem}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = {name: statistics.median(result.per_cpu_s()) for name, result in results.items()}
    plot = drawing.bars("CreateTask calls per CPU-second", values, ours="dispatcher")
    (RESULTS / f"{stem}.svg").write_text(plot, encoding="utf-8")


def table(results: Mapping[str, Result], *, base: str) -> list[str]:
    """Return a Markdown table, the fastest first; `x` is calls per CPU-second over `base`'s."""
    unit = statistics.median(results[base].per_cpu_s()) if base in results else None
    head = [
        "client",
        "calls per CPU-s",
        f"x {base}",
        "CPU us a call",
        "calls/s",
        "p50 ms",
        "p99 ms",
        "peak MB",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name, result in sorted(results.items(), key=lambda item: -statistics.median(item[1].per_cpu_s())):
        speed = statistics.median(result.per_cpu_s())
        cells = [
            f"{speed:,.0f}",
            f"{speed / unit:.1f}" if unit else "",
            f"{1e6 / speed:,.0f}",
            f"{result.calls / statistics.median(result.wall_s):,.0f}",
            *(f"{statistics.median(ms):.1f}" if ms else "" for ms in (result.p50_ms, result.p99_ms)),
            f"{statistics.median(result.peak_mb):.0f}",
        ]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines
