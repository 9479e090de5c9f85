"""Doctor's look at this machine, and what it says of it."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click
import pytest

from dispatcher.cli.doctor import checkup_text
from dispatcher.doctor import machine
from dispatcher.doctor.base import Checkup, Verdict, fail, ok, skip, warn
from dispatcher.doctor.stored import Stored, look_up
from dispatcher.errors import CheckpointError
from dispatcher.manifest import Manifest
from dispatcher.model import Counts
from dispatcher.preview import preview
from dispatcher.settings import Settings

if TYPE_CHECKING:
    from dispatcher.settings import Resolved


@pytest.fixture
def case(tmp_path: Path) -> tuple[Manifest, Resolved]:
    """A manifest of three devices, one of them given twice, and what holds for it."""
    (tmp_path / "fleet.yaml").write_text(
        "name: fleet\ncommand: reboot\nregion: us-west-2\n"
        "inventory: {targets: [smd-a, smd-b, smd-b, smd-c]}\n"
    )
    manifest = Manifest.load(tmp_path / "fleet.yaml")
    return manifest, Settings(state_dir=tmp_path / "state").resolve(manifest)


def judged(path: Path, **options: Any) -> tuple[Verdict, str]:
    """Verdict and message on a state folder; nothing is made."""
    before = sorted(path.parent.rglob("*"))
    found = machine.check_folder("state_folder", path, **{"allow_network": False} | options)
    assert sorted(path.parent.rglob("*")) == before
    assert (found.hint is None) == (found.verdict is Verdict.OK)
    return found.verdict, found.message


def test_a_state_folder_is_looked_at_and_not_made(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert judged(state) == (Verdict.OK, f"{state} is not there yet and can be made")
    assert judged(state / "deeper")[0] is Verdict.OK
    state.mkdir(mode=0o700)
    assert judged(state) == (Verdict.OK, f"{state}, yours alone")
    state.chmod(0o750)
    assert judged(state) == (Verdict.WARN, f"others may look into {state} (mode 0750)")
    state.chmod(0o770)
    verdict, said = judged(state)
    assert (verdict, "others may write" in said) == (Verdict.FAIL, True)


def test_what_a_run_refuses_is_a_failed_check(tmp_path: Path) -> None:
    """A file in the folder's place, or above it; and whatever else the checkpoint's own code refuses."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "state"):
        assert judged(path) == (Verdict.FAIL, f"{tmp_path / 'file'} is not a folder")

    def refuse(path: Path) -> None:
        raise CheckpointError(f"{path} is odd", hint="even it")

    assert judged(tmp_path / "new", refuse=refuse) == (Verdict.FAIL, f"{tmp_path / 'new'} is odd")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permission is asked of the system, which also knows of read-only disks."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    tmp_path.chmod(0o700)
    assert judged(tmp_path) == (Verdict.FAIL, f"{tmp_path} is not writable")
    assert judged(tmp_path / "new") == (Verdict.FAIL, f"{tmp_path / 'new'} cannot be made in {tmp_path}")


def test_a_network_folder_fails_unless_it_is_allowed(tmp_path: Path) -> None:
    verdict, said = judged(tmp_path / "new", network_of=lambda _: "nfs4")
    assert (verdict, "network file system (nfs4)" in said) == (Verdict.FAIL, True)
    assert judged(tmp_path / "new", network_of=lambda _: "nfs4", allow_network=True)[0] is Verdict.WARN


@pytest.mark.parametrize(
    ("free", "verdict"),
    [(0, Verdict.FAIL), (19, Verdict.FAIL), (20, Verdict.WARN), (39, Verdict.WARN), (40, Verdict.OK)],
)
def test_twice_what_the_run_takes_should_be_free(tmp_path: Path, free: int, verdict: Verdict) -> None:
    """Free is what this user may fill; a folder that is not there is made in the nearest that is."""
    asked: list[Path] = []

    def statvfs(path: Path) -> os.statvfs_result:
        asked.append(path)
        space: Any = SimpleNamespace(f_frsize=1_000, f_bavail=free * 1_000, f_bfree=10**9)
        return space  # type: ignore[no-any-return]

    found = machine.check_disk(tmp_path / "not" / "there", 20_000_000, statvfs=statvfs)
    assert found.verdict is verdict
    assert found.message.startswith(
        f"{free} {'MB' if free else 'B'} free in {tmp_path}; the run takes about 20 MB"
    )
    assert asked == [tmp_path]


def test_a_run_takes_more_the_more_devices_it_has() -> None:
    """The measured 7.53 MB of 200,000 accepted devices fit, and the -wal beside them."""
    assert machine.run_bytes(200_000) - machine.WAL_BYTES >= 7_530_000
    assert machine.run_bytes(1) < machine.run_bytes(11) < machine.run_bytes(1_000_000) < 100_000_000


def test_a_held_lock_names_its_process(tmp_path: Path) -> None:
    free, held = tmp_path / "free.lock", tmp_path / "held.lock"
    held.write_text("4711\n")
    assert machine.check_lock((free, held), "fleet") == ok("lock", "nobody else is at this run")
    with held.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = machine.check_lock((free, held), "fleet")
        assert (found.verdict, "(process 4711)" in found.message) == (Verdict.FAIL, True)
        assert "dispatcher status fleet" in str(found.hint)
        held.write_text("")
        assert "process" not in machine.check_lock((free, held), "fleet").message
    assert not free.exists()


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        *(("3.51.3", Verdict.OK), ("3.52.0", Verdict.OK), ("4.0.0", Verdict.OK)),
        *(("3.51.2", Verdict.FAIL), ("3.9.9", Verdict.FAIL)),
    ],
)
def test_an_old_sqlite_fails(version: str, verdict: Verdict) -> None:
    assert machine.check_sqlite(version).verdict is verdict


@pytest.mark.parametrize(
    ("soft", "hard", "verdict", "hint"),
    [
        (None, None, Verdict.OK, None),
        (164, 164, Verdict.OK, None),
        (163, 4096, Verdict.FAIL, "before the run: ulimit -n 164"),
        (163, None, Verdict.FAIL, "before the run: ulimit -n 164"),
        (163, 163, Verdict.FAIL, "lower --max-in-flight to 99: your hard limit is 163"),
    ],
)
def test_open_files_against_the_window(
    soft: int | None, hard: int | None, verdict: Verdict, hint: str | None
) -> None:
    found = machine.check_open_files(soft, hard, max_in_flight=100)
    assert (found.verdict, found.hint) == (verdict, hint)


def test_the_manifest_is_counted(case: tuple[Manifest, Resolved]) -> None:
    found = machine.check_manifest(preview(*case))
    assert (found.verdict, found.message) == (Verdict.OK, "reboot 3 devices in 1 call (1 repeated)")


def test_bad_rows_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "fleet.csv").write_text("id,site\nsmd-a,x\n,y\n")
    (tmp_path / "fleet.yaml").write_text("name: fleet\ncommand: reboot\ninventory: {path: fleet.csv}\n")
    manifest = Manifest.load(tmp_path / "fleet.yaml")
    settings = Settings(state_dir=tmp_path, skip_bad_rows=True).resolve(manifest)
    found = machine.check_manifest(preview(manifest, settings))
    assert found.verdict is Verdict.WARN
    assert str(found.hint).startswith("see line 3 of the inventory: ")


@pytest.mark.parametrize(
    ("limits", "verdict", "said"),
    [
        ({}, Verdict.OK, "at most 10 calls/s, 64 in flight"),
        ({"max_attempts": 61}, Verdict.WARN, "61 attempts of 10 s outlast the token window, 600 s"),
        ({"token_window_s": 28_801}, Verdict.WARN, "a token window of 28801 s is longer"),
    ],
)
def test_limits_against_each_other(limits: dict[str, Any], verdict: Verdict, said: str) -> None:
    found = machine.check_limits(Settings(**limits).resolve())
    assert found.verdict is verdict
    assert found.message.startswith(said)


def test_what_is_stored() -> None:
    here = Path("/state/fleet.db")
    counts = Counts(devices=3, accepted=1, in_doubt=1, pending=1)
    cases = {
        "none yet; a run makes /state/fleet.db": Stored(run="fleet", path=here),
        "/state/fleet.db holds a plan of which nothing was sent": Stored(
            run="fleet", path=here, counts=counts
        ),
        "/state/fleet.db: 1 of 3 devices accepted, 1 in doubt": Stored(
            run="fleet", path=here, counts=counts, binds=True
        ),
    }
    for said, stored in cases.items():
        assert machine.check_checkpoint(stored) == ok("checkpoint", said)
    noted = Stored(run="fleet", path=here, note="it is gone")
    assert machine.check_checkpoint(noted) == warn("checkpoint", "it is gone")
    refused = Stored(run="fleet", path=here, problem=CheckpointError("no", hint="put it back"))
    assert machine.check_checkpoint(refused) == fail("checkpoint", "no", "put it back")


def test_a_damaged_checkpoint_is_a_failed_check(case: tuple[Manifest, Resolved]) -> None:
    manifest, settings = case
    settings.state_dir.mkdir()
    path = settings.checkpoint_of("fleet")
    path.write_bytes(b"not a database, but long enough to look at" * 50)
    stored = look_up(manifest, settings, "us-west-2")
    assert "damaged or is not a dispatcher checkpoint" in str(stored.problem)


def test_a_lost_checkpoint_is_told(case: tuple[Manifest, Resolved]) -> None:
    """What the registry remembers: sent from elsewhere, or from a file that is gone."""
    manifest, settings = case
    other = settings.state_dir / "other.db"
    record = {
        "run": "fleet",
        "checkpoint": str(other),
        "plan_id": "p",
        "intent_digest": "i",
        "selection_digest": "s",
        "inventory_digest": "v",
        "token_version": 1,
        "endpoint_url": None,
        "region": "us-west-2",
        "planned_at": 1.0,
        "first_sent_at": 2.0,
    }
    (settings.state_dir / "registry").mkdir(parents=True)
    (settings.state_dir / "registry" / "fleet.json").write_text(json.dumps(record))
    stored = look_up(manifest, settings, "us-west-2")
    assert stored.problem is None
    assert "fleet.db is gone: put the last one back" in str(stored.note)
    other.touch()
    stored = look_up(manifest, settings, "us-west-2")
    assert stored.problem is not None
    assert stored.problem.hint == f"give --checkpoint {other}"


def test_the_object_has_the_documented_keys() -> None:
    checks = (ok("a", "fine"), warn("b", "hm", "look"), skip("c", "not here"))
    found = Checkup("fleet", checks, {"Version": "2012-10-17"})
    assert found.as_json() == {
        "run": "fleet",
        "ok": True,
        "checks": [
            {"name": "a", "verdict": "ok", "message": "fine", "hint": None},
            {"name": "b", "verdict": "warn", "message": "hm", "hint": "look"},
            {"name": "c", "verdict": "skip", "message": "not here", "hint": None},
        ],
        "policy": {"Version": "2012-10-17"},
        "exit": 0,
    }
    worse = Checkup("fleet", (*checks, fail("d", "no")), {})
    assert (worse.as_json()["ok"], worse.exit) == (False, 1)


def test_rows_fit_and_are_coloured_by_the_word() -> None:
    """Colours take no columns, control characters are shown, and a hint stands under its message."""
    checks = (
        ok("lock", "fine"),
        warn("state_folder", "word " * 40, "look " * 40),
        fail("disk", "a\x1b[2Jb AKIAIOSFODNN7EXAMPLE"),
        skip("clock", "/a/path/without/a/gap" * 8),
    )
    plain = checkup_text(Checkup("fleet", checks, {}), 80)
    coloured = checkup_text(Checkup("fleet", checks, {}), 80, coloured=True)
    assert click.unstyle(coloured) == plain
    assert coloured.count("\x1b[") == 2 * 3
    lines = plain.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "ok    lock          fine"
    assert next(line for line in lines if "->" in line).startswith(" " * 20 + "-> look")
    assert r"a\x1b[2Jb [redacted]" in plain
    assert lines[-1] == "fleet: 1 failed, 1 to look at; put right what failed before you run it"
