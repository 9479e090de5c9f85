"""A disk that fills, a folder that cannot be written, files that are damaged or foreign."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Emulators, Service, Site


soak = pytest.mark.skipif("SOAK" not in os.environ, reason="the full figures: set SOAK=1")


def largest_file(size: int) -> None:
    """Let no file of this process grow beyond `size` bytes; runs in the child, before the command."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size", [0, 20_000, 130_000])
def test_a_full_disk_stops_the_run_and_loses_nothing(site: Site, emulate: Emulators, size: int) -> None:
    """Exit 4 and one line wherever it strikes; with room again the run ends, and no device is sent twice."""
    service = emulate(2_000, latency_s=0.01)
    manifest = site.manifest(site.ids(2_000))
    full = site.run(manifest, service, preexec_fn=lambda: largest_file(size))
    assert full.code == 4, full.err
    assert len(full.errors) == 1
    # SQLite calls a full disk full, and a file that may not grow an I/O error.
    assert "no space left" in full.errors[0] or "I/O error" in full.errors[0]
    sent = len(service.calls)
    assert sent < 200
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"], len(service.tasks())) == (0, 2_000, 200), done.err
    site.judge(service, done.summary)


def test_a_state_folder_that_cannot_be_made(site: Site, emulate: Emulators) -> None:
    """The environment is wrong, so exit 2: one line that names the variable, nothing sent."""
    service = emulate(20)
    (site.folder / "file").write_text("")
    site.env["DISPATCHER_STATE_DIR"] = str(site.folder / "file" / "state")
    done = site.run(site.manifest(site.ids(20)), service)
    assert (done.code, done.err.count("\n"), service.calls) == (2, 1, []), done.err
    assert "DISPATCHER_STATE_DIR" in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_state_folder(site: Site, emulate: Emulators) -> None:
    """Exit 4, one line, nothing sent."""
    service = emulate(20)
    site.state.mkdir(mode=0o500)
    done = site.run(site.manifest(site.ids(20)), service)
    assert (done.code, done.err.count("\n"), service.calls) == (4, 1, []), done.err


def stopped_half_way(site: Site, service: Service) -> str:
    """Return the manifest of a run that was interrupted."""
    manifest = site.manifest(site.ids(800), limits={"rate_per_s": 400, "burst": 5})
    process = site.start_run(manifest, service)
    site.signal_after(process, service, 30, signal.SIGTERM)
    assert site.checked(site.end(process)).code == 143
    return manifest


@pytest.mark.parametrize(
    "where", [pytest.param("header", marks=[soak, pytest.mark.soak]), "middle", "truncated"]
)
def test_a_damaged_checkpoint_is_not_trusted(site: Site, emulate: Emulators, where: str) -> None:
    """Exit 4, one line, nothing sent twice; without the file the run is rebuilt and ends."""
    service = emulate(800, latency_s=0.05)
    manifest = stopped_half_way(site, service)
    data = bytearray(site.checkpoint.read_bytes())
    noise = random.Random(3)
    begin, end = {
        "header": (0, 100),
        "middle": (8_192, len(data) - 4_096),
        "truncated": (0, 0),
    }[where]
    data[begin:end] = noise.randbytes(end - begin)
    site.checkpoint.write_bytes(data[: len(data) // 2] if where == "truncated" else data)
    calls = len(service.calls)
    done = site.run(manifest, service)
    assert (done.code, len(done.errors), len(service.calls)) == (4, 1, calls), done.err
    report = site.do("report", "fleet")
    assert report.code == 4
    assert len(report.errors) == 1
    site.checkpoint.rename(site.folder / "evidence.db")
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"], len(service.tasks())) == (0, 800, 80), done.err
    site.judge(service, done.summary)


@pytest.mark.parametrize("content", [b"PK\x03\x04 a holiday album" * 100, b"notes\n"])
def test_a_foreign_file_is_left_alone(site: Site, emulate: Emulators, content: bytes) -> None:
    """A file that is no checkpoint is refused and keeps every byte."""
    service = emulate(20)
    foreign = site.folder / "album.db"
    foreign.write_bytes(content)
    done = site.run(site.manifest(site.ids(20)), service, "--checkpoint", foreign)
    assert (done.code, done.err.count("\n"), service.calls) == (4, 1, []), done.err
    assert foreign.read_bytes() == content
    for verb in ("report", "resume"):
        refused = site.do(verb, foreign)
        assert (refused.code, len(refused.errors), refused.out) == (4, 1, ""), refused.err


def test_another_runs_checkpoint_is_refused(site: Site, emulate: Emulators) -> None:
    """One file holds one run."""
    service = emulate(20)
    assert site.run(site.manifest(site.ids(20), name="first"), service).code == 0
    manifest = site.manifest(site.ids(20), name="second")
    done = site.run(manifest, service, "--checkpoint", site.state / "first.db")
    assert (done.code, done.err.count("\n"), len(service.calls)) == (4, 1, 2), done.err


def test_a_wal_that_lost_its_end_is_told(site: Site, emulate: Emulators) -> None:
    """Killed, its last commits damaged: readers warn, and `run` asks again for what is missing."""
    service = emulate(800, latency_s=0.02)
    manifest = site.manifest(site.ids(800), limits={"rate_per_s": 100, "burst": 5})
    site.kill_after(site.start_run(manifest, service), service, 30)
    wal = site.checkpoint.with_name("fleet.db-wal")
    data = bytearray(wal.read_bytes())
    data[-100_000 if len(data) > 150_000 else len(data) // 2] ^= 1
    wal.write_bytes(data)
    for words in (("status", "fleet", "--json"), ("report", "fleet", "--format", "jsonl")):
        told = site.do(*words)
        assert told.code == 0, told.err
        assert "warning: " in told.err
        assert "commits older than what was recorded" in told.err
    refused = site.do("resume", "fleet", "--json")
    assert (refused.code, len(refused.errors)) == (4, 1), refused.err
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"], len(service.tasks())) == (0, 800, 80), done.err
    assert "rebuilt" in done.err
    site.judge(service, done.summary)


def test_pages_of_another_program_are_copied_on_demand(site: Site, emulate: Emulators) -> None:
    """A plain SQLite closed a killed run's file: the line says what to do, and that works."""
    service = emulate(800, latency_s=0.02)
    manifest = site.manifest(site.ids(800), limits={"rate_per_s": 100, "burst": 5})
    site.kill_after(site.start_run(manifest, service), service, 30)
    looked = sqlite3.connect(site.checkpoint)
    looked.execute("SELECT count(*) FROM outcome").fetchone()
    looked.close()
    refused = site.run(manifest, service)
    assert (refused.code, len(refused.errors)) == (4, 1), refused.err
    assert "dispatcher backup --any-sums" in refused.err
    copied = site.do("backup", "--any-sums", "fleet", site.folder / "copy.db")
    assert copied.code == 0, copied.err
    (site.folder / "copy.db").replace(site.checkpoint)
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"], len(service.tasks())) == (0, 800, 80), done.err
    site.judge(service, done.summary)
