"""End to end over real sockets: the command against the emulator at 40/s, which nobody told the client."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from bench.harness import Scratch, scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

RATE_PER_S = 40
BURST = 40
CEILING_PER_S = 400


def measure(devices: int) -> tuple[float, float]:
    """Return the ideal wall time over the one that was needed, and the share of calls throttled."""
    with scratch() as place, _emulator(place, devices) as url:
        manifest = place.manifest("rate", devices)
        flags = ("--endpoint-url", url, "--rate", CEILING_PER_S, "--json")
        summary = place_run(place, "run", manifest, *flags)
    batches = devices // 10
    if summary["accepted"] != devices:
        raise RuntimeError(f"the run went wrong: {summary}")
    ideal_s = (batches - BURST) / RATE_PER_S
    return ideal_s / summary["elapsed_s"], summary["throttled"] / summary["calls"]


def place_run(place: Scratch, *arguments: object) -> dict[str, Any]:
    """Run the command and return the object it prints."""
    found: dict[str, Any] = place.child("dispatcher", *arguments)
    return found


@contextlib.contextmanager
def _emulator(place: Scratch, devices: int) -> Iterator[str]:
    """Serve a fleet behind a token bucket, as a process of its own."""
    command = (sys.executable, "-m", "dispatcher", "emulator", "--json", "--port", "0")
    limits = ("--devices", str(devices), "--rate", str(RATE_PER_S), "--burst", str(BURST))
    process = subprocess.Popen(
        [*command, *limits],
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
