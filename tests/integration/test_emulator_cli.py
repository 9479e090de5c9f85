"""The `emulator` command as a real process."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest

from dispatcher.emulator.fleet import fleet_id, read_ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = [sys.executable, "-c", "from dispatcher.cli.emulator import emulator; emulator()"]


@contextlib.contextmanager
def started(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command and give process and address; it is killed at the end if it still runs."""
    process = subprocess.Popen(
        [*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("emulator listening on http://127.0.0.1:"), line
            yield process, line.split()[-1]
        finally:
            process.kill()


def create(url: str, token: str, *targets: str) -> dict[str, str]:
    body = {"command": {"reboot": {}}, "targets": targets, "clientToken": token}
    request = urllib.request.Request(url + "/task", json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)  # type: ignore[no-any-return]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    """One line on stdout, exit 0 on either signal, the fleet written and the ledger kept."""
    fleet, ledger = tmp_path / "fleet.csv", tmp_path / "ledger.jsonl"
    options = ["--devices", "20", "--write-fleet", str(fleet), "--ledger", str(ledger)]
    with started(*options) as (process, url):
        made = create(url, "t1", *read_ids(fleet)[:10])
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "", "")
    task, call = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert task["task_id"] == call["task_id"] == made["taskId"]
    assert task["targets"] == [fleet_id(index) for index in range(10)]


def test_a_killed_emulator_leaves_a_whole_ledger(tmp_path: Path) -> None:
    """After SIGKILL every task that was answered is on disk."""
    ledger = tmp_path / "ledger.jsonl"
    with started("--ledger", str(ledger), "--seed", "3") as (process, url):
        ids = [create(url, f"t{number}", "smd-a")["taskId"] for number in range(20)]
        process.kill()
        process.wait(10)
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [record["task_id"] for record in records if record["record"] == "task"] == ids


def test_faults_strike_under_the_commands_event_loop() -> None:
    """A reset is a reset there too, and an endless answer does not hold up the end."""
    with started("--fault", "reset_before=1") as (_, url), pytest.raises(ConnectionResetError):
        create(url, "t", "smd-a")
    with (
        started("--fault", "endless=1") as (process, url),
        urllib.request.urlopen(
            urllib.request.Request(url + "/task", b'{"command":{"reboot":{}},"targets":["a"]}'), timeout=10
        ) as response,
    ):
        assert len(response.read(1 << 20)) == 1 << 20
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_it_stops_by_itself() -> None:
    """`--duration` ends it with exit 0."""
    done = subprocess.run([*COMMAND, "--duration", "0"], capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fault", "lost_repply=0.1"], "did you mean lost_reply?"),
        (["--devices", "1", "--fleet", "x"], "exclude each other"),
        (["--host", "0.0.0.0"], "--allow-remote"),
        (["--port", "many"], "not a valid integer"),
    ],
    ids=["fault", "fleets", "host", "port"],
)
def test_a_bad_option_is_one_line(options: list[str], words: str) -> None:
    """Exit 2, one line on stderr, nothing on stdout, no traceback."""
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert words in done.stderr


def test_a_port_in_use_is_one_line() -> None:
    """The error names the address."""
    with started() as (_, url):
        port = url.rpartition(":")[2]
        done = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: cannot listen on 127.0.0.1:{port}")
    assert len(done.stderr.splitlines()) == 1
