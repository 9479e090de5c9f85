"""Readers that go away, disks that fill under a log, and answers that are not waited for."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dispatcher.redact import inert


def start(site: Any, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "dispatcher", *arguments], env=site.env, **options)


def test_a_run_outlives_the_reader_of_its_stderr(site: Any, emulate: Any) -> None:
    """A log pipe that breaks changes neither the run nor its exit code nor its JSON."""
    service = emulate(300)
    manifest = site.manifest(site.ids(300), limits={"rate_per_s": 100, "burst": 5})
    reader, writer = os.pipe()
    os.close(reader)
    done = start(
        site, "run", str(manifest), "--endpoint-url", service.url, "--json", "-v",
        stdout=subprocess.PIPE, stderr=writer,
    )  # fmt: skip
    os.close(writer)
    out, _ = done.communicate(timeout=60)
    assert (done.returncode, json.loads(out)["accepted"]) == (0, 300)


def test_sigterm_is_heard_without_a_stderr(site: Any, emulate: Any) -> None:
    """The drain begins before anything is said about it."""
    service = emulate(2_000)
    manifest = site.manifest(site.ids(2_000), limits={"rate_per_s": 50, "burst": 5})
    reader, writer = os.pipe()
    os.close(reader)
    process = start(
        site, "run", str(manifest), "--endpoint-url", service.url, "--json",
        stdout=subprocess.PIPE, stderr=writer,
    )  # fmt: skip
    os.close(writer)
    deadline = time.monotonic() + 30
    while not service.calls and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, json.loads(out)["exit"]) == (143, 143)


def test_a_closed_stdout_keeps_the_exit_code(site: Any, emulate: Any) -> None:
    """Nobody reads the summary; the run counts all the same."""
    service = emulate(50)
    manifest = site.manifest(site.ids(50))
    reader, writer = os.pipe()
    os.close(reader)
    process = start(
        site, "run", str(manifest), "--endpoint-url", service.url, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert b"Traceback" not in err
    assert b"Exception" not in err


def test_a_log_file_on_a_full_disk_costs_the_log_alone(site: Any, emulate: Any) -> None:
    """One warning, and the run's own exit code and counts."""
    service = emulate(50)
    manifest = site.manifest(site.ids(50))
    process = start(
        site, "run", str(manifest), "--endpoint-url", service.url, "--json", "--log-file", "/dev/full",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)["accepted"]) == (0, 50)
    assert err.count(b"warning: --log-file") == 1


def test_ctrl_c_at_the_question_ends_the_command(site: Any) -> None:
    """On a terminal the operator is asked; Ctrl-C is an answer, at once, with the next command."""
    manifest = site.manifest(site.ids(5))
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dispatcher", "run", str(manifest)],
        env=site.env, stdin=side, stdout=side, stderr=side, start_new_session=True,
    )  # fmt: skip
    os.close(side)
    said = b""
    while b"?" not in said and b"[y/N]" not in said:
        said += os.read(main, 1_000)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    while True:
        try:
            more = os.read(main, 1_000)
        except OSError:
            break
        if not more:
            break
        said += more
    os.close(main)
    assert f"run it again: dispatcher run {manifest}" in inert(said.decode()).replace("\\r\\n", " ").replace(
        "\\n", " "
    )


def test_removals_that_were_agreed_to_need_no_terminal(site: Any, emulate: Any) -> None:
    """--accept-removals N is the answer to the question."""
    service = emulate(100)
    ids = site.ids(100)
    assert site.run(site.manifest(ids), service, "--limit", "10").code == 0
    manifest = site.manifest(ids[:85])
    assert site.run(manifest, service).code == 2
    done = site.run(manifest, service, "--accept-removals", "15")
    assert (done.code, done.summary["cancelled"]) == (0, 15), done.err
    assert Path(manifest).exists()
