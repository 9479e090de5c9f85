"""Files that the operator names for output: private, never through a link, and told of where they fail."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dispatcher.emulator.faults import Fault, FaultPlan

if TYPE_CHECKING:
    from tests.e2e.conftest import Emulators, Site


def finished(site: Site, emulate: Emulators, count: int = 20) -> str:
    """Return the manifest of a run that is done."""
    manifest = site.manifest(site.ids(count))
    assert site.run(manifest, emulate(count)).code == 0
    return manifest


def test_a_log_is_not_written_through_a_link(site: Site, emulate: Emulators) -> None:
    """Exit 2, one line with the real name, nothing sent, the other file untouched."""
    service = emulate(20)
    manifest = site.manifest(site.ids(20))
    victim = site.folder / "victim"
    victim.write_text("precious")
    (site.folder / "log").symlink_to(victim)
    done = site.run(manifest, service, "--log-file", site.folder / "log")
    assert (done.code, done.err.count("\n"), service.calls) == (2, 1, []), done.err
    assert f"--log-file {victim}" in done.errors[0]
    assert victim.read_text() == "precious"


def test_a_log_is_private_and_appended(site: Site, emulate: Emulators) -> None:
    """Mode 0600, JSON Lines; a second run adds to it."""
    service = emulate(40)
    manifest = site.manifest(site.ids(40))
    log = site.folder / "log.jsonl"
    assert site.run(manifest, service, "--log-file", log, "--limit", 20).code == 0
    lines = len(log.read_text().splitlines())
    assert site.run(manifest, service, "--log-file", log).code == 0
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) > lines > 2
    assert {row["run"] for row in rows} == {"fleet"}
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_log_may_be_a_fifo_with_a_reader(site: Site, emulate: Emulators) -> None:
    """Without one it is refused at once, not waited for; a reader that leaves costs the log alone."""
    service = emulate(60)
    manifest = site.manifest(site.ids(60))
    fifo = site.folder / "fifo"
    os.mkfifo(fifo)
    refused = site.run(manifest, service, "--log-file", fifo)
    assert (refused.code, "nobody reads it" in refused.errors[0], service.calls) == (2, True, [])
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(fifo.read_text().splitlines()))
    reader.start()
    writer = os.open(fifo, os.O_WRONLY)  # the reader is there from now on
    assert site.run(manifest, service, "--log-file", fifo, "--limit", 20).code == 0
    os.close(writer)
    reader.join(60)
    assert json.loads(said[-1])["event"] == "run ended"
    gone = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    process = site.start_run(manifest, service, "--log-file", fifo)
    site.wait_until(lambda: len(service.calls) > 3 or process.poll() is not None)
    os.close(gone)
    assert site.checked(site.end(process)).code == 0


@pytest.mark.parametrize("name", ["/dev/stderr", "/dev/fd/2", "/dev/null"])
def test_a_log_may_be_a_stream_or_a_device(site: Site, emulate: Emulators, name: str) -> None:
    """Its own streams are not taken for links."""
    done = site.do("run", site.manifest(site.ids(20)), "--endpoint-url", emulate(20).url, "--log-file", name)
    assert done.code == 0, done.err
    assert ('"event":"run ended"' in done.err) == (name != "/dev/null")


def test_a_report_is_not_written_through_a_link(site: Site, emulate: Emulators) -> None:
    """Nor is the link replaced; a report that is there is, whole, and stays private."""
    finished(site, emulate)
    victim, link, plain = site.folder / "victim", site.folder / "link", site.folder / "report.csv"
    victim.write_text("precious")
    link.symlink_to(victim)
    done = site.do("report", "fleet", "-o", link)
    assert (done.code, len(done.errors)) == (2, 1), done.err
    assert str(victim) in done.errors[0]
    assert (victim.read_text(), link.is_symlink()) == ("precious", True)
    plain.write_text("old")
    plain.chmod(0o644)
    assert site.do("report", "fleet", "--format", "csv", "-o", plain).code == 0
    assert len(plain.read_text().splitlines()) == 21
    assert plain.stat().st_mode & 0o777 == 0o600


def test_a_report_may_go_to_a_stream_or_a_device(site: Site, emulate: Emulators) -> None:
    """They are written to, never replaced."""
    finished(site, emulate)
    for name in ("/dev/stdout", "/dev/fd/1"):
        done = site.do("report", "fleet", "--format", "jsonl", "-o", name)
        assert (done.code, len(done.out.splitlines())) == (0, 20), done.err
    assert site.do("report", "fleet", "-o", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()
    fifo = site.folder / "fifo"
    os.mkfifo(fifo)
    process = site.start("report", "fleet", "--format", "jsonl", "-o", fifo)
    assert len(fifo.read_text().splitlines()) == 20
    assert site.end(process).code == 0
    assert fifo.is_fifo()
    full = site.do("report", "fleet", "-o", "/dev/full")
    assert (full.code, len(full.errors)) == (2, 1)


@pytest.mark.parametrize("name", ["folder", "nowhere/report", "x" * 300])
def test_a_report_that_cannot_be_written_is_one_line(site: Site, emulate: Emulators, name: str) -> None:
    """Exit 2, and no rest of it."""
    finished(site, emulate)
    (site.folder / "folder").mkdir()
    before = sorted(site.folder.iterdir())
    done = site.do("report", "fleet", "-o", site.folder / name)
    assert (done.code, len(done.errors)) == (2, 1), done.err
    assert sorted(site.folder.iterdir()) == before
    assert not list((site.folder / "folder").iterdir())


def small_files(size: int) -> None:
    """Let no file of this process grow beyond `size` bytes, as `ulimit -f` does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_limit_on_the_size_of_files_is_an_error_that_names_the_file(site: Site, emulate: Emulators) -> None:
    """Exit 4, for a lock file as for a report; it is no full disk."""
    service = emulate(200)
    manifest = site.manifest(site.ids(200))
    limited = site.run(manifest, service, preexec_fn=lambda: small_files(0))
    assert (limited.code, service.calls) == (4, []), limited.err
    assert limited.errors[0].startswith(f"error: I/O error on {site.state / 'locks' / 'fleet.lock'}: ")
    assert "ulimit -f" in limited.errors[0]
    assert site.run(manifest, service).code == 0
    target = site.folder / "report"
    reported = site.do("report", "fleet", "--json", "-o", target, preexec_fn=lambda: small_files(40_000))
    assert (reported.code, len(reported.errors)) == (4, 1), reported.err
    assert reported.errors[0].startswith(f"error: I/O error on {target}: ")
    assert not target.exists()
    log = site.folder / "log"
    log.write_bytes(b"\n" * (1 << 20))
    words = ("--run-key", "b", "--log-file", log)
    logged = site.run(manifest, service, *words, preexec_fn=lambda: small_files(1 << 20))
    assert (logged.code, logged.err.count(f"warning: --log-file {log}: File too large")) == (0, 1), logged.err


@pytest.mark.parametrize(
    "words",
    [["--help"], ["run", "--help"], ["--version"], ["config", "show", "--help"], ["completion", "zsh"]],
)
def test_help_that_nobody_reads_is_no_failure(site: Site, words: list[str]) -> None:
    """`dispatcher --help | true`."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-m", "dispatcher", *words], env=site.env, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


@pytest.mark.parametrize("end", ["whole", "sigterm", "denied"])
def test_a_log_is_complete_at_exit(site: Site, emulate: Emulators, end: str) -> None:
    """However a run ends, its log tells of every batch that the report has settled, and of the end."""
    shares = {Fault.DENIED: 1e-12}  # strikes nobody yet
    service = emulate(600, latency_s=0.02, faults=FaultPlan(shares=shares))
    log = site.folder / "log.jsonl"
    manifest = site.manifest(site.ids(600), limits={"rate_per_s": 60, "burst": 1})
    process = site.start_run(manifest, service, "--log-file", log)
    if end == "sigterm":
        site.signal_after(process, service, 10, signal.SIGTERM)
    elif end == "denied":
        site.wait_until(lambda: len(service.calls) >= 10 or process.poll() is not None)
        shares[Fault.DENIED] = 1.0
    done = site.end(process)
    assert done.code == {"whole": 0, "sigterm": 143, "denied": 3}[end], done.err
    events = [json.loads(line) for line in log.read_text().splitlines()]
    told = {one for event in events if event["event"] == "batch settled" for one in event["device_ids"]}
    assert told == {row["device_id"] for row in site.receipts() if row["state"] != "pending"}
    assert (events[0]["event"], events[-1]["event"]) == ("run started", "run ended")
    assert events[-1]["exit"] == done.code
