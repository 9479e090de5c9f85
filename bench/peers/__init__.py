"""The dispatcher beside everything else that can make the same calls, on one stub server in one run.

Every contestant is a process of its own, sends the same batches to the same stub, and is judged by the same
ledger: a run that loses or repeats a device scores nothing. Repetitions are interleaved, and what is compared
is compared within one round, since the machine may slow down between two. CPU time is the contestant's own,
from its first call to its last (the dispatcher's: from its first claim to its last commit), its import and
start-up left out; "whole process" leaves nothing out, planning from CSV included.

The peers in other languages are built once, below the cache folder of this user. What cannot be built or is
not installed is skipped, with the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import stub
from bench.harness import Figure, Figures, Options, planned_ids, scratch
from bench.peers import report
from bench.peers.building import NotHere, built

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.harness import Scratch

WORKERS = 64
"""Calls in flight, for everybody: against a service that takes 40 ms that is 1,600 calls a second."""
FEW_THREADS = 16
"""What boto3 gets most out of where the service answers at once: fewer threads fight for one lock."""
BASE, BASE_TLS = "aiobotocore", "aiobotocore, TLS"
BARS = {
    ("dispatcher, wire", BASE): 12,
    ("dispatcher, wire", "boto3, 64 threads"): 20,
    ("dispatcher, wire", "AWS SDK for JavaScript v3"): 10,
    ("dispatcher, wire", "Go: net/http and the SDK's signer"): 1,
    ("dispatcher, wire", "AWS SDK for Rust"): 1,
    ("dispatcher, wire, TLS", BASE_TLS): 10,
    ("dispatcher, wire, whole process", BASE): 9,
    ("dispatcher, wire, whole process", "boto3, 64 threads"): 15,
}
"""Calls per CPU-second of the first over the second, at the least."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One contestant: its command, and how many calls make a second or two of it."""

    name: str
    command: Callable[[str, Path], Sequence[str]]
    """From the URL and the file of device ids."""
    calls: int
    tls: bool = False
    once: bool = False
    """Too long to be repeated as often as the others."""


@dataclass(slots=True)
class Result:
    """What one contestant showed, repetition by repetition."""

    calls: int
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)

    def per_cpu_s(self) -> list[float]:
        """Calls per CPU-second of each repetition."""
        return [self.calls / seconds for seconds in self.cpu_s]


def measure(options: Options) -> Figures:
    """Run everybody, round by round."""
    results: dict[str, Result] = {}
    skipped: dict[str, str] = {}
    peers = _contestants(options, skipped)
    with scratch() as place, stub.running(tls_in=place.folder) as server:
        place.environment["AWS_CA_BUNDLE"] = place.environment["NODE_EXTRA_CA_CERTS"] = str(server.bundle)
        place.environment["SSL_CERT_FILE"] = str(server.bundle)
        for number in range(options.repetitions(3)):
            for peer in peers if number % 2 else peers[::-1]:
                if peer.name not in skipped and not (peer.once and number):
                    try:
                        _one(place, server, peer, results)
                    except NotHere as why:
                        skipped[peer.name] = str(why)
    report.write(results, skipped, base=BASE, quick=options.quick)
    for name, reason in skipped.items():
        print(f"peers       skipped {name}: {reason}", flush=True)
    return _figures(results)


def _figures(results: dict[str, Result]) -> Figures:
    figures: Figures = {}
    for name, result in results.items():
        figures[f"{name}, calls per CPU-second"] = Figure(tuple(result.per_cpu_s()), "calls")
    for (ours, theirs), bar in BARS.items():
        if ours in results and theirs in results:
            pairs = zip(results[ours].per_cpu_s(), results[theirs].per_cpu_s(), strict=False)
            ratios = tuple(mine / other for mine, other in pairs)
            figures[f"{ours} / {theirs}"] = Figure(ratios, "x", bar, low_bar=True)
    return figures


def _contestants(options: Options, skipped: dict[str, str]) -> list[Peer]:
    python = (sys.executable, "-m")

    def ours(*how: str) -> Callable[[str, Path], Sequence[str]]:
        return lambda url, ids: [*python, "bench.peers.ours", *how, url, str(ids), str(WORKERS)]

    def sdk(name: str, workers: int = WORKERS) -> Callable[[str, Path], Sequence[str]]:
        return lambda url, ids: [*python, "bench.peers.sdk", name, url, str(ids), str(workers)]

    few, some, many = (200, 500, 2_000) if options.quick else (1_000, 4_000, 100_000)
    peers = [
        Peer("dispatcher, wire", ours("wire"), many),
        Peer("dispatcher, wire, TLS", ours("wire"), many, tls=True),
        Peer("dispatcher, wire, whole process", ours("whole"), many),
        Peer("dispatcher, aiobotocore", ours("aiobotocore"), some),
        Peer("aiobotocore", sdk("aiobotocore"), some),
        Peer("aiobotocore, TLS", sdk("aiobotocore"), some, tls=True),
        Peer("boto3, 64 threads", sdk("boto3"), few),
        Peer("boto3, 16 threads", sdk("boto3", FEW_THREADS), few),
        Peer("AWS CLI, xargs", sdk("cli"), 4, once=True),
    ]
    for name, language, calls in (
        ("AWS SDK for JavaScript v3", "js", some),
        ("Go: net/http and the SDK's signer", "go", many),
        ("AWS SDK for Rust", "rust", many),
    ):
        try:
            program = built(language)
        except NotHere as why:
            skipped[name] = str(why)
            continue
        peers.append(
            Peer(name, lambda url, ids, program=program: [*program, url, str(ids), str(WORKERS)], calls)  # type: ignore[misc]
        )
    if shutil.which("wrk"):
        peers.append(Peer("wrk (the ceiling: no SDK, no signature)", sdk("wrk"), many))
    else:
        skipped["wrk (the ceiling)"] = "wrk is not installed"
    return peers


def _one(place: Scratch, server: stub.Stub, peer: Peer, results: dict[str, Result]) -> None:
    """Run one contestant once, and count it only if the ledger agrees."""
    wanted = planned_ids(peer.calls * 10)
    ids = place.folder / f"ids-{peer.calls}.txt"
    if not ids.exists():
        ids.write_text("".join(f"{one}\n" for one in wanted), encoding="ascii")
    server.reset()
    said, peak_mb = _ran(place, peer.command(server.tls_url if peer.tls else server.url, ids))
    server.verify(wanted)
    result = results.setdefault(peer.name, Result(peer.calls))
    result.cpu_s.append(said["cpu_s"])
    result.wall_s.append(said["wall_s"])
    result.peak_mb.append(peak_mb)
    if len(latencies := sorted(said["latencies_ms"])) > 1:
        cuts = statistics.quantiles(latencies, n=100)
        result.p50_ms.append(cuts[49])
        result.p99_ms.append(cuts[98])


def _ran(place: Scratch, command: Sequence[str]) -> tuple[dict[str, Any], float]:
    """Run a command to its end; return the JSON it prints and the most memory it held."""
    out, err = place.folder / "out.json", place.folder / "err.txt"
    peak_mb = 0.0
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = subprocess.Popen(command, env=place.environment, stdout=out_file, stderr=err_file)
        while process.poll() is None:
            with contextlib.suppress(OSError, IndexError, ValueError):
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
                peak_mb = max(peak_mb, int(status.split("VmHWM:")[1].split()[0]) / 1024)
            time.sleep(0.02)
    if process.returncode == os.EX_UNAVAILABLE:
        raise NotHere(err.read_text(encoding="utf-8", errors="replace").strip()[-200:])
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed: {err.read_text(errors='replace').strip()[-300:]}")
    found: dict[str, Any] = json.loads(out.read_bytes())
    return found, peak_mb
