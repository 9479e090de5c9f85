"""Bugs that the simulation found, each as the smallest thing that shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.errors import CheckpointIo, DispatcherError
from dispatcher.flight import Flight
from dispatcher.intent import Intent
from dispatcher.manifest import InventorySpec, Manifest
from dispatcher.model import Command
from dispatcher.prepare import Preparation
from dispatcher.sender import Sender
from dispatcher.settings import Settings
from tests.simulation.disk import Disk, Failure
from tests.simulation.runs import Result, run_scenario
from tests.simulation.scenario import SLEEP_IO, Item, Scenario

LIMITS = {
    "rate_per_s": 10.0, "burst": 1, "max_in_flight": 4, "attempt_timeout_s": 2.0, "max_attempts": 2,
    "patience_s": 120.0, "token_window_s": 3600.0, "rate_control": "fixed",
}  # fmt: skip


def scenario(*items: Item, lives: int, devices: int = 10) -> Scenario:
    """A service that does all it should, and `items`."""
    return Scenario(
        seed=0, devices=devices, bad=frozenset(), is_wrong_region=False, is_shuffled=False,
        command="reboot", limits=LIMITS, latency_s=0.02, service_rate_per_s=None, service_window_s=3600.0,
        lives=lives, items=items,
    )  # fmt: skip


def test_a_checkpoint_that_came_from_elsewhere_is_not_rebuilt() -> None:
    """What one host cut anew, the registry of the next does not know: losing it there must not resend."""
    found = run_scenario(
        scenario(
            Item("between", "limit", 0, value=4),
            Item("between", "move", 1),
            Item("between", "limit", 1, value=1),
            Item("between", "lose", 2),
            lives=3,
        )
    )
    assert found.broken == []
    assert any("may have been on another host" in line for line in found.lines)


def test_a_read_that_fails_is_not_told_as_damage(tmp_path: Path) -> None:
    """An I/O error while counting is an I/O error, although SQLite has ended the transaction by then."""
    disk = Disk(tmp_path)
    with disk.installed():
        checkpoint = SqliteCheckpoint.open(tmp_path / "a.db", create=True)
        checkpoint.close()
        count = 0
        while True:
            count += 1
            checkpoint = SqliteCheckpoint.open(tmp_path / "a.db")
            before = len(disk.trace)
            disk.fail(count, Failure.EIO)
            try:
                checkpoint.counts()
            except CheckpointIo:
                pass
            else:
                assert count > 1, "nothing was read"
                break
            finally:
                reads = len(disk.trace) - before
                disk.heal()
                checkpoint.close()
            assert reads == count


def test_a_holder_that_slept_over_its_claim_looks_at_the_lease() -> None:
    """A claim's age counts from when it was asked for, not from when a process that slept was told of it."""
    for at_s in (0.05, 0.15, 0.3, 0.45, 0.6):
        found = run_scenario(
            scenario(Item("moment", "takeover", 0, at=at_s, value=100.0), lives=1, devices=200)
        )
        assert found.broken == []


def slept_within(io: int) -> Result:
    """Lose seven replies to one batch, so that its lease is looked at often; sleep within an I/O."""
    lost = (Item("call", "lost_reply", at=call) for call in range(1, 8))
    made = scenario(*lost, Item("moment", SLEEP_IO, 0, at=io, value=4000.0), lives=1)
    limits = {**LIMITS, "max_attempts": 20, "rate_per_s": 100.0, "burst": 10}
    return run_scenario(replace(made, limits=limits))


def test_a_machine_that_sleeps_within_any_io_sends_nothing_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at the lease takes an I/O: the token's window is looked at after it, and not before."""
    ios = 0
    while f"moment: {SLEEP_IO}" in (found := slept_within(ios + 1)).reached:
        assert found.broken == []
        ios += 1
    assert ios > 100

    async def may_go(self: Sender, flight: Flight) -> bool:
        """Do so in the wrong order: that must show."""
        is_open = self.may_send(flight)
        if self._is_claimed_long_ago(flight):
            await self._check_lease(flight)
        return is_open

    monkeypatch.setattr(Sender, "_may_go", may_go)
    assert any(slept_within(io).broken for io in range(ios, 0, -1))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # apsw, closing by force
@pytest.mark.parametrize("failure", [Failure.EIO, Failure.ENOSPC])
def test_a_disk_that_fails_for_good_is_told_and_no_traceback(tmp_path: Path, failure: Failure) -> None:
    """Whichever I/O of planning is the first to fail, and although putting down fails too, it is ours."""
    manifest = Manifest(
        name="sim", command=Command.REBOOT, region="us-west-2",
        inventory=InventorySpec(targets=("smd-1", "smd-2")),
    )  # fmt: skip
    for nth in range(1, 200):
        disk = Disk(tmp_path / f"{nth}")
        disk.root.mkdir(mode=0o700)
        settings = Settings(state_dir=disk.root, region="us-west-2").resolve(manifest)
        intent = Intent.of(manifest, settings, "us-west-2")
        with disk.installed():
            disk.fail(nth, failure, lasting=True)
            try:
                Preparation(settings).of_manifest(intent).close()
            except DispatcherError:
                is_over = False
            else:
                is_over = nth > 20
            disk.heal()
            Preparation(settings).of_manifest(intent).close()  # no lock is left behind
        if is_over:
            return
    pytest.fail("no planning takes so many I/Os")


def test_a_call_that_slept_through_its_connecting_is_not_sent() -> None:
    """A machine that sleeps while a connection is made wakes to a call whose claim and window have passed."""
    for at_s in (0.21, 0.23, 0.25):
        slept = scenario(Item("moment", "sleep", 0, at=at_s, value=100.0), lives=1)
        found = run_scenario(replace(slept, seed=54, is_wire=True, is_shuffled=True, latency_s=0.1))
        assert found.broken == []
