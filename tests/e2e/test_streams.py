"""Readers that go away, disks that fill under a log, and answers that are not waited for."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from dispatcher.redact import inert

TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "dispatcher", *sys.argv[1:]])
"""
"""Runs the command with stdin as its controlling terminal, so that keys become signals."""


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


@pytest.mark.parametrize(("key", "folder"), [(b"\x03", "interrupted"), (b"\x04", "end of file")])
def test_leaving_at_the_question_prints_the_object(site: Any, key: bytes, folder: str) -> None:
    """On stdout, not where the question was; and the next command is of the same run, ready for a shell."""
    site.folder = site.folder / folder
    site.folder.mkdir()
    manifest = site.manifest(site.ids(5))
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, "run", manifest, "--json", "--run-key", "tonight"],
        env=site.env, stdin=side, stdout=subprocess.PIPE, stderr=side, start_new_session=True,
    )  # fmt: skip
    os.close(side)
    site.live.append(process)
    before, said = termios.tcgetattr(main), b""
    while b"[y/N]: " not in said:
        said += os.read(main, 1_000)
    os.write(main, key)
    out, _ = process.communicate(timeout=20)
    assert termios.tcgetattr(main) == before
    os.close(main)
    found = json.loads(out)
    assert (process.returncode, found["exit"], found["run"], found["pending"]) == (
        130,
        130,
        "fleet@tonight",
        5,
    )
    assert shlex.join(["dispatcher", "run", manifest, "--run-key", "tonight"]) in found["error"]


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_streams_that_were_never_open(site: Any, emulate: Any, closed: tuple[int, ...]) -> None:
    """`2>&-`: no socket takes a standard stream's number, and the run ends as it would have."""
    service = emulate(50)
    process = start(
        site, "run", site.manifest(site.ids(50)), "--endpoint-url", service.url,
        preexec_fn=lambda: [os.close(number) for number in closed],
    )  # fmt: skip
    assert process.wait(timeout=60) == 0
    assert len(service.tasks_of_devices()) == 50


@pytest.mark.parametrize("verb", [("report", "fleet"), ("status", "fleet"), ("runs",), ("config", "show")])
def test_a_reader_that_has_seen_enough(site: Any, emulate: Any, verb: tuple[str, ...]) -> None:
    """`| head` ends a verb that only reads with 0 and no complaint."""
    assert site.run(site.manifest(site.ids(20)), emulate(20)).code == 0
    reader, writer = os.pipe()
    os.close(reader)
    process = start(site, *verb, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_a_full_disk_under_stdout_is_told(site: Any, emulate: Any) -> None:
    """The run's code stands, with a warning; a report that is not whole is an error."""
    service = emulate(20)
    manifest = site.manifest(site.ids(20))
    with Path("/dev/full").open("w") as full:
        ran = start(
            site, "run", manifest, "--endpoint-url", service.url, "--json",
            stdout=full, stderr=subprocess.PIPE,
        )  # fmt: skip
        _, err = ran.communicate(timeout=60)
        assert (ran.returncode, err.count(b"warning: cannot write to stdout")) == (0, 1)
        reported = start(site, "report", "fleet", stdout=full, stderr=subprocess.PIPE)
        _, err = reported.communicate(timeout=60)
        assert (reported.returncode, err) == (2, b"error: cannot write to stdout: No space left on device\n")
