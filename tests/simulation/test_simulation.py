"""Seeded disasters: the real engine, checkpoint and library against the emulator's core, in virtual time."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import dispatcher
from dispatcher.model import Answer, Kind
from tests.engine.conftest import Bench, Service
from tests.simulation import coverage
from tests.simulation.command import YEAR_S, replay_command, run_many
from tests.simulation.guard import sealed
from tests.simulation.hunt import CAUGHT_AT, MAX_SEEDS, hunt
from tests.simulation.loop import Leak, VirtualTimeLoop
from tests.simulation.mutants import MUTANTS, planted
from tests.simulation.runs import Result, run_scenario, run_seed
from tests.simulation.scenario import draw
from tests.simulation.shrink import shrink

ROOT = Path(__file__).parents[2]
soak = pytest.mark.skipif("SOAK" not in os.environ, reason="the full figures: set SOAK=1")


def failures(results: Sequence[Result]) -> list[str]:
    return [
        f"{'; '.join(result.broken)}; replay: {replay_command(result.seed)}"
        for result in results
        if result.broken
    ]


@pytest.mark.timeout(600)  # twenty seconds of two idle cores, minutes of a busy machine
def test_seeds_keep_every_promise() -> None:
    """Whatever a seed does to a run, no promise is broken, and all that can go wrong is reached."""
    results = run_many(range(1_000))
    assert failures(results) == []
    assert coverage.missing(coverage.total(results)) == []


@pytest.mark.parametrize("seed", [3, 29, 40, 110])
def test_a_seed_run_twice_gives_the_same_log(seed: int) -> None:
    """Chance comes from the seed alone."""
    assert run_seed(seed).lines == run_seed(seed).lines


def test_a_seed_gives_the_same_log_in_another_process() -> None:
    """Neither the order of hashes nor anything else of a process gets into the log."""
    program = "from tests.simulation.runs import run_seed\nfor n in (5, 109, 147): print(run_seed(n).digest)"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": hash_seed}, cwd=ROOT,
            capture_output=True, text=True, check=True, timeout=100,
        ).stdout
        for hash_seed in ("1", "2")
    }  # fmt: skip
    assert len(outputs) == 1


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_every_planted_bug_is_caught(name: str) -> None:
    """A checker that never failed has proven nothing."""
    known = hunt(name, first=CAUGHT_AT.get(name, 1) - 1, limit=1)
    caught = known if known.seeds else hunt(name, limit=MAX_SEEDS)  # the code has changed since
    assert caught.seeds is not None


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_planted_bug_is_called_as_the_real_thing_is(name: str) -> None:
    """One that only raises for its arguments would be caught too, and prove nothing."""
    for where, what, stand_in in MUTANTS[name][1]():
        real = where[what] if isinstance(where, dict) else inspect.getattr_static(where, what)
        if inspect.isfunction(real) and inspect.isfunction(stand_in):
            takes = inspect.signature(stand_in)
            if not any(one.kind is one.VAR_POSITIONAL for one in takes.parameters.values()):
                assert positional(takes) == positional(inspect.signature(real)), what


def positional(signature: inspect.Signature) -> int:
    return sum(one.kind is one.POSITIONAL_OR_KEYWORD for one in signature.parameters.values())


def test_a_failing_scenario_shrinks_to_what_matters() -> None:
    """Of all that a seed does only what breaks the promise is left, and it still breaks it."""
    name = "lost_checkpoint_is_planned_anew"
    scenario = draw(CAUGHT_AT[name] - 1)
    with planted(name):
        small = shrink(scenario)
        assert run_scenario(small).broken
    assert len(small.items) <= 4 < len(scenario.items)
    assert not run_scenario(small).broken


# What must not get in


@pytest.fixture
def leaks() -> Iterator[list[str]]:
    with sealed(wall=lambda: 5.0, monotonic=lambda: 7.0, rng=random.Random(1)) as found:
        yield found


def test_clocks_are_the_simulations(leaks: list[str]) -> None:
    """Whoever asks for the time is told the simulation's."""
    assert (time.time(), time.monotonic(), time.time_ns()) == (5.0, 7.0, 5_000_000_000)


@pytest.mark.parametrize(
    "reach",
    [
        lambda: time.sleep(0),
        lambda: socket.socket(),
        lambda: threading.Thread(target=print).start(),
        lambda: socket.getaddrinfo("localhost", 80),
    ],
)
def test_nothing_real_gets_in(leaks: list[str], reach: Any) -> None:
    """A socket, a thread and a sleep raise, and are listed although what they raise is swallowed."""
    with pytest.raises(Leak):
        reach()
    assert len(leaks) == 1


def test_a_thread_cannot_call_into_the_loop() -> None:
    """What another thread would put into the loop is refused."""
    loop = VirtualTimeLoop()
    with pytest.raises(Leak):
        loop.call_soon_threadsafe(print)
    loop.close()


@pytest.mark.parametrize("is_tls", [False, True])
def test_a_connection_needs_a_simulated_network(is_tls: bool) -> None:
    """What is connected to without one, or by TLS, would be real."""
    loop = VirtualTimeLoop()
    loop.network = object() if is_tls else None
    with pytest.raises(Leak):
        loop.run_until_complete(loop.create_connection(asyncio.Protocol, ssl=True if is_tls else None))
    loop.close()


def test_no_clock_is_bound_early() -> None:
    """A default of `time.time` is the real clock for ever: it must be asked, never kept."""
    kept = []
    for path in sorted(Path(dispatcher.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            defaults: list[ast.expr] = []
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                defaults = [*node.args.defaults, *(one for one in node.args.kw_defaults if one is not None)]
            elif isinstance(node, ast.keyword) and node.arg == "default_factory":
                defaults = [node.value]
            kept += [f"{path.name}:{one.lineno}" for one in defaults if ast.unparse(one).startswith("time.")]
    assert kept == []


# Retries in a storm


def test_a_storm_of_failures_is_not_amplified(tmp_path: Path) -> None:
    """While every second call fails, retries keep to their quota; the run as a whole pays little for it."""
    from dispatcher.checkpoint.memory import MemoryCheckpoint

    storm_s, rng, seen, made = 10.0, random.Random(7), set(), Counter[str]()

    def fate(_number: int, _targets: Sequence[str], token: str, now_s: float) -> Answer | None:
        if now_s >= storm_s:
            return None
        made["retries"] += token in seen
        seen.add(token)
        if rng.random() < 0.5:
            return Answer(kind=Kind.NO_REPLY, code="Reset")
        made["successes"] += 1
        return None

    bench = Bench(tmp_path, Service(fate=fate), MemoryCheckpoint())
    bench.plan([f"smd-{n:06d}" for n in range(24_000)])
    summary, error = bench.go(rate_per_s=200.0, max_in_flight=64)
    assert error is None
    assert summary.counts.accepted == 24_000
    assert made["retries"] <= 100 + 0.2 * made["successes"] + 10.0 * storm_s
    assert made["retries"] > 50, "there was no storm"


# The full figures


@soak
@pytest.mark.soak
def test_soak_seeds() -> None:
    """20,000 seeds, a year and more of simulated time: no broken promise, and everything was reached."""
    simulated_s, reached = 0.0, Counter[str]()
    for first in range(0, 20_000, 1_000):
        results = run_many(range(first, first + 1_000))
        assert failures(results) == []
        simulated_s += sum(result.simulated_s for result in results)
        reached += coverage.total(results)
        print(f"{first + 1_000:,} seeds, {simulated_s / YEAR_S:.2f} simulated years", flush=True)
    assert simulated_s >= YEAR_S
    assert coverage.missing(reached, rare=True) == []


@soak
@pytest.mark.soak
def test_soak_replay() -> None:
    """1,000 seeds run twice: byte-identical logs."""
    first, second = run_many(range(1_000)), run_many(range(1_000))
    assert [result.digest for result in first] == [result.digest for result in second]


@soak
@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_soak_planted_bugs(name: str) -> None:
    """Each is caught within 1,000 seeds, counted from the first."""
    assert hunt(name).seeds is not None
