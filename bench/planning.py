"""Planning: from a CSV to a committed plan, in a fresh process; seconds and peak memory."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from bench.harness import Figure, Figures, Options, medians, peak_rss_mb, scratch

_BARS = {1_000_000: (4.5, 150.0), 10_000_000: (60.0, 300.0)}
"""Devices → seconds, MB."""


def measure(options: Options) -> Figures:
    """Plan fleets of several sizes."""
    sizes = {100_000: 3} if options.quick else {100_000: 5, 1_000_000: 3}
    if options.full:
        sizes[10_000_000] = 1
    figures: Figures = {}
    with scratch() as place:
        for devices, repetitions in sizes.items():
            manifest = place.manifest("plan", devices)
            rows = []
            for number in range(options.repetitions(repetitions)):
                row = place.child("bench.planning", manifest, f"r{devices}-{number}")
                if row["devices"] != devices:
                    raise RuntimeError(f"{row['devices']} devices were planned, not {devices}")
                rows.append(row)
                Path(row["checkpoint"]).unlink()
            seconds_bar, memory_bar = _BARS.get(devices, (None, None))
            figures[f"{devices:,} devices"] = Figure(medians(rows, "seconds"), "s", seconds_bar)
            figures[f"{devices:,} devices, peak RSS"] = Figure(medians(rows, "rss_mb"), "MB", memory_bar)
    return figures


def plan(manifest: str, run_key: str, endpoint_url: str | None = None) -> dict[str, object]:
    """Plan a manifest as `run` does before it sends; return seconds, memory and what was planned."""
    from dispatcher.intent import Intent
    from dispatcher.manifest import Manifest
    from dispatcher.prepare import Preparation
    from dispatcher.settings import Settings

    began_s = time.perf_counter()
    loaded = Manifest.load(manifest)
    settings = Settings.layered(
        flags={"run_key": run_key, "endpoint_url": endpoint_url}, environment=_environment()
    ).resolve(loaded)
    assert settings.region is not None
    prepared = Preparation(settings).of_manifest(Intent.of(loaded, settings, settings.region))
    took_s = time.perf_counter() - began_s
    prepared.checkpoint.release(now=time.time())
    prepared.close()
    return {
        "seconds": took_s,
        "rss_mb": peak_rss_mb(),
        "devices": prepared.counts.devices,
        "run": prepared.plan.run,
        "checkpoint": str(settings.checkpoint_of(prepared.plan.run)),
    }


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


if __name__ == "__main__":
    print(json.dumps(plan(*sys.argv[1:])))
