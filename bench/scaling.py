"""How cost grows with the fleet: plan, run, resume and report through the command line, from 10 k devices up.

What should be flat is flat (memory, the time to the first call), and what grows grows in proportion. Over the
wire transport; curves go to bench/results/scaling.svg.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bench import drawing, stub
from bench.fleet import started
from bench.harness import ROOT, Figure, Figures, Options, planned_ids, scratch

if TYPE_CHECKING:
    from bench.harness import Scratch

FULL_MB = 300.0
"""The most any process may hold, at ten million devices too."""


def measure(options: Options) -> Figures:
    """Take fleets of growing size through plan, run, the rest of the run, and report."""
    sizes = [10_000, 20_000] if options.quick else [10_000, 100_000, 1_000_000]
    if options.full:
        sizes.append(10_000_000)
    figures: Figures = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for devices in sizes:
        with scratch() as place, stub.running() as server:
            for label, (value, unit, bar) in _one(place, server, devices).items():
                figures[f"{devices:,} devices, {label}"] = Figure((value,), unit, bar)
                curves.setdefault(f"{label} ({unit})", []).append((devices, value))
    seconds = {name: curve for name, curve in curves.items() if name.endswith("(s)")}
    folder = ROOT / "bench" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    plot = drawing.curves("Seconds over devices in the fleet", seconds)
    (folder / "scaling.svg").write_text(plot, encoding="utf-8")
    return figures


def _one(place: Scratch, server: stub.Stub, devices: int) -> dict[str, tuple[float, str, float | None]]:
    manifest = place.manifest("fleet", devices)
    send = (
        *("--json", "--transport", "wire", "--endpoint-url", server.url),
        *("--rate", 100_000, "--burst", 1_000, "--max-in-flight", 64),
    )
    found: dict[str, tuple[float, str, float | None]] = {}
    peak_mb = 0.0
    # The first devices alone: what is left is a resume of a plan that stands.
    for label, arguments in (
        ("plan and first call", ("run", manifest, *send, "--limit", 10)),
        ("resume to the end", ("resume", "fleet", *send)),
        ("report", ("report", "fleet", "--format", "csv", "-o", place.folder / "report.csv")),
    ):
        process = started(place, *arguments)
        seconds, out = process.end()
        found[label] = (seconds, "s", None)
        peak_mb = max(peak_mb, process.peak_mb)
        if label.startswith("resume") and json.loads(out)["accepted"] != devices:
            raise RuntimeError(f"the run went wrong: {out}")
    server.verify(planned_ids(devices))
    found["peak memory"] = (peak_mb, "MB", FULL_MB)
    found["checkpoint"] = (sum(f.stat().st_size for f in place.state.glob("fleet.db*")) / 2**20, "MB", None)
    return found
