"""Hooks that block, raise, await or never end: the run and its calls take no harm."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher import (
    BatchSettled,
    Event,
    EventsMissed,
    Inventory,
    Limits,
    Manifest,
    RunEnded,
    RunProgressed,
    RunStarted,
    Settings,
    UsageError,
    open_dispatcher,
)  # fmt: skip
from dispatcher import delivery as delivering
from dispatcher.delivery import Delivery
from dispatcher.emulator.app import run_emulator
from dispatcher.emulator.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IDS = [f"smd-{i:04d}" for i in range(200)]
DEADLINE_S = 2.0
"""Of a call: a busy machine, which runs other tests beside these, must not let one be late by itself."""


def manifest(**changes: Any) -> Manifest:
    limits = Limits(rate_per_s=200, burst=10, max_in_flight=16, attempt_timeout_s=DEADLINE_S)
    values: dict[str, Any] = {
        "name": "ops", "command": "reboot", "region": "us-west-2", "inventory": Inventory(targets=IDS),
        "limits": limits,
    }  # fmt: skip
    return Manifest(**(values | changes))


def run_with(hook: Callable[[Event], object], folder: Path) -> Any:
    """Run 20 batches with `hook` listening; return the summary."""

    async def go() -> Any:
        async with (
            run_emulator(Config(latency_s=0.05)) as emulator,
            open_dispatcher(Settings(state_dir=folder, endpoint_url=emulator.url)) as opened,
        ):
            summary = await opened.run(manifest(), on_event=hook)
            assert len(emulator.ledger.tasks) == 20
            return summary

    return asyncio.run(go())


def test_a_hook_that_blocks_costs_no_call(tmp_path: Path) -> None:
    """It blocks for three deadlines while calls fly: none is late, and every event is heard, in order."""
    heard: list[Event] = []

    def hook(event: Event) -> None:
        if sum(isinstance(one, BatchSettled) for one in heard) == 2:
            time.sleep(3 * DEADLINE_S)  # the hook's own blocking is what is tested
        heard.append(event)

    summary = run_with(hook, tmp_path)
    assert (summary.counts.accepted, summary.retried, summary.faults) == (200, 0, 0)
    assert isinstance(heard[0], RunStarted)
    assert isinstance(heard[-1], RunEnded)
    assert (heard[-1].accepted, heard[-1].exit) == (200, 0)
    devices = [one for event in heard if isinstance(event, BatchSettled) for one in event.device_ids]
    assert sorted(devices) == IDS


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_a_hook_that_raises_is_called_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """Its fault is logged once and changes nothing, whatever it raises."""
    heard: list[Event] = []

    def hook(event: Event) -> None:
        heard.append(event)
        raise error

    assert run_with(hook, tmp_path).counts.accepted == 200
    assert isinstance(heard[-1], RunEnded)
    assert sum("an event hook raised" in record.message for record in caplog.records) == 1


def test_a_coroutine_function_is_awaited_on_the_loop(tmp_path: Path) -> None:
    """One event at a time, in order, also where it awaits."""
    heard: list[Event] = []
    threads = set()

    async def hook(event: Event) -> None:
        await asyncio.sleep(0.001)
        threads.add(threading.get_ident())
        heard.append(event)

    assert run_with(hook, tmp_path).counts.accepted == 200
    assert threads == {threading.get_ident()}
    assert isinstance(heard[0], RunStarted)
    assert isinstance(heard[-1], RunEnded)


def test_a_hook_that_never_returns_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run ends all the same, and says that events were not heard."""
    monkeypatch.setattr(delivering, "STUCK_S", 0.1)
    release = threading.Event()
    assert run_with(lambda _event: release.wait(60), tmp_path).counts.accepted == 200
    release.set()
    assert "an event hook is stuck" in caplog.text


def test_what_overflows_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of batches are left out beyond the bound, the others never, and the gap is told of."""
    monkeypatch.setattr(delivering, "MAX_WAITING", 3)
    heard: list[Event] = []
    release = threading.Event()

    async def go() -> None:
        delivery = Delivery(lambda event: (release.wait(10), heard.append(event)), run="r")
        for number in range(10):
            delivery.take(BatchSettled(run="r", batch=number, state="accepted", devices=1))
        delivery.take(RunEnded(run="r", exit=0))
        release.set()
        await delivery.finish()

    asyncio.run(go())
    batches = [event.batch for event in heard if isinstance(event, BatchSettled)]
    assert batches == [0, 1, 2]
    assert [event.count for event in heard if isinstance(event, EventsMissed)] == [7]
    assert isinstance(heard[-1], RunEnded)


def test_a_dispatcher_stays_on_its_loop(tmp_path: Path) -> None:
    """Used from another loop it refuses in one sentence, before anything is done."""

    async def go() -> None:
        async with open_dispatcher(Settings(state_dir=tmp_path)) as opened:
            with pytest.raises(UsageError, match="another event loop"):
                await asyncio.to_thread(lambda: asyncio.run(opened.run(manifest())))

    asyncio.run(go())


def test_an_event_is_inert_and_whole() -> None:
    """A hostile id moves no terminal; the first of several is shown, and JSON has them all."""
    event = BatchSettled(run="r", batch=1, state="accepted", devices=2, device_ids=("a\x1b[31m", "b"))
    assert event.text() == (
        "batch settled: batch 1, state accepted, devices 2, device_ids a\\x1b[31m and 1 more, attempts 0"
    )
    assert '"device_ids":["a\\u001b[31m","b"]' in event.json()
    assert RunProgressed.__doc__
