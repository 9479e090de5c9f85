"""`python -m bench compare A B [NAME ...]`: the same benchmarks on two commits, in turn, and what changed.

Each commit is checked out into a folder of its own and measured by its own benchmarks with this environment's
packages: A, B, B, A. Only figures that both have are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.harness import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

Samples = dict[str, list[float]]


def main(arguments: list[str]) -> int:
    """Measure and print; 1 where a benchmark failed on either side."""
    parser = argparse.ArgumentParser(prog="python -m bench compare", description="Compare two commits.")
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("names", nargs="*", default=["checkpoint"], help="benchmarks; default: checkpoint")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args(arguments)
    sides: tuple[Samples, Samples] = ({}, {})
    with _tree(asked.a) as first, _tree(asked.b) as second:
        for folder, found in ((first, sides[0]), (second, sides[1]), (second, sides[1]), (first, sides[0])):
            if not _measure(folder, asked.names, found, quick=asked.quick):
                return 1
    print(f"{'figure':<56} {asked.a[:12]:>12} {asked.b[:12]:>12} {'B / A':>7}")
    for label in (label for label in sides[0] if label in sides[1]):
        a, b = (statistics.median(side[label]) for side in sides)
        print(f"{label:<56} {a:>12.4g} {b:>12.4g} {b / a if a else float('nan'):>7.3f}")
    return 0


@contextlib.contextmanager
def _tree(commit: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dispatcher-compare-") as name:
        folder = Path(name) / "tree"
        _git("worktree", "add", "--quiet", "--detach", str(folder), commit)
        try:
            yield folder
        finally:
            _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=ROOT, check=True)


def _measure(folder: Path, names: list[str], found: Samples, *, quick: bool) -> bool:
    # The folder stands before the installed package on the path.
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "bench", *names, *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=False)
    kept = max((folder / "bench" / "results").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    record = json.loads(kept.read_text(encoding="utf-8"))
    kept.unlink()
    for benchmark in record["benchmarks"].values():
        for label, figure in benchmark["figures"].items():
            found.setdefault(label, []).extend(figure["samples"])
    for name, why in record["failed"].items():
        print(f"{name} failed: {why}", file=sys.stderr)
    return done.returncode == 0
