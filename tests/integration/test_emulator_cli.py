"""The `emulator` command as a real process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from dispatcher.cli.emulator import _config, emulator
from dispatcher.emulator.config import Config
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


def test_a_killed_emulator_goes_on_from_its_state(tmp_path: Path) -> None:
    """After SIGKILL the same token gives the same task, and the fleet needs no option."""
    state = ["--state", str(tmp_path / "state")]
    with started(*state, "--devices", "20", "--seed", "3") as (process, url):
        made = create(url, "t1", fleet_id(19))
        process.kill()
        process.wait(10)
    with started(*state) as (_, url):
        assert create(url, "t1", fleet_id(19)) == made
        with pytest.raises(urllib.error.HTTPError, match="404"):
            create(url, "t2", fleet_id(20))
        assert create(url, "t3", fleet_id(0)) != made
    done = subprocess.run([*COMMAND, *state, "--seed", "4"], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "differs in seed" in done.stderr


def test_signatures_are_verified_when_asked() -> None:
    """An unsigned call is a 403 with AWS's code."""
    options = ["--verify-signatures", "--access-key", "AKIDEXAMPLE", "--secret-key", "secret"]
    with started(*options) as (_, url):
        with pytest.raises(urllib.error.HTTPError) as caught:
            create(url, "t1", "smd-a")
        assert caught.value.code == 403
        assert caught.value.headers["x-amzn-ErrorType"] == "MissingAuthenticationTokenException"
        caught.value.close()


def test_every_option_reaches_the_service(tmp_path: Path) -> None:
    """The settings of `Config` can all be given, and come out as they went in."""
    options = {
        "rate": 5,
        "burst": 6,
        "read_rate": 7,
        "read_burst": 8,
        "quota": 9,
        "quota_frees_s": 10,
        "token_window_s": 11,
        "forget_tokens": 0.12,
        "mismatch": "conflict",
        "bad_target": "skip",
        "list_lag_s": 13,
        "list_keeps_s": 14,
        "task_keeps_s": 15,
        "list_newest_first": True,
        "page_then_filter": True,
        "max_tags": 16,
        "max_tag_key": 17,
        "max_tag_value": 18,
        "settle_s": 19,
        "ending": ("failed=0.2",),
        "offline": 0.21,
        "locked": 0.22,
        "reach_out_s": 23,
        "cancel_lag_s": 24,
        "latency_ms": 25,
        "latency_jitter": 0.26,
        "devices": 27,
        "seed": 28,
        "region": "eu-west-1",
        "account": "210987654321",
        "deny": ("ListTasks",),
        "bad_ids": tmp_path / "bad",
        "fault": ("drip=0.1",),
    }
    (tmp_path / "bad").write_text("smd-x\n")
    context = emulator.make_context("emulator", [])
    with context:
        config = _config(context.params | options)
    default = Config()
    same = {field.name for field in dataclasses.fields(Config)} - {"shared_rate"}
    assert [name for name in same if getattr(config, name) == getattr(default, name)] == []
    assert (config.rate_per_s, config.read_rate_per_s, config.latency_s) == (5, 7, 0.025)


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
        (["--ending", "faild=0.1"], "did you mean failed?"),
        (["--verify-signatures", "--access-key", "", "--secret-key", ""], "needs an access key"),
        (["--expire-s", "1"], "--verify-signatures"),
        (["--state", "/proc/nothing"], "/proc/nothing"),
        (["--devices", "100000000000"], "100000000"),
        (["--clock-offset-s", "nan"], "clock_offset_s nan"),
        (["--clock-offset-s", "1e300"], "clock_offset_s 1e+300"),
    ],
    ids=["fault", "fleets", "host", "port", "ending", "signer", "expiry", "state", "devices", "nan", "clock"],
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
