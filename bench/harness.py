"""What every benchmark shares: figures and their bars, machine facts, throw-away folders, children.

A benchmark is a function from `Options` to `Figures`. Repetitions of what is compared are interleaved, so
that a machine that slows down half-way slows both sides; a figure is the median, and its spread is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispatcher.emulator.fleet import fleet_id, write_fleet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parent.parent
REGION = "us-west-2"
_PACKAGES = ("aiobotocore", "aiohttp", "apsw", "boto3", "botocore", "msgspec", "uvloop")


@dataclass(frozen=True, slots=True)
class Options:
    """How much is asked for."""

    full: bool = False
    """The large sizes too: takes long, and some GB of disk."""
    quick: bool = False
    """Small sizes and few repetitions: shows that everything works; its figures mean little."""

    def repetitions(self, usual: int) -> int:
        """Return how often to repeat what is usually repeated `usual` times."""
        return min(2, usual) if self.quick else usual


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of what was measured, and the bar it is held to."""

    samples: tuple[float, ...]
    unit: str
    bar: float | None = None
    """The most it may be; None where it is only told."""
    low_bar: bool = False
    """The bar is the least it may be instead."""

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def is_met(self) -> bool | None:
        """Whether the median keeps to the bar; None without one."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.low_bar else self.value <= self.bar

    def as_json(self) -> dict[str, Any]:
        """Return the figure with all its samples."""
        return {
            "value": self.value,
            "unit": self.unit,
            "bar": self.bar,
            "bar_is_least": self.low_bar,
            "met": self.is_met,
            "samples": list(self.samples),
        }


Figures = dict[str, Figure]


def machine_facts() -> dict[str, Any]:
    """Describe where the figures come from."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "load_1min": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit, with a plus where files differ from it."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return name + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@dataclass(frozen=True, slots=True)
class Scratch:
    """A throw-away folder with a state folder in it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    """For children: our state folder, nothing of the user's AWS or dispatcher settings."""

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def fleet(self, count: int) -> Path:
        """Write (once) the CSV of a generated fleet of `count` devices."""
        path = self.folder / f"fleet-{count}.csv"
        if not path.exists():
            write_fleet(path, count)
        return path

    def manifest(self, name: str, devices: int) -> Path:
        """Write the manifest of a run over a generated fleet; limits come from settings."""
        path = self.folder / f"{name}.yaml"
        fleet = self.fleet(devices).name
        path.write_text(
            f"name: {name}\ncommand: reboot\nregion: {REGION}\ninventory:\n  path: {fleet}\n",
            encoding="utf-8",
        )
        return path

    def child(self, module: str, *arguments: object) -> dict[str, Any]:
        """Run `python -m module arguments` in a process of its own; return the JSON it prints."""
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@contextlib.contextmanager
def scratch() -> Iterator[Scratch]:
    """Make a throw-away folder; it is gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="dispatcher-bench-") as name:
        folder = Path(name)
        # Of Python's own: a child that may keep no bytecode compiles all it imports, and one whose output is
        # unbuffered may lose the end of what it prints to a pipe.
        hidden = ("AWS_", "DISPATCHER_", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
        environment |= {
            "DISPATCHER_STATE_DIR": str(folder / "state"),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        yield Scratch(folder, environment)


def planned_ids(devices: int, *, first: int = 0, count: int | None = None) -> list[str]:
    """Return the ids of a generated fleet in the order they are planned, or `count` of them from `first`."""
    ids = sorted(map(fleet_id, range(devices)))
    return ids if count is None else ids[first : first + count]


def peak_rss_mb() -> float:
    """Return the most memory this process ever held, in MB of 2^20 bytes.

    From /proc, since `getrusage` also counts what the parent held when it forked.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM")


def table(name: str, figures: Figures) -> str:
    """Render figures for people, with what was asked for and whether it was met."""
    lines = []
    for label, figure in figures.items():
        low, high = min(figure.samples), max(figure.samples)
        spread = f"{low:.4g} to {high:.4g}" if len(figure.samples) > 1 else ""
        bar = "" if figure.bar is None else f"{'>=' if figure.low_bar else '<='} {figure.bar:g}"
        met = {None: "", True: "yes", False: "NO"}[figure.is_met]
        value = f"{figure.value:.4g} {figure.unit}"
        lines.append(f"{name:<11} {label:<44} {value:>16} {spread:>20} {bar:>9} {met:>4}")
    return "\n".join(lines)


def header() -> str:
    """Return the line above all tables."""
    return f"{'benchmark':<11} {'figure':<44} {'median':>16} {'spread':>20} {'bar':>9} {'met':>4}"


def medians(rows: Sequence[dict[str, Any]], key: str) -> tuple[float, ...]:
    """Return one key of every row, as the samples of a figure."""
    return tuple(float(row[key]) for row in rows)
