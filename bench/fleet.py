"""A whole fleet through the command line: plan, run, status while it is live, report.

What an operator waits for, and what each process holds in memory: flat in the size of the fleet, or a
million devices would need another machine than ten thousand. The service is the stub, over aiobotocore.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import stub
from bench.harness import Figure, Figures, Options, Scratch, planned_ids, scratch

if TYPE_CHECKING:
    from collections.abc import Sequence

MEMORY_BAR_MB = 200.0
LOOK_EVERY_S = 2.0
"""How often `status` is asked beside the live run."""


@dataclass(slots=True)
class Process:
    """One command, timed, its memory watched from outside."""

    popen: subprocess.Popen[str]
    began_s: float = field(default_factory=time.monotonic)
    peak_mb: float = 0.0

    def look(self) -> bool:
        """Note the memory it holds; False once it has ended."""
        with contextlib.suppress(OSError, IndexError):
            status = Path(f"/proc/{self.popen.pid}/status").read_text(encoding="ascii")
            self.peak_mb = max(self.peak_mb, int(status.split("VmHWM:")[1].split()[0]) / 1024)
        return self.popen.poll() is None

    def end(self) -> tuple[float, str]:
        """Wait for it; return its seconds and what it printed."""
        while self.look():
            time.sleep(0.02)
        seconds = time.monotonic() - self.began_s
        out, err = self.popen.communicate()
        if self.popen.returncode:
            raise RuntimeError(f"exit {self.popen.returncode}: {err.strip()[-300:]}")
        return seconds, out


def measure(options: Options) -> Figures:
    """Take one fleet through every verb."""
    devices = 20_000 if options.quick else 1_000_000
    figures: Figures = {}
    with scratch() as place, stub.running() as server:
        manifest = place.manifest("fleet", devices)
        _timed(figures, "plan", started(place, "plan", manifest, "--json"))
        run = started(
            place, "run", manifest, "--json", "--endpoint-url", server.url,
            "--rate", 100_000, "--burst", 1_000, "--max-in-flight", 64,
        )  # fmt: skip
        looks = _look_beside(place, run)
        summary = json.loads(_timed(figures, "run", run))
        if summary["accepted"] != devices:
            raise RuntimeError(f"the run went wrong: {summary}")
        server.verify(planned_ids(devices))
        figures["run, calls per second"] = Figure((summary["calls_per_s"],), "calls/s")
        figures["status beside it, seconds"] = Figure(tuple(s for s, _ in looks), "s")
        figures["status beside it, memory"] = Figure(tuple(mb for _, mb in looks), "MB", MEMORY_BAR_MB)
        _timed(figures, "status", started(place, "status", "fleet", "--json"))
        for form in ("csv", "jsonl"):
            path = place.folder / f"report.{form}"
            _timed(figures, f"report {form}", started(place, "report", "fleet", "--format", form, "-o", path))
            with path.open("rb") as file:
                rows = sum(1 for _ in file) - (form == "csv")
            if rows != devices:
                raise RuntimeError(f"{path.name} has {rows} rows")
        _timed(figures, "run again, already complete", started(place, "run", manifest, "--json",
               "--endpoint-url", server.url))  # fmt: skip
    return {f"{devices:,} devices, {label}": figure for label, figure in figures.items()}


def started(place: Scratch, *arguments: object) -> Process:
    """Start the command."""
    command = [sys.executable, "-m", "dispatcher", *map(str, arguments)]
    pipe = subprocess.PIPE
    return Process(subprocess.Popen(command, env=place.environment, stdout=pipe, stderr=pipe, text=True))


def _timed(figures: Figures, label: str, process: Process) -> str:
    seconds, out = process.end()
    figures[f"{label}, seconds"] = Figure((seconds,), "s")
    figures[f"{label}, memory"] = Figure((process.peak_mb,), "MB", MEMORY_BAR_MB)
    return out


def _look_beside(place: Scratch, run: Process) -> Sequence[tuple[float, float]]:
    """Ask for the status again and again while `run` is live; return seconds and MB of each."""
    found: list[tuple[float, float]] = []
    seen: dict[str, Any] = {}
    next_s = time.monotonic() + LOOK_EVERY_S
    while run.look():
        if time.monotonic() >= next_s:
            next_s += LOOK_EVERY_S
            beside = started(place, "status", "fleet", "--json")
            with contextlib.suppress(RuntimeError):  # planning: there is no checkpoint yet
                seconds, out = beside.end()
                seen = json.loads(out)
                found.append((seconds, beside.peak_mb))
        time.sleep(0.05)
    if not found or seen["state"] != "running":
        raise RuntimeError("the run was never seen live")
    return found
