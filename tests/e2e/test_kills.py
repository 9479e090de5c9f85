"""SIGKILL at any moment: no device twice, none forgotten, and what cannot be known is listed."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from dispatcher.emulator.faults import Fault, FaultPlan

if TYPE_CHECKING:
    from tests.e2e.conftest import Done, Emulators, Service, Site

FAULTS = {Fault.LOST_REPLY: 0.08, Fault.ERROR_500: 0.08, Fault.ERROR_500_AFTER: 0.08}
soak = pytest.mark.skipif("SOAK" not in os.environ, reason="the full figures: set SOAK=1")


def killed_often(site: Site, service: Service, manifest: str, *, kills: int, rng: random.Random) -> Done:
    """Kill the run at random moments, then let it end."""
    for _ in range(kills):
        process = site.start_run(manifest, service)
        before = len(service.running.ledger.calls)
        site.kill_after(process, service, before + rng.randint(1, 12))
    return site.run(manifest, service)


def survive(site: Site, emulate: Emulators, *, kills: int, seed: int, transport: str = "aiobotocore") -> None:
    """Inside the token window a killed run ends as an undisturbed one."""
    site.env["DISPATCHER_TRANSPORT"] = transport
    count = 10 * max(40, 7 * kills)
    faults = FaultPlan(shares=FAULTS)
    service = emulate(count, faults=faults, latency_s=0.03, latency_jitter=0.9, seed=seed)
    manifest = site.manifest(site.ids(count), limits={"rate_per_s": 60, "burst": 5})
    done = killed_often(site, service, manifest, kills=kills, rng=random.Random(seed))
    assert done.code == 0, done.err
    rows = site.judge(service, done.summary)
    assert {row["state"] for row in rows} == {"accepted"}
    assert set(service.tasks_of_devices().values()) == {1}
    assert len(service.tasks_of_devices()) == count


def survive_forgetful_service(site: Site, emulate: Emulators, *, kills: int, seed: int) -> None:
    """Outside the token window what is unsettled is listed, and never sent again."""
    count = 10 * max(40, 7 * kills)
    faults = FaultPlan(shares=FAULTS)
    service = emulate(count, faults=faults, latency_s=0.03, latency_jitter=0.9, seed=seed, token_window_s=2.0)
    limits = {"rate_per_s": 60, "burst": 5, "token_window_s": 2, "attempt_timeout_s": 1}
    manifest = site.manifest(site.ids(count), limits=limits)
    done = killed_often(site, service, manifest, kills=kills, rng=random.Random(seed))
    assert done.code in (0, 1), done.err
    rows = site.judge(service, done.summary)
    assert {row["state"] for row in rows} <= {"accepted", "in_doubt"}
    assert done.code == int(any(row["state"] == "in_doubt" for row in rows))


@pytest.mark.parametrize("transport", ["aiobotocore", "wire"])
def test_a_killed_run_ends_as_an_undisturbed_one(site: Site, emulate: Emulators, transport: str) -> None:
    """Three kills among lost replies and server errors: every device has exactly one task."""
    survive(site, emulate, kills=3, seed=1, transport=transport)


def test_a_killed_run_outside_the_window_lists_its_doubts(site: Site, emulate: Emulators) -> None:
    """Three kills with tokens that hold two seconds: no device has two tasks."""
    survive_forgetful_service(site, emulate, kills=3, seed=2)


@soak
@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("transport", ["aiobotocore", "wire"])
@pytest.mark.parametrize("seed", range(11, 16))
def test_soak_kills_inside_the_window(site: Site, emulate: Emulators, seed: int, transport: str) -> None:
    """Five runs, fifty kills in each: every device has exactly one task."""
    survive(site, emulate, kills=50, seed=seed, transport=transport)


@soak
@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(21, 26))
def test_soak_kills_outside_the_window(site: Site, emulate: Emulators, seed: int) -> None:
    """Five runs, fifty kills in each, with tokens that hold two seconds: no device has two tasks."""
    survive_forgetful_service(site, emulate, kills=50, seed=seed)


def test_a_kill_while_planning_leaves_nothing(site: Site, emulate: Emulators) -> None:
    """Killed before the plan is committed, a run begins as if nothing had been."""
    count = 300_000
    service = emulate()
    manifest = site.manifest([f"smd-{number:016d}" for number in range(count)])
    killed = site.start_run(manifest, service)
    site.wait_until(lambda: site.checkpoint.exists() or killed.poll() is not None)
    killed.kill()
    killed.communicate(timeout=10)
    site.live.remove(killed)
    assert service.calls == []
    done = site.run(manifest, service, "--limit", 30)
    assert done.code == 0, done.err
    assert (done.summary["devices"], done.summary["accepted"]) == (count, 30)
    assert len(service.tasks()) == 3
    left = {path.name for path in site.state.iterdir()}
    assert left <= {"fleet.db", "fleet.db-wal", "fleet.db-shm", "fleet.db.lock", "locks", "registry"}


def test_doubt_of_a_kill_outlives_the_window(site: Site, emulate: Emulators) -> None:
    """Killed with calls on the wire and resumed after the window: these are listed, and not sent again."""
    service = emulate(200, latency_s=0.4)
    manifest = site.manifest(site.ids(200), limits={"token_window_s": 1, "attempt_timeout_s": 1})
    site.kill_after(site.start_run(manifest, service), service, 12)
    sent = {call.client_token for call in service.calls}
    until = max(call.at for call in service.calls) + 1.0
    site.wait_until(lambda: site.now() > until)
    done = site.run(manifest, service)
    assert done.code == 1, done.err
    assert done.summary["in_doubt"] > 0
    again = [call for call in service.calls if call.replayed]
    assert again == []
    rows = site.judge(service, done.summary)
    doubtful = {row["client_token"] for row in rows if row["state"] == "in_doubt"}
    assert doubtful & sent
    assert len([call for call in service.calls if call.client_token in doubtful & sent]) == len(
        doubtful & sent
    )
    listed = site.do("report", "fleet", "--state", "in_doubt", "--format", "jsonl")
    assert len(listed.out.splitlines()) == done.summary["in_doubt"]
    again_done = site.run(manifest, service)
    assert (again_done.code, again_done.summary["calls"]) == (1, 0)
    assert again_done.summary["already_complete"] is True
