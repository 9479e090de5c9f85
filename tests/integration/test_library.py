"""The library as ops tooling uses it: one dispatcher, real sockets, events, receipts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import dispatcher
from dispatcher import (
    BatchSettled,
    Dispatcher,
    Inventory,
    Limits,
    Manifest,
    ManifestError,
    PlanMismatch,
    Settings,
    UsageError,
    library,
    open_dispatcher,
)
from dispatcher.emulator.app import run_emulator
from dispatcher.emulator.config import Config
from dispatcher.emulator.faults import Fault, FaultPlan

IDS = [f"smd-{i:04d}" for i in range(95)]


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "ops", "command": "reboot", "region": "us-west-2", "inventory": Inventory(targets=IDS),
        "limits": Limits(rate_per_s=500, burst=20, max_in_flight=16),
    }  # fmt: skip
    return Manifest(**(values | changes))


def with_emulator(
    tmp_path: Path,
    work: Callable[[Dispatcher, Any], Awaitable[Any]],
    config: Config | None = None,
    **settings: Any,
) -> Any:
    """Run `work` with a dispatcher that sends to a fresh emulator."""

    async def go() -> Any:
        async with (
            run_emulator(config or Config()) as emulator,
            open_dispatcher(Settings(state_dir=tmp_path, endpoint_url=emulator.url, **settings)) as opened,
        ):
            return await work(opened, emulator)

    return asyncio.run(go())


def test_run_receipts_and_events(tmp_path: Path) -> None:
    """A run's summary, receipts and events agree with each other and with the ledger."""
    events: list[Any] = []

    async def work(opened: Dispatcher, emulator: Any) -> None:
        summary = await opened.run(manifest(), on_event=events.append)
        assert (summary.counts.accepted, summary.exit) == (95, 0)
        receipts = [receipt async for receipt in opened.receipts(summary.run)]
        assert [receipt.device_id for receipt in receipts] == IDS
        made = {task.task_id for task in emulator.ledger.tasks}
        assert {receipt.task_id for receipt in receipts} == made
        assert {event.task_id for event in events if isinstance(event, BatchSettled)} == made
        assert [r async for r in opened.receipts("ops", states={"rejected"})] == []

    with_emulator(tmp_path, work)


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    """The second call sends nothing and says so; a run key makes it another run."""

    async def work(opened: Dispatcher, emulator: Any) -> None:
        await opened.run(manifest())
        again = await opened.run(manifest())
        assert (again.already_complete, again.calls, again.exit) == (True, 0, 0)
        other = await opened.run(manifest(run_key="tonight"))
        assert (other.run, other.counts.accepted) == ("ops@tonight", 95)
        assert len(emulator.ledger.tasks) == 20

    with_emulator(tmp_path, work)


def test_two_runs_in_one_process(tmp_path: Path) -> None:
    """Runs share nothing but the state folder."""

    async def work(opened: Dispatcher, emulator: Any) -> None:
        one, two = await asyncio.gather(opened.run(manifest(name="one")), opened.run(manifest(name="two")))
        assert one.counts.accepted == two.counts.accepted == 95
        assert len(emulator.ledger.tasks) == 20

    with_emulator(tmp_path, work)


def test_the_same_run_twice_at_once_is_refused(tmp_path: Path) -> None:
    """One runner per run, also inside one process."""

    async def work(opened: Dispatcher, emulator: Any) -> None:
        results = await asyncio.gather(opened.run(manifest()), opened.run(manifest()), return_exceptions=True)
        refused = [r for r in results if isinstance(r, dispatcher.CheckpointLeased)]
        assert len(refused) == 1
        assert len(emulator.ledger.tasks) == 10

    with_emulator(tmp_path, work)


def test_an_edited_manifest_is_matched_by_device(tmp_path: Path) -> None:
    """Settled devices stay; new ones are sent; a device that was taken out is not."""

    async def work(opened: Dispatcher, emulator: Any) -> None:
        await opened.run(manifest())
        edited = [*reversed(IDS[5:]), "smd-new-1", "smd-new-2"]
        summary = await opened.run(manifest(inventory=Inventory(targets=edited)))
        assert (summary.counts.devices, summary.counts.accepted, summary.calls) == (97, 97, 1)
        commanded = [device for task in emulator.ledger.tasks for device in json.loads(bytes(task.targets))]
        assert len(commanded) == len(set(commanded)) == 97

    with_emulator(tmp_path, work)


def test_another_intent_under_the_same_name_is_refused(tmp_path: Path) -> None:
    """A changed description is another intent: exit 4 with a hint, nothing sent."""

    async def work(opened: Dispatcher, emulator: Any) -> None:
        await opened.run(manifest())
        with pytest.raises(PlanMismatch, match="description"):
            await opened.run(manifest(description="other"))
        assert len(emulator.ledger.tasks) == 10

    with_emulator(tmp_path, work)


def test_lost_replies_do_not_duplicate(tmp_path: Path) -> None:
    """A service that loses one reply in five makes one task a batch all the same."""
    lossy = Config(faults=FaultPlan(shares={Fault.LOST_REPLY: 0.2}), seed=3)

    async def work(opened: Dispatcher, emulator: Any) -> None:
        summary = await opened.run(manifest())
        assert summary.counts.accepted == 95
        assert len(emulator.ledger.tasks) == 10
        assert summary.retried > 0

    with_emulator(tmp_path, work, lossy)


def test_errors_are_typed(tmp_path: Path) -> None:
    """What is wrong is an exception of the documented tree."""

    async def work(opened: Dispatcher, emulator: Any) -> None:
        with pytest.raises(UsageError, match="no run or checkpoint"):
            await opened.resume("nobody")
        with pytest.raises(ManifestError):
            await opened.run(manifest(inventory=Inventory(path="missing.csv")))

    with_emulator(tmp_path, work)
    with pytest.raises(ManifestError):
        manifest(name="no spaces please")
    with pytest.raises(UsageError, match="rate_per_s"):
        Settings(rate_per_s=-1)


def test_cancellation_is_safe(tmp_path: Path) -> None:
    """A cancelled run leaves a checkpoint that the next one finishes, without a second task."""

    async def work(opened: Dispatcher, emulator: Any) -> None:
        task = asyncio.ensure_future(opened.run(manifest(limits=Limits(rate_per_s=40, burst=1))))
        while not emulator.ledger.tasks:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        summary = await opened.run(manifest())
        assert summary.counts.accepted == 95
        assert len(emulator.ledger.tasks) == 10

    with_emulator(tmp_path, work)


def test_cancelled_while_planning_it_keeps_no_lock(tmp_path: Path) -> None:
    """The thread that plans cannot be stopped: it is waited for, and what it took is given back."""
    inventory = tmp_path / "ids.txt"
    os.mkfifo(inventory)

    async def work(opened: Dispatcher, emulator: Any) -> None:
        slow = manifest(inventory=Inventory(path=str(inventory), format="txt"))
        task = asyncio.ensure_future(opened.run(slow))
        writer = await asyncio.to_thread(open, inventory, "w")
        task.cancel()
        task.cancel()
        await asyncio.sleep(0)
        writer.write("\n".join(IDS))
        writer.close()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await opened.run(manifest())).counts.accepted == 95

    with_emulator(tmp_path / "state", work)


def test_receipts_may_be_cancelled(tmp_path: Path) -> None:
    """The thread that reads is waited for before the file is closed under it."""

    async def work(opened: Dispatcher, emulator: Any) -> None:
        await opened.run(manifest())
        closed, reading = threading.Event(), threading.Event()
        early: list[bool] = []
        real = library._take

        def slow(rows: Any, count: int) -> Any:
            reading.set()
            early.append(closed.wait(0.2))  # for the close that must not come
            return real(rows, count)

        async def read() -> None:
            async for _ in opened.receipts("ops"):
                pass

        class Watched:
            def __init__(self, path: Any) -> None:
                self._reader = open_reader(path)

            def close(self) -> None:
                closed.set()
                self._reader.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(self._reader, name)

        open_reader = library.open_reader
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "_take", slow)
            patch.setattr(library, "open_reader", Watched)
            task = asyncio.ensure_future(read())
            await asyncio.to_thread(reading.wait, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert closed.is_set()
            assert early == [False]

    with_emulator(tmp_path, work)


def test_resume_keeps_the_limits_of_the_run(tmp_path: Path) -> None:
    """The printed next command has no flags: the plan remembers the limits that somebody gave."""

    async def work(opened: Dispatcher, emulator: Any) -> None:
        task = asyncio.ensure_future(opened.run(manifest(limits=Limits())))
        while not emulator.ledger.tasks:
            await asyncio.sleep(0.01)
        opened.drain()
        with pytest.raises(dispatcher.RunInterrupted):
            await task
        async with open_dispatcher(Settings(state_dir=tmp_path)) as other:
            seen: list[Any] = []
            await other.resume("ops", before=seen.append)
            assert (seen[0].settings.rate_per_s, seen[0].settings.token_window_s) == (20.0, 300.0)

    with_emulator(tmp_path, work, rate_per_s=20.0, token_window_s=300.0)


def test_an_old_plan_put_back_is_not_sent(tmp_path: Path) -> None:
    """A copy of an earlier plan of the run is planned anew, as the registry knows it."""

    async def work(opened: Dispatcher, emulator: Any) -> None:
        from dispatcher.checkpoint.sqlite import SqliteCheckpoint

        await opened.run(manifest())
        path = tmp_path / "ops.db"
        with contextlib.suppress(FileNotFoundError):
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink()
        older = manifest(inventory=Inventory(targets=IDS[:-1]))
        settings = Settings(state_dir=tmp_path / "elsewhere", endpoint_url=emulator.url, region="us-west-2")
        from dispatcher.intent import Intent
        from dispatcher.prepare import Preparation

        resolved = settings.resolve(older)
        prepared = Preparation(resolved).of_manifest(Intent.of(older, resolved, "us-west-2"))
        prepared.checkpoint.release(now=1.0)
        prepared.close()
        (tmp_path / "elsewhere" / "ops.db").rename(path)
        assert SqliteCheckpoint.open(path).plan() is not None
        summary = await opened.run(manifest())
        assert (summary.counts.devices, summary.counts.accepted) == (95, 95)
        assert len(emulator.ledger.tasks) == 10

    with_emulator(tmp_path, work)


def test_a_moved_checkpoint_keeps_its_wal(tmp_path: Path) -> None:
    """A -wal without its database is kept: the database may come back."""
    wal = tmp_path / "ops.db-wal"

    async def work(opened: Dispatcher, emulator: Any) -> None:
        wal.write_bytes(b"what was done last")
        with pytest.raises(ManifestError):
            await opened.run(manifest(inventory=Inventory(path="missing.csv")))
        assert wal.read_bytes() == b"what was done last"
        summary = await opened.run(manifest())
        assert summary.counts.accepted == 95
        assert wal.with_name("ops.db-wal.orphan").read_bytes() == b"what was done last"

    with_emulator(tmp_path, work)


def test_reconcile_settles_what_a_run_left_in_doubt(tmp_path: Path) -> None:
    """By run id and by manifest: lost replies then 404 are in doubt, and have their tasks."""

    async def work(opened: Dispatcher, emulator: Any) -> None:
        summary = await opened.run(manifest())
        assert summary.counts.in_doubt > 0
        shown = await opened.reconcile("ops", dry_run=True)
        assert (shown.adopted, shown.dry_run, shown.counts) == (summary.counts.in_doubt, True, summary.counts)
        found = await opened.reconcile(manifest())
        assert (found.adopted, found.counts.accepted, found.exit) == (summary.counts.in_doubt, 95, 0)
        made = {task.task_id for task in emulator.ledger.tasks}
        assert {receipt.task_id async for receipt in opened.receipts("ops")} == made
        with pytest.raises(UsageError, match="no run or checkpoint"):
            await opened.reconcile("nobody")

    faults = FaultPlan(shares={Fault.LOST_THEN_404: 0.4})
    with_emulator(tmp_path, work, Config(faults=faults))
