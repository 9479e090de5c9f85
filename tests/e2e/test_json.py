"""The shape of `--json`, verb by verb: valid, and documented in the section of its own verb."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.report import COLUMNS
from tests.e2e.conftest import SUMMARY_KEYS
from tests.e2e.test_reconcile import RECONCILED_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.conftest import Emulators, Service, Site

CLI_PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
PLAN_KEYS = [
    *("run", "command", "region", "endpoint_url", "devices", "duplicates", "bad_rows", "bad_samples"),
    *("filtered", "batches", "lanes", "waves", "calls", "limits", "forecast_s", "diff"),
]
STATUS_KEYS = [
    *("run", "state", "command", "checkpoint", "devices", "accepted", "rejected", "in_doubt", "pending"),
    *("cancelled", "batches", "split", "doubt", "rate_per_s", "learned_rate_per_s", "eta_s", "process"),
    *("heartbeat_at", "planned_at", "finished_at", "exit"),
]


def section(verb: str) -> str:
    """The part of docs/cli.md that speaks of a verb."""
    parts = re.split(r"^## ", CLI_PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (found,) = [part for part in parts if re.match(rf"dispatcher {re.escape(verb)}\b", part)]
    return found


def documented(verb: str, keys: list[str]) -> None:
    """Each key stands in the verb's section, between backticks."""
    text = section(verb)
    assert not [key for key in keys if f"`{key}`" not in text]


@pytest.fixture
def done(site: Site, emulate: Emulators) -> tuple[Site, Service, str]:
    """A run of 25 devices, one of them rejected, that has ended."""
    service = emulate(25)
    manifest = site.manifest([*site.ids(25), "smd-nobody"])
    assert site.run(manifest, service).code == 1
    return site, service, manifest


def one(site: Site, *arguments: object) -> Any:
    """The one value that a verb prints with `--json`, which is one line."""
    ended = site.do(*arguments, "--json")
    assert ended.code in (0, 1), ended.err
    assert ended.out.count("\n") == 1
    return json.loads(ended.out)


def test_plan(done: tuple[Site, Service, str]) -> None:
    site, service, manifest = done
    found = one(site, "plan", manifest, "--endpoint-url", service.url)
    assert list(found) == PLAN_KEYS
    documented("plan", [*PLAN_KEYS, *found["diff"]])


def test_run_and_resume(done: tuple[Site, Service, str]) -> None:
    site, service, manifest = done
    for arguments in (("run", manifest, "--endpoint-url", service.url), ("resume", "fleet")):
        found = one(site, *arguments)
        assert list(found) == SUMMARY_KEYS
    documented("run", [*SUMMARY_KEYS, "error"])


def test_reconcile(done: tuple[Site, Service, str]) -> None:
    site, service, manifest = done
    for arguments in (("fleet",), (manifest, "--endpoint-url", service.url), ("fleet", "--dry-run")):
        assert list(one(site, "reconcile", *arguments)) == RECONCILED_KEYS
    documented("reconcile", [*RECONCILED_KEYS, "task_ids", "devices"])


def test_doctor(done: tuple[Site, Service, str]) -> None:
    site, service, manifest = done
    found = one(site, "doctor", manifest, "--endpoint-url", service.url)
    assert list(found) == ["run", "ok", "checks", "policy", "exit"]
    keys = ["name", "verdict", "message", "hint"]
    assert all(list(check) == keys for check in found["checks"])
    documented("doctor", [*found, *keys, "ok", "warn", "fail", "skip"])


def test_status_and_runs(done: tuple[Site, Service, str]) -> None:
    site, _, _ = done
    found = one(site, "status", "fleet")
    assert list(found) == STATUS_KEYS
    documented("status", [*STATUS_KEYS, *found["doubt"], *found["process"]])
    assert [list(row) for row in one(site, "runs")] == [STATUS_KEYS]
    site.checkpoint.unlink()
    (lost,) = one(site, "runs")
    assert list(lost) == ["run", "state", "checkpoint", "error"]
    record = site.state / "registry" / "fleet.json"
    record.write_bytes(record.read_bytes()[:-9])
    (damaged,) = one(site, "runs")
    assert (damaged["run"], damaged["state"], damaged["checkpoint"]) == ("fleet", "unreadable", str(record))
    documented("runs", ["state", "unreadable", "error"])


def test_report(done: tuple[Site, Service, str]) -> None:
    """`--json` is JSON Lines, one object a device; `--format json` is one array."""
    site, _, _ = done
    lines = site.do("report", "fleet", "--json").out.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [list(row) for row in rows] == [list(COLUMNS)] * 26
    assert json.loads(site.do("report", "fleet", "--format", "json").out) == rows
    documented("report", list(COLUMNS))


def test_config_show(site: Site) -> None:
    found = one(site, "config", "show")
    assert all(list(row) == ["value", "origin"] for row in found.values())
    documented("config show", ["value", "origin", "default"])


def test_emulator(site: Site) -> None:
    ended = site.do("emulator", "--json", "--duration", "0")
    assert list(json.loads(ended.out)) == ["url"]
    documented("emulator", ["url"])


def test_completion(site: Site) -> None:
    assert list(one(site, "completion", "bash")) == ["shell", "script"]
    documented("completion", ["shell", "script"])


FAILING: dict[str, Callable[[str], list[str]]] = {
    "plan": lambda manifest: ["plan", manifest + ".none"],
    "run": lambda manifest: ["run", manifest + ".none"],
    "doctor": lambda manifest: ["doctor", manifest + ".none"],
    "resume": lambda _: ["resume", "nothing"],
    "reconcile": lambda _: ["reconcile", "nothing"],
    "reconcile MANIFEST": lambda manifest: ["reconcile", manifest, "--rate", "x"],
    "status": lambda _: ["status", "nothing"],
    "report": lambda _: ["report", "nothing"],
    "config show": lambda manifest: ["config", "show", "--manifest", manifest + ".none"],
    "runs": lambda _: ["runs", "--config", "nowhere.toml"],
    "usage": lambda _: ["status"],
    "no verb": lambda _: ["fly"],
}


@pytest.mark.parametrize("verb", FAILING)
def test_an_error_is_the_object_of_run(site: Site, verb: str) -> None:
    """Whatever the verb: stdout stays JSON, with `exit` and the line of stderr as `error`."""
    ended = site.do(*FAILING[verb](site.manifest(["smd-a"])), "--json")
    assert ended.code == 2
    found = json.loads(ended.out)
    assert list(found) == [*SUMMARY_KEYS, "error"]
    assert found["exit"] == 2
    assert ended.errors == [f"error: {found['error']}"]
