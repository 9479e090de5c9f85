"""`python -m bench [NAME ...] [--full] [--quick]`: measure, compare with the bars, keep the figures.

`python -m bench compare A B [NAME ...]` measures two commits in turn and prints what changed.
Every run is checked against a ledger before its figure counts. Figures, samples, machine and commit go to
bench/results/ as JSON. The exit code is 1 where a benchmark's run was wrong, never for a missed bar: the
machine decides those too, so they are told, not asserted.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from bench import compare
from bench.harness import ROOT, Figures, Options, commit, header, machine_facts, table

if TYPE_CHECKING:
    from collections.abc import Callable

BENCHMARKS = {
    "plan": "bench.planning",
    "resume": "bench.resuming",
    "engine": "bench.overhead",
    "checkpoint": "bench.durability",
    "profile": "bench.profile",
    "limiter": "bench.limiter",
    "rate": "bench.rate",
    "fleet": "bench.fleet",
    "emulator": "bench.emulator",
    "peers": "bench.peers",
    "scaling": "bench.scaling",
    "help": "bench.startup",
}
RESULTS = ROOT / "bench" / "results"


def main(arguments: list[str] | None = None) -> int:
    """Run the named benchmarks, or all of them."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["compare"]:
        return compare.main(given[1:])
    parser = _parser()
    asked = parser.parse_args(arguments)
    for name in asked.names:
        if name not in BENCHMARKS:
            parser.error(f"unknown benchmark {name!r}; choose from {', '.join(BENCHMARKS)}")
    options = Options(full=asked.full, quick=asked.quick)
    facts = machine_facts()
    record: dict[str, Any] = {
        "commit": commit(),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "options": {"full": options.full, "quick": options.quick},
        "machine": facts,
        "benchmarks": {},
        "failed": {},
    }
    print(f"commit {record['commit']}, {facts['cores']} cores of {facts['cpu']}, Python {facts['python']}")
    print(header(), flush=True)
    for name in asked.names or BENCHMARKS:
        began_s = time.monotonic()
        try:
            figures = _measure(name, options)
        except Exception as error:  # noqa: BLE001  (the others are still worth measuring)
            record["failed"][name] = f"{type(error).__name__}: {error}"
            print(f"{name:<11} FAILED: {record['failed'][name]}", flush=True)
            continue
        took_s = round(time.monotonic() - began_s, 1)
        record["benchmarks"][name] = {
            "took_s": took_s,
            "figures": {label: figure.as_json() for label, figure in figures.items()},
        }
        print(table(name, figures), flush=True)
    print(f"written to {_keep(record)}")
    return 1 if record["failed"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}")
    parser.add_argument("--full", action="store_true", help="10 million devices too: takes minutes and GBs")
    parser.add_argument("--quick", action="store_true", help="small and few: only shows that all works")
    return parser


def _measure(name: str, options: Options) -> Figures:
    measure: Callable[[Options], Figures] = importlib.import_module(BENCHMARKS[name]).measure
    return measure(options)


def _keep(record: dict[str, Any]) -> str:
    RESULTS.mkdir(parents=True, exist_ok=True)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    path = RESULTS / f"{stamp}-{record['commit']}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main())
