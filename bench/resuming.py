"""Resuming: from exec of the real command to its first call arriving, imports included."""

from __future__ import annotations

import subprocess
import sys
import time

from bench import stub
from bench.harness import Figure, Figures, Options, Scratch, planned_ids, scratch

_BARS = {1_000_000: 2.0, 10_000_000: 3.0}
SENT = 1_000
"""Devices that each resumption may send: `--limit` ends it, and the ledger is checked after each."""


def measure(options: Options) -> Figures:
    """Resume planned runs of several sizes."""
    sizes = [100_000] if options.quick else [1_000_000]
    if options.full:
        sizes.append(10_000_000)
    figures: Figures = {}
    for devices in sizes:
        with scratch() as place, stub.running() as server:
            samples = _resumptions(place, server, devices, options.repetitions(7))
        figures[f"{devices:,} devices planned, first call"] = Figure(samples, "s", _BARS.get(devices))
    return figures


def _resumptions(place: Scratch, server: stub.Stub, devices: int, repetitions: int) -> tuple[float, ...]:
    planned = place.child("bench.planning", place.manifest("resume", devices), "bench", server.url)
    ids = planned_ids(devices, count=SENT * repetitions)
    samples = []
    for number in range(repetitions):
        server.reset()
        began_s = time.monotonic()
        subprocess.run(
            [
                sys.executable,
                "-m",
                "dispatcher",
                "resume",
                planned["run"],
                "--limit",
                str(SENT),
                "--rate",
                "1000",
            ],
            env=place.environment,
            capture_output=True,
            check=True,
        )
        found = server.verify(ids[SENT * number : SENT * (number + 1)])
        assert found.first_call_s is not None
        samples.append(found.first_call_s - began_s)
    return tuple(samples)
