"""Several dispatchers in one process: other settings, other services, other loops; none knows of another."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher import BatchSettled, Inventory, Limits, Manifest, RunStarted, Settings, open_dispatcher
from dispatcher.emulator.app import run_emulator
from dispatcher.emulator.config import Config

if TYPE_CHECKING:
    from pathlib import Path

    from dispatcher import Event


def manifest(name: str, devices: int = 200, rate_per_s: float = 500) -> Manifest:
    return Manifest(
        name=name, command="reboot", region="us-west-2",
        inventory=Inventory(targets=[f"smd-{name}-{i:04d}" for i in range(devices)]),
        limits=Limits(rate_per_s=rate_per_s, burst=5),
    )  # fmt: skip


def devices_of(emulator: Any) -> list[str]:
    """Every device that was commanded, as often as it was."""
    return sorted(device for task in emulator.ledger.tasks for device in json.loads(bytes(task.targets)))


def ids(name: str, devices: int = 200) -> list[str]:
    return [f"smd-{name}-{i:04d}" for i in range(devices)]


def test_two_dispatchers_with_other_settings(tmp_path: Path) -> None:
    """Each sends to its own service by its own limits, and its hook hears its own run alone."""
    heard: dict[str, list[Event]] = {"one": [], "two": []}

    async def go() -> None:
        async with (
            run_emulator(Config()) as first,
            run_emulator(Config()) as second,
            open_dispatcher(Settings(state_dir=tmp_path / "1", endpoint_url=first.url)) as one,
            open_dispatcher(Settings(state_dir=tmp_path / "2", endpoint_url=second.url, limit=50)) as two,
        ):
            whole, part = await asyncio.gather(
                one.run(manifest("one"), on_event=heard["one"].append),
                two.run(manifest("two"), on_event=heard["two"].append),
            )
            assert (whole.counts.accepted, part.counts.accepted, part.counts.pending) == (200, 50, 150)
            assert devices_of(first) == ids("one")
            assert devices_of(second) == ids("two")[:50]
            assert [run.run for run in await one.runs()] == ["one"]

    asyncio.run(go())
    for name, events in heard.items():
        assert {event.run for event in events} == {name}


def test_a_cancelled_run_leaves_the_other_unharmed(tmp_path: Path) -> None:
    """In the middle of both, one is cancelled: the other sends every device once, and so does the resume."""

    async def go() -> None:
        async with (
            run_emulator(Config()) as emulator,
            open_dispatcher(Settings(state_dir=tmp_path, endpoint_url=emulator.url)) as one,
            open_dispatcher(Settings(state_dir=tmp_path, endpoint_url=emulator.url)) as two,
        ):
            both = asyncio.Event()
            sent: set[str] = set()

            async def hook(event: Event) -> None:
                if isinstance(event, BatchSettled):
                    sent.add(event.run)
                    if len(sent) == 2:
                        both.set()

            doomed = asyncio.ensure_future(one.run(manifest("one", rate_per_s=40), on_event=hook))
            other = asyncio.ensure_future(two.run(manifest("two", rate_per_s=40), on_event=hook))
            await both.wait()
            doomed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await doomed
            summary = await other
            assert (summary.counts.accepted, summary.exit) == (200, 0)
            assert (await two.resume("one")).counts.accepted == 200  # its lock is free, for anybody
            assert devices_of(emulator) == sorted(ids("one") + ids("two"))

    asyncio.run(go())


def test_two_loops_in_two_threads(tmp_path: Path) -> None:
    """Each thread has a loop, a service and a dispatcher of its own; the runs go on at the same time."""
    both = threading.Barrier(2)
    found: dict[str, Any] = {}

    def meet(event: Event) -> None:
        if isinstance(event, RunStarted):
            both.wait(20)

    async def go(name: str) -> None:
        async with (
            run_emulator(Config()) as emulator,
            open_dispatcher(Settings(state_dir=tmp_path, endpoint_url=emulator.url)) as opened,
        ):
            summary = await opened.run(manifest(name), on_event=meet)
            found[name] = summary.counts.accepted, devices_of(emulator)

    threads = [threading.Thread(target=asyncio.run, args=(go(name),)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not both.broken
    assert found == {name: (200, ids(name)) for name in ("one", "two")}
