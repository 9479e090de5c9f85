"""Every I/O of a run fails once, in its turn: what is on disk is the old state or the new one, never a mix.

The real walk, from the manifest over plan, claims, outcomes and registry to the end, in virtual time and on a
disk that fails where it is told to. After a failure the power goes as well, so that what was not synced, or
whose sync failed, is gone. Then the run is started again on a disk that works.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from dispatcher import Inventory, Manifest, Settings
from dispatcher.checkpoint.reading import SqliteReader
from dispatcher.checkpoint.writer import InlineOffload
from dispatcher.errors import CheckpointIo, DispatcherError
from dispatcher.intent import Intent
from dispatcher.observe import BatchSettled, Hooks
from dispatcher.prepare import Preparation
from dispatcher.run import Run
from dispatcher.transport.scripted import ScriptedTransport
from tests.engine.conftest import Service, VirtualClock, VirtualTimeLoop
from tests.simulation.disk import Disk, Failure, Io

BATCHES = 200
IDS = [f"smd-{i:05d}" for i in range(10 * BATCHES)]
FAILURES = (Failure.EIO, Failure.ENOSPC, Failure.SHORT_WRITE)
EACH = 1 if "SOAK" in os.environ else 10
"""Every so many I/Os one fails, beginning at another one for every failure."""


class Machine:
    """A disk, a service that remembers its tokens, and one process after the other."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.state.mkdir(mode=0o700)
        self.disk = Disk(self.state)
        self.clock = VirtualClock()
        self.service = Service(latency_s=0.01, bad=frozenset({IDS[77]}))
        self.told: dict[int, str | None] = {}

    def process(self) -> tuple[int, str | None]:
        """Run the manifest; return the exit code and the error's line."""
        try:
            with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
                try:
                    return runner.run(self._walk()), None
                finally:
                    self.clock.skew_s += runner.get_loop().time() + 1
        except DispatcherError as error:
            return error.exit_code, error.one_line()

    async def _walk(self) -> int:
        settings = Settings(
            state_dir=self.state, rate_per_s=2_000.0, burst=10, max_in_flight=32, rate_control="fixed",
            token_window_s=100_000.0,
        )  # fmt: skip
        manifest = Manifest(
            name="fleet", command="reboot", region="us-west-2", inventory=Inventory(targets=IDS)
        )
        resolved = settings.resolve(manifest)
        intent = Intent.of(manifest, resolved, "us-west-2")
        prepared = Preparation(resolved, now=self.clock.wall).of_manifest(intent)
        run = Run(
            prepared, resolved, Hooks((self._hear,)), self.clock,
            offload=InlineOffload(), rng=random.Random(1), pulse_s=None,
        )  # fmt: skip
        try:
            return (await run.go(ScriptedTransport(self.service))).exit
        finally:
            run.close()

    def _hear(self, event: Any) -> None:
        if isinstance(event, BatchSettled):
            self.told[event.batch] = event.task_id

    def check_file(self) -> None:
        """The checkpoint is whole, or not there yet, and holds all that was told."""
        path = self.state / "fleet.db"
        if not path.exists() or not path.stat().st_size:
            assert not self.told
            return
        connection = apsw.Connection(str(path))
        try:
            assert connection.execute("PRAGMA integrity_check").get == "ok"
            empty = connection.execute("SELECT count(*) FROM sqlite_schema").get == 0
            stored = {} if empty else dict(connection.execute("SELECT batch, task_id FROM outcome"))
            planned = (
                0 if empty else connection.execute("SELECT count(*) FROM batch WHERE parent IS NULL").get
            )
        finally:
            connection.close()
        assert planned in (0, BATCHES), "half a plan"
        assert {batch: stored.get(batch) for batch in self.told} == self.told, "what was told is gone"

    def states(self, devices: set[str]) -> dict[str, str]:
        """Return how these devices stand in the checkpoint."""
        reader = SqliteReader.open(self.state / "fleet.db", read_only=True)
        try:
            return {target: row.state for row in reader.rows() for target in row.targets if target in devices}
        finally:
            reader.close()


def undisturbed(folder: Path) -> list[Io]:
    """Return every I/O of a run that nothing disturbs."""
    machine = Machine(folder)
    with machine.disk.installed():
        assert machine.process() == (1, None)
    return machine.disk.trace


def disturbed(folder: Path, nth: int, failure: Failure, io: Io, *, lose_power: bool) -> str:
    """Let one I/O fail, look at what is left, and let the run end; return how the failure showed."""
    machine = Machine(folder)
    where = f"I/O {nth} ({io.kind} {io.name}) fails with {failure.value}"
    with machine.disk.installed():
        machine.disk.fail(nth, failure)
        code, line = machine.process()
        machine.disk.heal()
        assert code in (1, 4), f"{where}: exit {code}, {line}"
        assert (line is not None) == (code == 4), where
        assert line is None or "\n" not in line
        sent = len(machine.service.calls)
        if lose_power:
            machine.disk.kill()
            machine.disk.power_loss()
            machine.disk.revive()
        machine.check_file()
        ended = machine.process()
        assert ended == (1, None), f"{where}: the next run says {ended}"
    commanded = machine.service.commanded()
    assert len(commanded) == len(set(commanded)), f"{where}: a device was commanded twice"
    left = machine.states(set(IDS) - set(commanded))
    assert set(left.values()) <= {"rejected", "in_doubt"}, f"{where}: a device was forgotten"
    assert len(left) <= 10, f"{where}: more than the batch of the bad id is in doubt"
    return "harmless" if code == 1 else "before the first call" if not sent else "in mid-run"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.value)
def test_every_io_of_a_run_fails_once(folder: Path, failure: Failure) -> None:
    """Old state or new, one line and exit 4, nothing told is lost; the next run ends with one task each."""
    first = folder / "undisturbed"
    first.mkdir()
    trace = undisturbed(first)
    found: Counter[str] = Counter()
    chosen = range(1 + FAILURES.index(failure) % EACH, len(trace) + 1, EACH)
    for nth in sorted({*chosen, len(trace)}):  # the last: SQLite's file is closed, and locks must be dropped
        place = folder / str(nth)
        place.mkdir()
        io = trace[nth - 1]
        found[f"{io.kind}: {disturbed(place, nth, failure, io, lose_power=nth % 2 == 0)}"] += 1
        shutil.rmtree(place)
    assert any(what.endswith("in mid-run") for what in found), found
    print(
        f"\n{failure.value}: {len(trace)} I/Os, {sum(found.values())} failed: {dict(sorted(found.items()))}"
    )


def test_a_look_that_cannot_read_is_one_line(folder: Path) -> None:
    """SQLite has ended the transaction by then: the disk's error is told, and a later look is fine."""
    machine = Machine(folder)
    with machine.disk.installed():
        assert machine.process() == (1, None)
        reader = SqliteReader.open(machine.state / "fleet.db", read_only=True)
        whole = reader.counts()
        reader.close()
        reader = SqliteReader.open(machine.state / "fleet.db", read_only=True)
        machine.disk.fail(1, Failure.EIO, lasting=True)
        with pytest.raises(CheckpointIo, match=r"fleet\.db: disk I/O error"):
            reader.counts()
        machine.disk.heal()
        assert reader.counts() == whole
        reader.close()
