"""`backup`: a copy of one moment, beside a live run, that can be gone on from."""

from __future__ import annotations

import json
import shutil
import signal
import stat
from typing import TYPE_CHECKING, Any

from tests.e2e.conftest import CLASSES
from tests.e2e.test_json import documented

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Emulators, Site

KEYS = ["run", "checkpoint", "path", "bytes", "counts"]


def back_up(site: Site, path: Path) -> dict[str, Any]:
    """`backup --json`, its shape checked."""
    done = site.do("backup", "fleet", path, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    assert list(found) == KEYS
    assert sum(found["counts"][name] for name in CLASSES) == found["counts"]["devices"]
    return found


def names(folder: Path) -> list[str]:
    """What a folder holds, hidden files as well."""
    return [path.name for path in folder.iterdir()]


def test_beside_a_live_run_and_gone_on_from(site: Site, emulate: Emulators) -> None:
    """Copies taken while batches settle are whole; the last one, put back, resumes without a second task."""
    service = emulate(3_000, latency_s=0.05)
    manifest = site.manifest(site.ids(3_000), limits={"rate_per_s": 40})
    process = site.start_run(manifest, service)
    copies = []
    for number in range(5):
        site.wait_until(lambda: len(service.tasks()) > 20 * (number + 1))  # noqa: B023
        copies.append(back_up(site, site.folder / f"copy{number}.db"))
    assert all(copy["counts"]["devices"] == 3_000 for copy in copies)
    accepted = [copy["counts"]["accepted"] for copy in copies]
    assert accepted == sorted(accepted)
    assert accepted[0] > 0
    process.send_signal(signal.SIGTERM)
    assert site.end(process).code == 143
    last = back_up(site, site.folder / "last.db")
    for name in ("fleet.db", "fleet.db-wal", "fleet.db-shm"):
        (site.state / name).unlink(missing_ok=True)
    shutil.copy(last["path"], site.checkpoint)
    done = site.do("resume", "fleet", "--json", "--rate", 400)
    assert done.code == 0, done.err
    site.judge(service, done.summary)


def test_an_older_backup_is_noticed(site: Site, emulate: Emulators) -> None:
    """Put back after more was sent: refused, and the newer record stays the truth."""
    service = emulate(600)
    manifest = site.manifest(site.ids(600))
    assert site.run(manifest, service, "--limit", 100).code == 0
    made = back_up(site, site.folder)
    assert site.run(manifest, service, "--limit", 100).code == 0
    for name in ("fleet.db", "fleet.db-wal", "fleet.db-shm"):
        (site.state / name).unlink(missing_ok=True)
    shutil.copy(made["path"], site.checkpoint)
    calls = len(service.calls)
    refused = site.do("resume", "fleet")
    assert refused.code == 4, refused.err
    assert "older" in refused.errors[0]
    assert len(service.calls) == calls
    site.judge(service, site.run(manifest, service).summary)


def test_a_folder_gets_the_runs_name_and_nothing_is_replaced(site: Site, emulate: Emulators) -> None:
    service = emulate(20)
    assert site.run(site.manifest(site.ids(20)), service).code == 0
    there = site.folder / "copies"
    there.mkdir()
    made = back_up(site, there)
    copy = there / "fleet.db"
    assert made["path"] == str(copy)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert names(there) == ["fleet.db"]
    assert made["bytes"] == copy.stat().st_size
    before = copy.read_bytes()
    again = site.do("backup", "fleet", there)
    assert again.code == 2
    assert f"{copy} exists" in again.errors[0]
    assert copy.read_bytes() == before
    assert names(there) == ["fleet.db"]
    assert "20 accepted" in site.do("status", copy).out
    documented("backup", [*KEYS, *made["counts"]])


def test_what_cannot_be_backed_up_says_so(site: Site, emulate: Emulators) -> None:
    service = emulate(20)
    assert site.run(site.manifest(site.ids(20)), service).code == 0
    missing = site.do("backup", "fleet", "nowhere/copy.db")
    assert (missing.code, len(missing.errors)) == (2, 1)
    assert "nowhere" in missing.errors[0]
    (site.folder / "link.db").symlink_to("elsewhere.db")
    assert site.do("backup", "fleet", "link.db").code == 2
    assert not (site.folder / "elsewhere.db").exists()
    assert site.do("backup", "fleeet", "copy.db").code == 2
    damaged = bytearray(site.checkpoint.read_bytes())
    damaged[4096:8192] = b"\x55" * 4096
    site.checkpoint.write_bytes(damaged)
    broken = site.do("backup", "fleet", "copy.db")
    assert (broken.code, len(broken.errors)) == (4, 1), broken.err
    assert not (site.folder / "copy.db").exists()
    assert not [name for name in names(site.folder) if "copy" in name]


def test_a_full_disk_leaves_no_half_copy(site: Site, emulate: Emulators) -> None:
    """The limit on file sizes stands in for a full disk."""
    service = emulate(2_000)
    assert site.run(site.manifest(site.ids(2_000)), service).code == 0
    process = site.start("backup", "fleet", "copy.db", preexec_fn=_small_files)
    done = site.end(process)
    assert (done.code, len(done.errors)) == (4, 1), done.err
    assert not [name for name in names(site.folder) if "copy" in name]


def _small_files() -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
