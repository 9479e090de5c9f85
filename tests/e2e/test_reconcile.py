"""`dispatcher reconcile`: doubt settled by what the service lists, whatever befell the checkpoint."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.checkpoint.pages import connect
from dispatcher.emulator.config import Mismatch
from dispatcher.emulator.faults import Fault, FaultPlan
from tests.e2e.test_identity import interrupted, lose

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Emulators, Service, Site

HOUR_S = 3_600.0
RECONCILED_KEYS = [
    *("run", "dry_run", "devices", "accepted", "rejected", "in_doubt", "pending", "cancelled", "batches"),
    *("split", "pages", "listed", "tasks", "complete", "described", "behind", "adopted", "released"),
    *("history", "contradicted", "unlisted", "doubts", "twice", "broken", "calls", "throttled", "elapsed_s"),
    *("newly_cancelled", "exit"),
]


def age(site: Site, *, by_s: float = HOUR_S) -> None:
    """Let the token window pass: all instants of checkpoint and registry move into the past."""
    if site.checkpoint.exists():
        db = connect(site.checkpoint)  # another SQLite would leave pages without their sums
        with db:
            db.execute("UPDATE outcome SET first_sent_at = first_sent_at - ?", (by_s,))
            db.execute("UPDATE claim SET at = at - ?", (by_s,))
        db.close()
    record = site.state / "registry" / "fleet.json"
    if record.exists():
        kept = json.loads(record.read_text())
        if kept["first_sent_at"] is not None:
            kept["first_sent_at"] -= by_s
            kept["seal"] = ""
        record.write_text(json.dumps(kept))


def forget(service: Service) -> None:
    """Let the same time pass at the service: client tokens are forgotten."""
    service.running.service.tasks._by_token.clear()


def reconcile(site: Site, what: object, *arguments: object, code: int = 0) -> dict[str, Any]:
    """Run `reconcile --json`; return its object."""
    done = site.do("reconcile", what, "--json", *arguments)
    found: dict[str, Any] = json.loads(done.out)
    assert (done.code, found["exit"]) == (code, code), done.err + done.out
    if code in (0, 1):
        assert list(found) == RECONCILED_KEYS
    return found


def killed(site: Site, service: Service, manifest: str, *, calls: int) -> None:
    """Start a run and kill it with calls on the wire, and with claims that reach ahead of them."""
    fast = {"DISPATCHER_RATE_CONTROL": "fixed", "DISPATCHER_RATE_PER_S": "400"}
    site.env |= fast
    site.kill_after(site.start_run(manifest, service), service, calls)
    for name in fast:
        del site.env[name]


def only_once(service: Service) -> None:
    assert set(service.tasks_of_devices().values()) == {1}


def test_a_window_that_passed(site: Site, emulate: Emulators) -> None:
    """Killed, and resumed after the window: what has its task is adopted, the rest stays in doubt."""
    service, ids = emulate(400, latency_s=0.3), site.ids(400)
    manifest = site.manifest(ids, limits={"max_in_flight": 8})
    killed(site, service, manifest, calls=10)
    age(site)
    forget(service)
    made = sum(service.tasks_of_devices().values())
    shown = reconcile(site, "fleet", "--dry-run", code=1)
    found = reconcile(site, "fleet", code=1)
    assert (found["adopted"], found["accepted"]) == (shown["adopted"], made), found
    assert found["in_doubt"] == sum(found["doubts"].values()) > 0
    again = reconcile(site, "fleet", code=1)
    assert (again["adopted"], again["in_doubt"]) == (0, found["in_doubt"])
    sent = reconcile(site, "fleet", "--assume-absent")
    assert (sent["released"], sent["in_doubt"]) == (found["in_doubt"], 0)
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"]) == (0, 400), done.err
    only_once(service)
    site.judge(service, done.summary)


def test_a_lost_checkpoint_of_ten_thousand_devices(site: Site, emulate: Emulators) -> None:
    """Splits, lost replies, the window passed, the checkpoint gone: rebuilt, nobody twice, everybody classed.

    The calls are quoted by `pytest -q -rP -k ten_thousand`.
    """
    ids = site.ids(10_000)
    bad = frozenset(ids[37::250])
    faults = FaultPlan(shares={Fault.LOST_REPLY: 0.03, Fault.ERROR_500_AFTER: 0.02})
    service = emulate(10_000, bad_ids=bad, faults=faults, latency_s=0.005)
    fast = {"rate_per_s": 2_000, "burst": 50, "max_in_flight": 64}
    manifest = site.manifest(ids, limits=fast)
    process = site.start_run(manifest, service)
    site.signal_after(process, service, 900, signal.SIGTERM)
    site.end(process)
    made, calls = len(service.tasks()), len(service.calls)
    lose(site)
    age(site)
    forget(service)
    assert site.run(manifest, service).code == 4
    before = len(service.running.ledger.calls)
    assert len(service.calls) == calls
    found = reconcile(site, manifest, "--endpoint-url", service.url, code=1)
    commanded = service.tasks_of_devices()
    assert (found["devices"], found["tasks"], found["accepted"]) == (10_000, made, len(commanded))
    assert (found["twice"], found["complete"], len(service.calls)) == (0, True, calls)
    assert found["pending"] > 0, "what was never claimed needs no doubt"
    rows = site.receipts()
    assert {row["device_id"] for row in rows if row["state"] == "accepted"} == set(commanded)
    reads = len(service.running.ledger.calls) - before
    assert reads == found["calls"] <= 2 + made / 100 + found["described"]
    print(
        f"\n10,000 devices, {made} tasks, {calls} CreateTask calls before the loss; reconcile:"
        f" {found['calls']} calls ({found['pages']} pages, {found['described']} described) in"
        f" {found['elapsed_s']} s: {found['adopted']} adopted, {found['in_doubt']} in doubt,"
        f" {found['pending']} pending, 0 twice"
    )
    done = site.run(manifest, service)
    while done.summary["in_doubt"]:
        age(site)
        reconcile(site, "fleet", "--assume-absent")
        done = site.run(manifest, service)
    assert (done.code, done.summary["rejected"]) == (1, len(bad)), done.err
    assert done.summary["accepted"] == 10_000 - len(bad)
    only_once(service)
    site.judge(service, done.summary)


def test_an_unlock_goes_back_to_the_plan_by_itself(site: Site, emulate: Emulators) -> None:
    """At least once: what has no task is sent again by `resume` itself, and what has one is adopted."""
    service, ids = emulate(200, latency_s=0.3), site.ids(200)
    manifest = site.manifest(ids, limits={"max_in_flight": 8}, command="unlock")
    killed(site, service, manifest, calls=10)
    age(site, by_s=10 * HOUR_S)
    forget(service)
    done = site.checked(site.do("resume", "fleet", "--json"))
    assert (done.code, done.summary["accepted"]) == (0, 200), done.err
    assert "looked up at the service" in done.err
    only_once(service)
    site.judge(service, done.summary)


def test_a_resume_adopts_and_never_resends_a_reboot(site: Site, emulate: Emulators) -> None:
    """At most once: `run` finds the tasks by itself; with --no-reconcile it does not look."""
    service, ids = emulate(200, latency_s=0.3), site.ids(200)
    manifest = site.manifest(ids, limits={"max_in_flight": 8})
    killed(site, service, manifest, calls=10)
    age(site)
    forget(service)
    blind = site.run(manifest, service, "--no-reconcile")
    assert (blind.code, blind.summary["in_doubt"] > 0) == (1, True), blind.err
    done = site.run(manifest, service)
    assert (done.code, done.summary["calls"]) == (1 if done.summary["in_doubt"] else 0, 0), done.err
    assert done.summary["in_doubt"] < blind.summary["in_doubt"]
    only_once(service)
    site.judge(service, done.summary)


def test_a_lost_reply_then_404(site: Site, emulate: Emulators) -> None:
    """A batch that was disowned after its task was made is found by its tag."""
    faults = FaultPlan(shares={Fault.LOST_THEN_404: 0.3})
    service = emulate(200, faults=faults)
    manifest = site.manifest(site.ids(200))
    assert site.run(manifest, service).summary["in_doubt"] > 0
    age(site)
    found = reconcile(site, "fleet")
    assert (found["accepted"], found["adopted"] > 0) == (200, True)
    only_once(service)


@pytest.mark.parametrize("is_made", [True, False])
def test_a_parked_edit(site: Site, emulate: Emulators, *, is_made: bool) -> None:
    """The batch of a device that was taken out: adopted with its task; without one, the rest is sent."""
    service, ids = emulate(100, latency_s=0.5), site.ids(100)
    manifest = site.manifest(ids, limits={"max_in_flight": 4})
    killed(site, service, manifest, calls=4)
    doubtful = sorted(device for devices in service.tasks().values() for device in devices)
    if is_made:
        gone = doubtful[0]
    else:
        gone = next(row["device_id"] for row in site.receipts()
                    if row["state"] == "in_doubt" and row["device_id"] not in doubtful)  # fmt: skip
    site.manifest([device for device in ids if device != gone], limits={"max_in_flight": 4})
    done = site.run(manifest, service, "--yes", "--accept-removals", 10, "--no-reconcile")
    assert done.summary["in_doubt"] == 10, done.err
    age(site)
    forget(service)
    unnamed = reconcile(site, "fleet", "--assume-absent", code=0 if is_made else 1)
    assert unnamed["in_doubt"] == (0 if is_made else 10)
    found = reconcile(site, manifest, "--endpoint-url", service.url, "--assume-absent")
    assert (found["newly_cancelled"], found["in_doubt"]) == (0 if is_made else 1, 0)
    done = site.run(manifest, service)
    assert (done.code, done.summary["cancelled"]) == (0, 0 if is_made else 1), done.err
    only_once(service)
    assert (gone in service.tasks_of_devices()) is is_made


def test_an_old_copy(site: Site, emulate: Emulators) -> None:
    """What was sent since the copy was taken is found, by run id alone; then the run ends as it should."""
    service = emulate(600, latency_s=0.02)
    manifest = site.manifest(site.ids(600), limits={"rate_per_s": 100, "burst": 5})
    interrupted(site, service, manifest, calls=10)
    old = site.checkpoint.read_bytes()
    interrupted(site, service, manifest, calls=30)
    site.checkpoint.write_bytes(old)
    age(site)
    forget(service)
    assert site.run(manifest, service).code == 4
    found = reconcile(site, "fleet", code=1)
    assert found["accepted"] == len(service.tasks_of_devices())
    assert (found["behind"], found["pending"] > 0) == (False, True), "the mark tells what was never claimed"
    reconcile(site, "fleet", "--assume-absent")
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"]) == (0, 600), done.err
    only_once(service)


def test_an_old_copy_of_everything(site: Site, emulate: Emulators) -> None:
    """Registry and checkpoint from the same backup: the service's tasks show it, and all else is in doubt."""
    service = emulate(600, latency_s=0.02)
    manifest = site.manifest(site.ids(600), limits={"rate_per_s": 100, "burst": 5})
    interrupted(site, service, manifest, calls=10)
    record = site.state / "registry" / "fleet.json"
    old = site.checkpoint.read_bytes(), record.read_bytes()
    interrupted(site, service, manifest, calls=30)
    site.checkpoint.write_bytes(old[0])
    record.write_bytes(old[1])
    age(site)
    forget(service)
    found = reconcile(site, "fleet", code=1)
    assert (found["behind"], found["pending"]) == (True, 0)
    assert found["accepted"] == len(service.tasks_of_devices())
    reconcile(site, "fleet", "--assume-absent")
    assert site.run(manifest, service).code == 0
    only_once(service)


def test_a_service_that_forgot_a_token(site: Site, emulate: Emulators) -> None:
    """Two tasks for one client token: told, with both ids and their devices, and exit 1."""
    faults = FaultPlan(shares={Fault.LOST_REPLY: 0.2})
    service = emulate(200, faults=faults, token_window_s=0.0, mismatch=Mismatch.NEW)
    manifest = site.manifest(site.ids(200))
    done = site.run(manifest, service)
    twice = sorted(device for device, count in service.tasks_of_devices().items() if count > 1)
    assert (done.code, bool(twice)) == (0, True), done.err
    found = reconcile(site, "fleet", code=1)
    assert found["twice"] == len(twice)
    assert sorted(device for one in found["broken"] for device in one["devices"]) == twice
    tasks = service.tasks()
    for one in found["broken"]:
        assert all(set(one["devices"]) <= set(tasks[task]) for task in one["task_ids"])
    said = site.do("reconcile", "fleet")
    assert (said.code, f"{len(twice)} devices have more than one task" in said.out) == (1, True)


def test_a_host_without_a_record_asks_first(site: Site, emulate: Emulators) -> None:
    """Tasks older than the token window: exit 4 with the command; it takes them up, nobody twice."""
    service = emulate(100)
    manifest = site.manifest(site.ids(100), limits={"token_window_s": 1, "attempt_timeout_s": 1})
    assert site.run(manifest, service, "--limit", 40).code == 0
    until = service.calls[-1].at + 1.5
    other = site.state.rename(site.folder / "other")
    assert other.exists()
    site.wait_until(lambda: site.now() > until)
    calls = len(service.calls)
    refused = site.run(manifest, service)
    assert (refused.code, len(service.calls), len(refused.errors)) == (4, calls, 1), refused.err
    assert f"dispatcher reconcile {manifest} --endpoint-url {service.url}" in refused.errors[0]
    found = reconcile(site, manifest, "--endpoint-url", service.url, code=1)
    assert (found["behind"], found["accepted"], found["in_doubt"]) == (True, 40, 60)
    assert site.run(manifest, service).summary["calls"] == 0
    age(site)
    reconcile(site, manifest, "--endpoint-url", service.url, "--assume-absent")
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"]) == (0, 100), done.err
    only_once(service)


@pytest.mark.parametrize("deny", ["ListTasks", None])
def test_a_fresh_run_goes_on_where_it_cannot_ask(site: Site, emulate: Emulators, deny: str | None) -> None:
    """Without the permission it says so once; inside the window the service answers again, and it is told."""
    service = emulate(40, deny=frozenset({deny} if deny else ()))
    manifest = site.manifest(site.ids(40))
    done = site.run(manifest, service)
    assert (done.code, done.err.count("ListTasks is not allowed")) == (0, 1 if deny else 0), done.err
    site.state.rename(site.folder / "other")
    again = site.run(manifest, service)
    assert (again.code, len(service.tasks())) == (0, 4), again.err


@pytest.mark.parametrize("how", ["limit", "edit"])
def test_a_fresh_run_that_is_cut_otherwise_is_refused(site: Site, emulate: Emulators, how: str) -> None:
    """Client tokens of other batches are new to the service, inside the window too: nothing is sent."""
    service, ids = emulate(60), sorted(site.ids(60))
    assert site.run(site.manifest(ids[:40]), service).code == 0
    site.state.rename(site.folder / "other")
    manifest = site.manifest(ids[:40] if how == "limit" else ids[5:45])
    again = site.run(manifest, service, *(("--limit", 15) if how == "limit" else ()))
    assert (again.code, again.summary["calls"]) == (4, 0), again.err
    assert f"dispatcher reconcile {manifest}" in again.err
    only_once(service)


def test_a_fresh_run_inside_the_window_cuts_nothing_anew(site: Site, emulate: Emulators) -> None:
    """What another host sent is asked again as it was: an edit in between parks it; nobody is sent twice."""
    service, ids = emulate(60, latency_s=0.2), sorted(site.ids(60))
    manifest = site.manifest(ids, limits={"max_in_flight": 1})
    assert site.run(manifest, service).code == 0
    site.state.rename(site.folder / "other")
    site.kill_after(site.start_run(manifest, service), service, len(service.running.ledger.calls) + 6)
    edited = site.run(site.manifest(ids[1:], limits={"max_in_flight": 1}), service, "--yes")
    assert edited.code in (0, 1), edited.err
    only_once(service)


def test_kills_in_the_middle_change_nothing(site: Site, emulate: Emulators) -> None:
    """Killed after every few reads, and begun again: it comes out as an undisturbed one would."""
    service = emulate(2_000, latency_s=0.01)
    manifest = site.manifest(site.ids(2_000), limits={"rate_per_s": 300, "burst": 5})
    interrupted(site, service, manifest, calls=120)
    lose(site)
    age(site)
    forget(service)
    words = ("reconcile", manifest, "--endpoint-url", service.url, "--json", "--rate", 20)
    for reads in (1, 2, 1):
        process = site.start(*words)
        before = len(service.running.ledger.calls)
        site.kill_after(process, service, before + reads)
    found = reconcile(site, manifest, "--endpoint-url", service.url, "--assume-absent")
    assert found["accepted"] == len(service.tasks_of_devices())
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"]) == (0, 2_000), done.err
    only_once(service)


def test_an_edited_manifest_rebuilds_a_lost_checkpoint(site: Site, emulate: Emulators) -> None:
    """Every batch would come out otherwise: tasks are matched by their devices, and those gone are kept."""
    service, ids = emulate(300, latency_s=0.02), site.ids(300)
    manifest = site.manifest(ids, limits={"rate_per_s": 100, "burst": 5})
    interrupted(site, service, manifest, calls=12)
    lose(site)
    age(site)
    forget(service)
    commanded = set(service.tasks_of_devices())
    gone = sorted(commanded)[3]
    site.manifest([device for device in ids if device != gone], limits={"rate_per_s": 100, "burst": 5})
    found = reconcile(site, manifest, "--endpoint-url", service.url, "--assume-absent")
    assert (found["history"], found["accepted"]) == (1, len(commanded))
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"], done.summary["devices"]) == (0, 300, 300), done.err
    site.manifest(ids, limits={"rate_per_s": 100, "burst": 5})
    assert site.run(manifest, service).summary["calls"] == 0
    only_once(service)


def test_a_dry_run_of_a_lost_checkpoint_writes_nothing(site: Site, emulate: Emulators) -> None:
    """It shows what it would do, and the state folder is as it was, but for who locked it last."""

    def kept() -> dict[Path, bytes]:
        files = [path for path in site.state.rglob("*") if path.is_file() and path.suffix != ".lock"]
        return {path: path.read_bytes() for path in files}

    service = emulate(300, latency_s=0.02)
    manifest = site.manifest(site.ids(300), limits={"rate_per_s": 100, "burst": 5})
    interrupted(site, service, manifest, calls=12)
    lose(site)
    age(site)
    before = kept()
    found = reconcile(site, manifest, "--endpoint-url", service.url, "--dry-run", code=1)
    assert (found["adopted"], found["dry_run"]) == (len(service.tasks_of_devices()), True)
    assert kept() == before


def test_without_system_tags(site: Site, emulate: Emulators) -> None:
    """Tasks are known by devices, description and time; a lost checkpoint cannot be rebuilt from that."""
    service, ids = emulate(200, latency_s=0.3), site.ids(200)
    manifest = site.manifest(ids, limits={"max_in_flight": 8}, system_tags=False, description="tonight")
    killed(site, service, manifest, calls=10)
    until = service.calls[-1].at + 1.0
    site.wait_until(lambda: site.now() > until)
    age(site, by_s=HOUR_S)
    forget(service)
    made = sum(service.tasks_of_devices().values())
    found = reconcile(site, "fleet", code=1)
    assert found["accepted"] == made
    lose(site)
    refused = reconcile(site, manifest, "--endpoint-url", service.url, code=4)
    assert "system_tags" in refused["error"]


def test_a_denied_list_is_exit_3(site: Site, emulate: Emulators) -> None:
    """The line names the permission; nothing has changed."""
    service = emulate(20, deny=frozenset({"ListTasks"}))
    assert site.run(site.manifest(site.ids(20)), service).code == 0
    found = reconcile(site, "fleet", code=3)
    assert "snow-device-management:ListTasks" in found["error"]


def test_what_a_lost_checkpoint_knew_is_not_sent_again(site: Site, emulate: Emulators) -> None:
    """A device that left, and returns after the loss: its task may be on a page that nobody has read."""
    service, ids = emulate(1_100), sorted(site.ids(1_100))
    limits = {"rate_per_s": 2_000, "burst": 50}
    assert site.run(site.manifest(ids, limits=limits), service).code == 0
    lose(site)
    words = ("--endpoint-url", service.url)
    reconcile(site, site.manifest(ids[:-1], limits=limits), *words, "--max-pages", 1, code=1)
    manifest = site.manifest(ids, limits=limits)
    refused = site.run(manifest, service)
    assert (refused.code, refused.summary["calls"]) == (4, 0), refused.err
    assert "never listed to the end" in refused.err
    assert f"dispatcher reconcile {manifest}" in refused.err
    reconcile(site, manifest, *words, code=0)
    done = site.run(manifest, service)
    assert (done.code, done.summary["calls"]) == (0, 0), done.err
    only_once(service)


def test_a_signal_ends_it_resumably(site: Site, emulate: Emulators) -> None:
    """130 and 143, one line with the command to go on; what was written stays."""
    service = emulate(2_000)
    manifest = site.manifest(site.ids(2_000), limits={"rate_per_s": 2_000, "burst": 50})
    assert site.run(manifest, service).code == 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = site.start("reconcile", "fleet", "--json", "--rate", 1)
        before = len(service.running.ledger.calls)
        site.signal_after(process, service, before + 1, number)
        done = site.end(process)
        assert (done.code, len(done.errors)) == (code, 1), done.err
        assert "dispatcher reconcile fleet --rate 1" in done.errors[0]
        assert json.loads(done.out)["exit"] == code
    assert reconcile(site, "fleet")["accepted"] == 2_000


def test_a_lost_checkpoint_is_told_what_to_do(site: Site, emulate: Emulators) -> None:
    """`reconcile RUN` cannot make the plan anew: exit 4, and the line says that the manifest can."""
    service = emulate(20)
    assert site.run(site.manifest(site.ids(20)), service).code == 0
    lose(site)
    assert "reconcile the manifest" in reconcile(site, "fleet", code=4)["error"]


def test_a_live_run_is_left_alone(site: Site, emulate: Emulators) -> None:
    """Another runner has the lease: exit 4, and it goes on."""
    service = emulate(400, latency_s=0.02)
    manifest = site.manifest(site.ids(400), limits={"rate_per_s": 40, "burst": 5})
    process = site.start_run(manifest, service)
    site.wait_until(lambda: len(service.calls) > 2)
    assert "another runner" in reconcile(site, "fleet", code=4)["error"]
    process.send_signal(signal.SIGTERM)
    assert site.end(process).code == 143
