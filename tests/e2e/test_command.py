"""The command line's contract: exit codes, one line an error, `--limit`, and no secret anywhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from dispatcher.emulator.faults import Fault, FaultPlan

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Emulators, Site

SECRET, SESSION = "wJalrCANARYsecretKEY0123456789", "FwoGCANARYsessionTOKEN9876543210"


def test_a_limit_is_a_canary_by_hand(site: Site, emulate: Emulators) -> None:
    """Exactly 25 devices are sent and the process ends with 0; the next run sends the rest."""
    service = emulate(100, latency_s=0.02)
    manifest = site.manifest(site.ids(100))
    done = site.run(manifest, service, "--limit", 25)
    assert (done.code, done.summary["accepted"], done.summary["pending"]) == (0, 25, 75)
    assert len(service.tasks_of_devices()) == 25
    assert len(service.calls) == 3
    site.judge(service, done.summary)
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"]) == (0, 100)
    site.judge(service, done.summary)


def test_limits_add_up(site: Site, emulate: Emulators) -> None:
    """Again and again with a limit, through lost replies, sends N new devices each time."""
    service = emulate(95, faults=FaultPlan(shares={Fault.LOST_REPLY: 0.3}))
    manifest = site.manifest(site.ids(95))
    for accepted in (33, 66, 95):
        done = site.run(manifest, service, "--limit", 33)
        assert (done.code, done.summary["accepted"]) == (0, accepted), done.err
    done = site.run(manifest, service, "--limit", 33)
    assert done.summary["already_complete"] is True
    site.judge(service, done.summary)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run", "fleet.yaml", "--ratee", "5"], "--ratee"),
        (["run", "fleet.yaml", "--rate", "fast"], "fast"),
        (["run", "fleet.yaml", "--rate", "-1"], "rate"),
        (["run", "fleet.yaml", "--endpoint-url", "http://example.com"], "endpoint"),
        (["run"], "MANIFEST"),
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["run", "torn.yaml"], "torn.yaml"),
        (["run", "unknown.yaml"], "did you mean"),
        (["run", "bad_rows.yaml"], "rows.csv:3"),
        (["run", "long_id.yaml"], "long.csv:2"),
        (["run", "no_inventory.yaml"], "none.csv"),
        (["plan", "torn.yaml"], "torn.yaml"),
        (["resume", "nothing"], "nothing"),
        (["report", "nothing"], "nothing"),
        (["status", "nothing"], "nothing"),
        (["fly"], "fly"),
    ],
)
def test_a_mistake_is_one_line(site: Site, arguments: list[str], word: str) -> None:
    """Exit 2, one line on stderr that names it, the same in the JSON object, no run on record."""
    site.manifest(["smd-a"])
    base = json.loads((site.folder / "fleet.yaml").read_text())
    (site.folder / "torn.yaml").write_text("name: [fleet\ncommand: reboot\n")
    write(site.folder, "unknown", {**base, "comand": "reboot"})
    write(site.folder, "no_inventory", {**base, "inventory": {"path": "none.csv"}})
    (site.folder / "rows.csv").write_text("managed_device_id,site\nsmd-a,x\n,y\nsmd-b,z\n")
    write(site.folder, "bad_rows", {**base, "inventory": {"path": "rows.csv"}})
    (site.folder / "long.csv").write_text("managed_device_id\n" + "x" * 65 + "\n")
    write(site.folder, "long_id", {**base, "inventory": {"path": "long.csv"}})
    has_object = arguments[0] in ("run", "resume")
    done = site.do(*arguments, *(["--json"] if has_object else []))
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert done.err.startswith("error: ")
    assert word in done.err
    if has_object:
        assert site.checked(done).summary["devices"] == 0
    else:
        assert done.out == ""
    assert not (site.state / "registry").exists()


def write(folder: Path, name: str, content: object) -> None:
    (folder / f"{name}.yaml").write_text(json.dumps(content))


def test_real_endpoints_need_a_yes(site: Site) -> None:
    """Without a terminal and without `--yes`, nothing is sent to AWS."""
    done = site.checked(site.do("run", site.manifest(["smd-a"]), "--json"))
    assert done.code == 2
    assert "--yes" in done.errors[0]


def test_a_plan_sends_and_writes_nothing(site: Site, emulate: Emulators) -> None:
    """`plan --json` has the contract's keys, and what it forecasts is what the run does."""
    service = emulate(95)
    manifest = site.manifest([*site.ids(95), site.ids(1)[0]])
    plan = site.do("plan", manifest, "--json").summary
    keys = "devices, duplicates, bad_rows, batches, lanes, waves, calls, limits, forecast_s, diff"
    assert set(keys.split(", ")) <= set(plan)
    assert (plan["devices"], plan["duplicates"], plan["batches"], plan["calls"]) == (95, 1, 10, 10)
    assert not site.state.exists()
    done = site.run(manifest, service)
    assert (done.code, len(service.calls)) == (0, plan["calls"])
    after = site.do("plan", manifest, "--json")
    assert after.code == 0
    assert len(service.calls) == plan["calls"]


def test_no_secret_is_ever_written(site: Site, emulate: Emulators) -> None:
    """Keys and session tokens are in no file, log or output, whatever goes wrong and however verbose."""
    site.env |= {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SESSION}
    shares = {Fault.LOST_REPLY: 0.1, Fault.ERROR_500: 0.1, Fault.REDIRECT: 0.05, Fault.TRUNCATED: 0.1}
    service = emulate(200, faults=FaultPlan(shares=shares))
    denied = emulate(10, deny=frozenset({"CreateTask"}))
    manifest = site.manifest([*site.ids(200), "smd-nobody"])
    log = site.folder / "log.jsonl"
    ended = [
        site.run(manifest, service, "-vv", "--log-file", log, "--limit", 50),
        site.run(manifest, service, "-vv", "--log-file", log),
        site.run(manifest, denied, "-vv", "--run-key", "denied"),
        site.run(manifest, service, "-vv", "--checkpoint", site.folder / "fleet.yaml", "--run-key", "other"),
        site.do("report", "fleet", "--format", "csv", "-o", site.folder / "report.csv"),
        site.do("config", "show", "--json"),
    ]
    assert [done.code for done in ended] == [0, 1, 3, 4, 0, 0], [done.err[-300:] for done in ended]
    written = {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()}
    assert log in written
    assert site.checkpoint in written
    texts = [*written.values(), *(text.encode() for done in ended for text in (done.out, done.err))]
    for canary in (SECRET, SESSION):
        assert not [text for text in texts if canary.encode() in text]
    for path in (site.checkpoint, site.folder / "report.csv", site.state / "registry" / "fleet.json"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert site.state.stat().st_mode & 0o777 == 0o700


def test_a_report_has_a_row_for_every_device(site: Site, emulate: Emulators) -> None:
    """In every format, and nothing but rows."""
    service = emulate(25)
    assert site.run(site.manifest(site.ids(25)), service).code == 0
    for form in ("text", "json", "jsonl", "csv"):
        done = site.do("report", "fleet", "--format", form)
        assert done.code == 0
        rows = json.loads(done.out) if form == "json" else done.out.splitlines()
        assert len(rows) - (form in ("text", "csv")) == 25
        assert all(device in done.out for device in site.ids(25))
