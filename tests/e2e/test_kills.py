"""SIGKILL at any moment: no device twice, none forgotten, and what cannot be known is listed."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
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
    """Eight kills among lost replies and server errors: every device has exactly one task."""
    survive(site, emulate, kills=8, seed=1, transport=transport)


def test_a_killed_run_outside_the_window_lists_its_doubts(site: Site, emulate: Emulators) -> None:
    """Eight kills with tokens that hold two seconds: no device has two tasks."""
    survive_forgetful_service(site, emulate, kills=8, seed=2)


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
    done = site.run(manifest, service, "--no-reconcile")
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
    again_done = site.run(manifest, service, "--no-reconcile")
    assert (again_done.code, again_done.summary["calls"]) == (1, 0)
    assert again_done.summary["already_complete"] is True


STORE = "dispatcher.checkpoint.sqlite:SqliteCheckpoint"
POINTS = {
    "before the plan": f"before:{STORE}.write_plan",
    "after the plan's commit": f"after:{STORE}.write_plan",
    "before the lease": f"before:{STORE}.acquire",
    "after the lease's commit": f"after:{STORE}.acquire",
    "before the registry's record": "before:dispatcher.checkpoint.registry:Registry.put",
    "before the record's rename": "before:pathlib:Path.replace",
    "after the record's rename": "after:pathlib:Path.replace",
    "before the claim": f"before:{STORE}.claim",
    "before the claim's commit": f"after:{STORE}.claim",
    "after the claim's commit": "before:dispatcher.checkpoint.registry:Marker.committed",
    "after the claim's mark": "after:dispatcher.checkpoint.registry:Marker.committed",
    "before the send": "before:dispatcher.transport.aiobotocore:AiobotocoreTransport.create_task",
    "after the reply": "after:dispatcher.transport.aiobotocore:AiobotocoreTransport.create_task",
    "before the outcomes": f"before:{STORE}.record",
    "before the outcomes' commit": f"after:{STORE}.record",
    "before the outcomes are told": "before:dispatcher.run:Run._settled",
    "before the split": f"before:{STORE}.split",
    "before the split's commit": f"after:{STORE}.split",
    "before the give-back": f"before:{STORE}.give_back",
    "before the give-back's commit": f"after:{STORE}.give_back",
    "before the end is noted": f"before:{STORE}.finish",
    "after the end is noted": f"after:{STORE}.finish",
    "before the WAL's last checkpoint": f"before:{STORE}._value:PRAGMA wal_checkpoint",
    "after the WAL's last checkpoint": f"after:{STORE}._value:PRAGMA wal_checkpoint",
    "before the edit": f"before:{STORE}.edit",
    "after the edit's commit": f"after:{STORE}.edit",
}
"""Where a process is killed, each before or after one call. See killing.py."""
GENTLY = "term:dispatcher.transport.aiobotocore:AiobotocoreTransport.create_task@25"
"""Some points are passed only on the way out: there the process is first asked to end."""


class Gauntlet:
    """One run that is killed at one point after the other."""

    def __init__(self, site: Site, emulate: Emulators, *, devices: int, bad: int) -> None:
        self.site = site
        self.ids = site.ids(devices)
        self.bad = [f"{one}x" for one in self.ids[5 :: max(1, devices // max(1, bad))]][:bad]
        faults = FaultPlan(shares={Fault.LOST_REPLY: 0.03})
        self.service = emulate(devices, faults=faults, latency_s=0.01, seed=5)
        self.removed = 0
        self.manifest = self._write()

    def _write(self) -> str:
        ids = self.ids[: len(self.ids) - self.removed]
        rows = sorted([*ids, *self.bad])
        return self.site.manifest(rows, limits={"rate_per_s": 150, "burst": 5, "max_in_flight": 8})

    def kill(self, point: str, nth: int, *, at_last: int | None = None) -> bool:
        """Let the run die at the point, or before its `at_last`th call; return whether it did."""
        where = f"{POINTS[point]}@{nth}"
        if "edit" in point:
            self.removed += 1
            self.manifest = self._write()
        if "give-back" in point or "WAL" in point:
            where = f"{POINTS[point]}@1,{GENTLY}"
        if at_last is not None:
            where += f",{POINTS['before the send']}@{at_last}"
        words = ["run", self.manifest, "--endpoint-url", self.service.url, "--json", "--yes"]
        script = str(Path(__file__).with_name("killing.py"))
        process = subprocess.Popen(
            [sys.executable, script, where, *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=self.site.folder, env=self.site.env | {"DISPATCHER_RATE_CONTROL": "fixed"},
        )  # fmt: skip
        self.site.live.append(process)
        done = self.site.end(process)
        assert done.code in (-9, 0, 1, 143), f"{point}: {done.err}"
        return done.code == -9

    def end(self) -> None:
        """Let the run end: no device twice, none forgotten, in doubt only beside a bad id."""
        done = self.site.run(self.manifest, self.service, "--yes")
        assert done.code in (0, 1), done.err
        rows = self.site.judge(self.service, done.summary)
        batches: dict[int, set[str]] = {}
        for row in rows:
            batches.setdefault(row["batch"], set()).add(row["device_id"])
        for row in rows:
            if row["device_id"] in self.bad:
                assert row["state"] in ("rejected", "in_doubt")
            elif row["state"] == "in_doubt":
                assert batches[row["batch"]] & set(self.bad), row
            else:
                assert row["state"] in ("accepted", "cancelled"), row


def test_killed_at_every_point(site: Site, emulate: Emulators) -> None:
    """One run is killed once at each point between a plan and its end, and ends as if it had not been."""
    gauntlet = Gauntlet(site, emulate, devices=2_400, bad=8)
    missed = [point for point in POINTS if not any(gauntlet.kill(point, 1) for _ in range(4))]
    late = {"before the end is noted", "after the end is noted"}
    assert {*missed} <= late, missed
    gauntlet.end()


def test_killed_while_planning_and_at_the_end(site: Site, emulate: Emulators) -> None:
    """The first and the last points of a run, that the other kills do not come to."""
    gauntlet = Gauntlet(site, emulate, devices=200, bad=0)
    for point in ("before the plan", "after the plan's commit", "after the lease's commit"):
        assert gauntlet.kill(point, 1)
    for point in ("before the end is noted", "after the end is noted", "before the WAL's last checkpoint"):
        assert gauntlet.kill(point, 1), point
        assert site.judge(gauntlet.service, site.run(gauntlet.manifest, gauntlet.service).summary)
        gauntlet.removed = 0
    gauntlet.end()


def test_a_report_that_was_killed_is_whole_or_not_there(site: Site, emulate: Emulators) -> None:
    """The file of `report --output` is the old one until the new one is complete."""
    gauntlet = Gauntlet(site, emulate, devices=100, bad=0)
    gauntlet.end()
    output = site.folder / "report.jsonl"
    script = str(Path(__file__).with_name("killing.py"))
    for when, size in (("before", None), ("after", 100)):
        words = ["report", "fleet", "--format", "jsonl", "--output", str(output)]
        killed = subprocess.run(
            [sys.executable, script, f"{when}:pathlib:Path.replace@1", *words],
            cwd=site.folder, env=site.env, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert killed.returncode == -9, killed.stderr
        assert output.exists() == (size is not None)
    assert len([json.loads(line) for line in output.read_text().splitlines()]) == 100


@soak
@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seed", range(20))
def test_soak_killed_at_any_point(site: Site, emulate: Emulators, seed: int) -> None:
    """Twenty runs, fifty kills in each, at points and moments drawn by lot."""
    rng = random.Random(seed)
    gauntlet = Gauntlet(site, emulate, devices=12_000, bad=15)
    names = [point for point in POINTS if "end is noted" not in point]
    reached: Counter[bool] = Counter()
    for _ in itertools.repeat(None, 50):
        point, nth = rng.choice(names), rng.choice((1, 1, 2, 3, 7))
        reached[gauntlet.kill(point, nth, at_last=rng.randint(5, 40))] += 1
    gauntlet.end()
    assert reached[True] >= 45, reached
