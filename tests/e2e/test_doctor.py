"""`dispatcher doctor`: it finds what is wrong, tells no secret, sends no command and writes nothing."""

from __future__ import annotations

import fcntl
import json
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.emulator.faults import Fault, FaultPlan

if TYPE_CHECKING:
    from tests.e2e.conftest import Done, Emulators, Service, Site

KEYS = ["run", "ok", "checks", "policy", "exit"]
CHECKS = [
    *("manifest", "limits", "region", "endpoint", "credentials", "identity", "reachability", "clock"),
    *("create_task", "tag_resource", "describe_task", "list_tasks", "list_devices"),
    *("state_folder", "checkpoint", "lock", "disk", "sqlite", "open_files"),
]
READS = {"DescribeTask", "ListTasks", "ListDevices"}


def tree(site: Site) -> dict[str, tuple[int, int]]:
    """Every file and folder of the operator's, with size and time of its last change."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(site.folder.rglob("*"))
    }


def examined(site: Site, manifest: str, *arguments: object) -> tuple[dict[str, Any], Done]:
    """`doctor --json`, its object held against the contract, and that it left everything as it was."""
    before = tree(site)
    done = site.do("doctor", manifest, "--json", *arguments)
    assert tree(site) == before
    found: dict[str, Any] = json.loads(done.out)
    assert list(found) == KEYS
    assert [check["name"] for check in found["checks"] if check["name"] != "checkpoint_folder"] == CHECKS
    assert found["exit"] == done.code == (0 if found["ok"] else 1)
    assert found["ok"] == ("fail" not in {check["verdict"] for check in found["checks"]})
    assert found["policy"]["Version"] == "2012-10-17"
    return found, done


def check(found: dict[str, Any], name: str) -> dict[str, Any]:
    """One check by its name."""
    return next(one for one in found["checks"] if one["name"] == name)


def bad(found: dict[str, Any]) -> dict[str, str]:
    """What is neither ok nor skipped."""
    return {one["name"]: one["verdict"] for one in found["checks"] if one["verdict"] in ("warn", "fail")}


def operations(service: Service) -> set[str]:
    return {call.operation for call in service.running.ledger.calls}


def closed_url() -> str:
    """An address on which nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


def test_a_sound_host_and_service(site: Site, emulate: Emulators) -> None:
    """Nothing is wrong, only reads were sent, no file and no folder was made."""
    service = emulate(25)
    found, done = examined(site, site.manifest(site.ids(25)), "--endpoint-url", service.url)
    assert done.code == 0
    assert done.err == ""
    assert bad(found) == {}
    assert check(found, "manifest")["message"] == "reboot 25 devices in 3 calls"
    assert check(found, "endpoint")["message"] == f"{service.url} (flag), not AWS"
    assert operations(service) == READS
    assert not site.state.exists()


@pytest.mark.parametrize("denied", ["ListTasks", "DescribeTask", "all"])
def test_a_missing_permission_is_named(site: Site, emulate: Emulators, denied: str) -> None:
    service = emulate(25, deny=frozenset({denied}))
    found, done = examined(site, site.manifest(site.ids(5)), "--endpoint-url", service.url)
    names = {"ListTasks": ["list_tasks"], "DescribeTask": ["describe_task"]}
    expected = names.get(denied, ["describe_task", "list_tasks"])
    assert bad(found) == dict.fromkeys(expected, "warn")
    for name in expected:
        action = {"list_tasks": "ListTasks", "describe_task": "DescribeTask"}[name]
        assert check(found, name)["message"].startswith(f"{action} is denied (AccessDeniedException)")
        assert "--policy" in check(found, name)["hint"]
    assert done.code == 0
    assert "CreateTask" not in operations(service)


def test_nobody_at_the_endpoint(site: Site) -> None:
    found, done = examined(site, site.manifest(site.ids(5)), "--endpoint-url", closed_url())
    assert bad(found) == {"reachability": "fail"}
    assert "Connection refused" in check(found, "reachability")["message"]
    assert done.code == 1


@pytest.mark.parametrize("fault", ["reset_before", "bare_503", "redirect"])
def test_a_service_that_answers_nothing_of_use(site: Site, emulate: Emulators, fault: str) -> None:
    """Resets, a proxy's pages and redirects are no answers."""
    faults = FaultPlan(shares={Fault(fault): 1.0}, operations=frozenset(READS))
    service = emulate(25, faults=faults)
    found, _ = examined(site, site.manifest(site.ids(5)), "--endpoint-url", service.url)
    assert bad(found) == {"reachability": "fail"}


def test_no_credentials(site: Site, emulate: Emulators) -> None:
    """A profile is named and has none: doctor says so, and asks all the same what needs none."""
    (site.folder / "aws").write_text("[profile empty]\nregion = us-west-2\n")
    site.env["AWS_CONFIG_FILE"] = str(site.folder / "aws")
    site.env["AWS_PROFILE"] = "empty"
    del site.env["AWS_ACCESS_KEY_ID"], site.env["AWS_SECRET_ACCESS_KEY"]
    found, done = examined(site, site.manifest(site.ids(5)), "--endpoint-url", emulate(25).url)
    assert check(found, "credentials")["verdict"] == "fail"
    assert check(found, "credentials")["hint"]
    assert check(found, "reachability")["verdict"] == "ok"
    assert done.code == 1


def test_no_secret_is_told(site: Site, emulate: Emulators) -> None:
    """Not in a check, not in the SDK's own log, not by a service that repeats what it was sent."""
    secrets = {
        "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY1234",
        "AWS_SECRET_ACCESS_KEY": "canary/secret+key",
        "AWS_SESSION_TOKEN": "canary/session+token",
    }
    site.env |= secrets
    service = emulate(25, deny=frozenset({"all"}))
    manifest = site.manifest(site.ids(5))
    for flags in (("-vv",), ("-vv", "--json")):
        done = site.do("doctor", manifest, "--endpoint-url", service.url, *flags)
        assert done.code == 0
        assert "found by env: temporary" in done.out
        for secret in secrets.values():
            assert secret not in done.out + done.err


def test_an_ignored_endpoint_variable_is_told(site: Site, emulate: Emulators) -> None:
    site.env["AWS_ENDPOINT_URL"] = closed_url()
    service = emulate(25)
    found, _ = examined(site, site.manifest(site.ids(5)), "--endpoint-url", service.url)
    assert bad(found) == {"endpoint": "warn"}
    assert check(found, "endpoint")["message"].endswith("ignored: AWS_ENDPOINT_URL")


def test_what_is_wrong_with_the_state_folder(site: Site, emulate: Emulators) -> None:
    """Modes, and somebody who holds the run's lock."""
    (site.state / "locks").mkdir(parents=True)
    site.state.chmod(0o777)
    lock = site.state / "locks" / "fleet.lock"
    lock.write_text("4711\n")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found, done = examined(site, site.manifest(site.ids(5)), "--endpoint-url", emulate(25).url)
    assert bad(found) == {"state_folder": "fail", "lock": "fail"}
    assert f"others may write to {site.state} (mode 0777)" in check(found, "state_folder")["message"]
    assert "(process 4711)" in check(found, "lock")["message"]
    assert done.code == 1


def test_beside_a_run(site: Site, emulate: Emulators) -> None:
    """What is stored is told and left as it is; what `run` would refuse fails."""
    service = emulate(25)
    manifest = site.manifest(site.ids(25))
    assert site.run(manifest, service, "--limit", 10).code == 0
    found, _ = examined(site, manifest, "--endpoint-url", service.url)
    assert bad(found) == {}
    assert check(found, "checkpoint")["message"].endswith("10 of 25 devices accepted, 0 in doubt")
    sent = len(service.calls)
    found, done = examined(site, manifest, "--endpoint-url", service.url, "--region", "us-east-1")
    assert check(found, "checkpoint")["verdict"] == "fail"
    assert "was sent to region us-west-2, not to us-east-1" in check(found, "checkpoint")["message"]
    assert done.code == 1
    assert len(service.calls) == sent


def test_an_old_copy_of_the_checkpoint_is_told(site: Site, emulate: Emulators) -> None:
    """The registry remembers what was sent after the copy was taken."""
    service = emulate(25)
    manifest = site.manifest(site.ids(25))
    assert site.run(manifest, service, "--limit", 10).code == 0
    old = site.checkpoint.read_bytes()
    assert site.run(manifest, service).code == 0
    for path in site.state.glob("fleet.db-*"):
        path.unlink()
    site.checkpoint.write_bytes(old)
    found, _ = examined(site, manifest, "--endpoint-url", service.url)
    assert bad(found) == {"checkpoint": "warn"}
    assert "is older than what was sent since" in check(found, "checkpoint")["message"]


def test_bad_input_is_a_usage_error(site: Site) -> None:
    """As `plan` has it, and before anybody is asked."""
    manifest = site.manifest(["smd-a", "smd b"])
    doctor = site.do("doctor", manifest, "--endpoint-url", closed_url())
    plan = site.do("plan", manifest, "--endpoint-url", closed_url())
    assert doctor.code == plan.code == 2
    assert doctor.errors == plan.errors
    assert len(doctor.errors) == 1
    assert doctor.out == ""


def test_the_policy_alone(site: Site) -> None:
    """Ready to be pasted, and nobody is asked for it."""
    manifest = site.manifest(["smd-a"], account="111122223333", tags={"owner": "ops"})
    done = site.do("doctor", manifest, "--policy", "--endpoint-url", closed_url())
    assert done.code == 0
    policy = json.loads(done.out)
    assert [one["Sid"] for one in policy["Statement"]] == [
        "DispatcherSend",
        "DispatcherLook",
        "DispatcherTag",
    ]
    assert "us-west-2:111122223333:task/*" in done.out
    line = site.do("doctor", manifest, "--policy", "--json").out
    assert (json.loads(line), line.count("\n")) == (policy, 1)
    found, _ = examined(site, manifest, "--endpoint-url", closed_url())
    assert found["policy"] == policy


def test_every_check_is_documented() -> None:
    """docs/doctor.md has a row for each, in the order in which they are told."""
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    checks = page.partition("## The checks")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", checks, re.MULTILINE)
    assert [name for name in rows if name != "checkpoint_folder"] == CHECKS


def test_the_text_fits_a_terminal(site: Site, emulate: Emulators) -> None:
    """Every check has a row of its own, in one column, and a pipe gets no colours."""
    site.env["COLUMNS"] = "80"
    service = emulate(25, deny=frozenset({"ListTasks"}))
    done = site.do("doctor", site.manifest(site.ids(25)), "--endpoint-url", service.url)
    lines = done.out.splitlines()
    rows = [found for line in lines if (found := re.match(r"(ok|warn|fail|skip) +(\w+) +\S", line))]
    assert [row[2] for row in rows] == CHECKS
    assert len({row.end() for row in rows}) == 1
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.out
    assert lines[-1] == "fleet: nothing failed, 1 to look at"
