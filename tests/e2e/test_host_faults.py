"""What the host does to a run: no files, no memory, an event loop or a whole process that stands still."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Done, Emulators, Service, Site

SEND = "dispatcher.transport.aiobotocore:AiobotocoreTransport.create_task"
STORE = "dispatcher.checkpoint.sqlite:SqliteCheckpoint"


def befallen(site: Site, service: Service, manifest: str, where: str) -> Done:
    """Run the manifest with a trap laid."""
    words = ["run", manifest, "--endpoint-url", service.url, "--json"]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("killing.py")), where, *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=site.folder, env=site.env,
    )  # fmt: skip
    site.live.append(process)
    return site.end(process)


def limited(what: int, most: int) -> Any:
    return lambda: resource.setrlimit(what, (most, most))


@pytest.mark.parametrize("transport", ["aiobotocore", "wire"])
def test_a_stalled_event_loop_times_nobody_out(site: Site, emulate: Emulators, transport: str) -> None:
    """Five seconds in which nothing moves: the answers are here, and no call is taken for lost."""
    site.env["DISPATCHER_TRANSPORT"] = transport
    send = SEND if transport == "aiobotocore" else "dispatcher.transport.wire:WireTransport.create_task"
    service = emulate(600, latency_s=0.3)
    manifest = site.manifest(site.ids(600), limits={"attempt_timeout_s": 2})
    done = site.checked(befallen(site, service, manifest, f"stall:{send}@25"))
    assert (done.code, done.summary["accepted"]) == (0, 600), done.err
    assert done.summary["retried"] <= 1, done.summary
    assert len(service.calls) <= 61


def test_a_stopped_process_goes_on(site: Site, emulate: Emulators) -> None:
    """SIGSTOP for longer than the attempts and the token window last: nothing is sent twice, none is lost."""
    service = emulate(300, latency_s=0.2)
    limits = {"attempt_timeout_s": 1, "token_window_s": 3, "rate_per_s": 40}
    manifest = site.manifest(site.ids(300), limits=limits)
    process = site.start_run(manifest, service)
    site.signal_after(process, service, 8, signal.SIGSTOP)
    until = site.now() + 4
    site.wait_until(lambda: site.now() > until)
    process.send_signal(signal.SIGCONT)
    done = site.checked(site.end(process))
    assert done.code in (0, 1), done.err
    rows = site.judge(service, done.summary)
    assert {row["state"] for row in rows} <= {"accepted", "in_doubt"}


def test_too_few_file_descriptors(site: Site, emulate: Emulators) -> None:
    """With room for a dozen sockets a window of 64 still ends the run: what cannot connect was not sent."""
    service = emulate(600, latency_s=0.2)
    limits = {"rate_per_s": 400, "burst": 64, "max_in_flight": 64}
    manifest = site.manifest(site.ids(600), limits=limits)
    done = site.run(manifest, service, preexec_fn=limited(resource.RLIMIT_NOFILE, 40))
    assert (done.code, done.summary["accepted"]) == (0, 600), done.err
    assert len(service.calls) == 60
    site.judge(service, done.summary)


@pytest.mark.parametrize(
    "where", [f"{STORE}.claim@2", f"{STORE}.record@1", f"{SEND}@5", "dispatcher.run:Run._settled@1"]
)
def test_no_memory_ends_in_a_line(site: Site, emulate: Emulators, where: str) -> None:
    """One line, no traceback; the next process ends the run with one task a device."""
    service = emulate(300)
    manifest = site.manifest(site.ids(300))
    done = befallen(site, service, manifest, f"memory:{where}")
    assert done.code in (4, 70), done.err
    assert len(done.errors) == 1, done.err
    ended = site.run(manifest, service)
    assert (ended.code, ended.summary["accepted"]) == (0, 300), ended.err
    site.judge(service, ended.summary)
