"""The real command in subprocesses, against the real emulator, judged by the emulator's ledger."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.emulator.app import run_emulator
from dispatcher.emulator.config import Config
from dispatcher.emulator.fleet import GeneratedFleet, fleet_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dispatcher.emulator.app import Emulator
    from dispatcher.emulator.ledger import Call

SUMMARY_KEYS = [
    "run",
    "devices",
    "accepted",
    "rejected",
    "in_doubt",
    "pending",
    "cancelled",
    "replayed",
    "batches",
    "calls",
    "throttled",
    "retried",
    "split",
    "elapsed_s",
    "calls_per_s",
    "already_complete",
    "exit",
]
CLASSES = ("accepted", "rejected", "in_doubt", "pending", "cancelled")
DEADLINE_S = 60.0
POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Done:
    """How one process ended."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that say why it failed."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@dataclass(slots=True)
class Service:
    """One running emulator and what its ledger says."""

    running: Emulator

    @property
    def url(self) -> str:
        return self.running.url

    @property
    def calls(self) -> list[Call]:
        """CreateTask calls, as they arrived."""
        return [call for call in list(self.running.ledger.calls) if call.operation == "CreateTask"]

    @property
    def max_in_flight(self) -> int:
        return self.running.ledger.max_in_flight

    def tasks(self) -> dict[str, list[str]]:
        """Devices by task id."""
        return {task.task_id: task.device_ids() for task in list(self.running.ledger.tasks)}

    def tasks_of_devices(self) -> Counter[str]:
        """How many tasks each device has."""
        return Counter(device for devices in self.tasks().values() for device in devices)

    def throttled(self) -> int:
        return sum(call.code == "ThrottlingException" for call in self.calls)


class Emulators:
    """Starts emulators on one event loop in a thread of its own; they end with the test."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stack = contextlib.AsyncExitStack()

    def __call__(self, devices: int | None = None, **options: Any) -> Service:
        """Start one with the first `devices` ids of the generated fleet, or with any id."""
        if devices is not None:
            options["fleet"] = GeneratedFleet(devices)
        entering = self._stack.enter_async_context(run_emulator(Config(**options)))
        return Service(asyncio.run_coroutine_threadsafe(entering, self._loop).result(10))

    def stop(self) -> None:
        """End all of them."""
        asyncio.run_coroutine_threadsafe(self._stack.aclose(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@dataclass(slots=True)
class Site:
    """One operator's machine: a folder with manifests, a state folder, an environment."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    live: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def checkpoint(self) -> Path:
        return self.state / "fleet.db"

    def manifest(self, ids: list[str], *, limits: dict[str, Any] | None = None, **keys: Any) -> str:
        """Write `fleet.yaml` and its inventory; return the manifest's path."""
        (self.folder / "fleet.csv").write_text("managed_device_id\n" + "".join(f"{one}\n" for one in ids))
        fast = {"rate_per_s": 400, "burst": 20, "max_in_flight": 32}
        content = {
            "name": "fleet",
            "command": "reboot",
            "region": "us-west-2",
            "inventory": {"path": "fleet.csv"},
            "limits": fast | (limits or {}),
        }
        path = self.folder / "fleet.yaml"
        path.write_text(json.dumps(content | keys))
        return str(path)

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """Start the command."""
        process = subprocess.Popen(
            [sys.executable, "-m", "dispatcher", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.env,
            **options,
        )
        self.live.append(process)
        return process

    def end(self, process: subprocess.Popen[str], *, timeout: float = DEADLINE_S) -> Done:
        """Wait for a process, at most `timeout` seconds."""
        out, err = process.communicate(timeout=timeout)
        self.live.remove(process)
        assert "Traceback" not in err, err
        return Done(process.returncode, out, err)

    def do(self, *arguments: object, timeout: float = DEADLINE_S, **options: Any) -> Done:
        """Run the command to its end."""
        return self.end(self.start(*arguments, **options), timeout=timeout)

    def run(self, manifest: str, service: Service, *arguments: object, **options: Any) -> Done:
        """`dispatcher run --json` against an emulator, its object held against the contract."""
        done = self.do("run", manifest, "--endpoint-url", service.url, "--json", *arguments, **options)
        return self.checked(done)

    @staticmethod
    def checked(done: Done) -> Done:
        """Hold a `--json` object against the contract."""
        check_summary(done)
        return done

    def start_run(self, manifest: str, service: Service, *arguments: object) -> subprocess.Popen[str]:
        """Start `dispatcher run --json` and do not wait."""
        return self.start("run", manifest, "--endpoint-url", service.url, "--json", *arguments)

    def receipts(self, run: str = "fleet") -> list[dict[str, Any]]:
        """Read the report."""
        done = self.do("report", run, "--format", "jsonl")
        assert done.code == 0, done.err
        return [json.loads(line) for line in done.out.splitlines()]

    def kill_after(self, process: subprocess.Popen[str], service: Service, calls: int) -> None:
        """Send SIGKILL once the ledger holds this many calls, or as the process ends."""
        self.signal_after(process, service, calls, signal.SIGKILL)
        process.communicate(timeout=10)
        self.live.remove(process)

    def signal_after(
        self, process: subprocess.Popen[str], service: Service, calls: int, number: signal.Signals
    ) -> None:
        """Send a signal once the ledger holds this many calls, or as the process ends."""
        ledger = service.running.ledger
        self.wait_until(lambda: len(ledger.calls) >= calls or process.poll() is not None)
        process.send_signal(number)

    def judge(self, service: Service, summary: dict[str, Any]) -> list[dict[str, Any]]:
        """Hold receipts, summary and ledger against each other; return the receipts."""
        rows = self.receipts(summary["run"])
        tasks, per_device = service.tasks(), service.tasks_of_devices()
        assert len(rows) == summary["devices"] == len({row["device_id"] for row in rows})
        classes = Counter(row["state"] for row in rows)
        assert {name: classes[name] for name in CLASSES} == {name: summary[name] for name in CLASSES}
        assert max(per_device.values(), default=0) <= 1, "a device was commanded twice"
        for row in rows:
            if row["state"] == "accepted":
                assert row["device_id"] in tasks[row["task_id"]]
            else:
                assert row["task_id"] is None
            if row["state"] in ("pending", "rejected", "cancelled"):
                assert not per_device[row["device_id"]], f"{row['device_id']} was commanded, and nobody knows"
        assert set(per_device) <= {row["device_id"] for row in rows}
        return rows

    @staticmethod
    def now() -> float:
        """Return Unix time, as the ledger has it."""
        return time.time()

    @staticmethod
    def ids(count: int) -> list[str]:
        """Return the first ids of the generated fleet, in ascending order."""
        return sorted(fleet_id(index) for index in range(count))

    @staticmethod
    def wait_until(is_true: Callable[[], bool], *, timeout: float = DEADLINE_S) -> None:
        """Poll until something outside this process has happened."""
        until = time.monotonic() + timeout
        while not is_true():
            assert time.monotonic() < until, "it never happened"
            time.sleep(POLL_S)


def check_summary(done: Done) -> None:
    """One object, the contract's keys, classes that sum to the devices, the code it was ended with."""
    summary = done.summary
    assert [key for key in summary if key != "error"] == SUMMARY_KEYS
    assert sum(summary[name] for name in CLASSES) == summary["devices"]
    assert summary["exit"] == done.code, summary
    if done.code in (0, 1):
        assert "error" not in summary
        assert done.errors == [], done.err
    else:
        assert done.errors == [f"error: {summary['error']}"], done.err


@pytest.fixture
def emulate() -> Iterator[Emulators]:
    """Start emulators by calling it."""
    emulators = Emulators()
    try:
        yield emulators
    finally:
        emulators.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A fresh machine; whatever still runs on it is killed at the end."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "DISPATCHER_"))}
    for size in ("COLUMNS", "LINES"):  # a parallel runner sets them, and they outdo a terminal's own
        env.pop(size, None)
    env |= {
        "DISPATCHER_STATE_DIR": str(tmp_path / "state"),
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    made = Site(tmp_path, env)
    try:
        yield made
    finally:
        for process in made.live:
            process.kill()
            process.communicate(timeout=10)
