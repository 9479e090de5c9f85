"""What the dispatcher is for, in under a minute: 100,000 devices, a lossy service, a kill, a proof.

`make demo`, or `python -m bench.demo`. Everything happens in a throw-away folder and on this machine.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEVICES = 100_000
KILL_AT_TASKS = 3_500
DEADLINE_S = 120.0
MANIFEST = Path(__file__).parent.parent / "configs" / "demo.yaml"
_DISPATCHER = (sys.executable, "-m", "dispatcher")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_SHOW_CURSOR = "\x1b[?25h"


class DemoFailed(Exception):
    """Something was not as it should be."""


class Demo:
    """One showing, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._began_s = time.monotonic()
        hidden = ("AWS_", "DISPATCHER_")  # the showing must not depend on who shows it
        self._environment = {
            key: value for key, value in os.environ.items() if not key.startswith(hidden)
        } | {
            "DISPATCHER_STATE_DIR": str(folder / "state"),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def show(self) -> str:
        """Tell the story; return the verdict. Raises `DemoFailed` with what is off."""
        shutil.copy(MANIFEST, self._folder / MANIFEST.name)
        _say(f"{DEVICES:,} devices, and a service that loses 1 % of its replies and fails 1 % of its calls.")
        with self._emulator() as url:
            target = ("demo.yaml", "--endpoint-url", url)
            self._command("plan", *target)
            _say("Start, and kill it without warning (SIGKILL) in mid-run.")
            self._killed(url, "run", *target)
            self._command("status", "demo")
            _say("The same command again: it goes on where the dead process was, doubts first.")
            code = self._command("run", *target, check=False)
            if code != 0:
                raise DemoFailed(f"the resumed run ended with exit code {code}, not 0")
            _say("One receipt per device.")
            self._command("report", "demo", "--format", "csv", "--output", "receipts.csv")
            receipts = self._folder / "receipts.csv"
            _say("The first lines of receipts.csv:")
            with receipts.open(encoding="utf-8") as file:
                _say("".join(f"  {next(file)[:150].rstrip()}\n" for _ in range(3)).rstrip(), gap=False)
            _say("And now the other side's books: the service's own ledger, over HTTP.")
            return self._prove(url, receipts)

    # The service

    @contextlib.contextmanager
    def _emulator(self) -> Iterator[str]:
        """Run `dispatcher emulator` until the block ends; it writes the inventory, too."""
        arguments = (
            *("emulator", "--devices", str(DEVICES), "--write-fleet", "fleet.csv", "--seed", "7"),
            *("--fault", "lost_reply=0.01", "--fault", "error_500=0.01"),
        )
        _echo((*arguments, "&"))
        process = self._start(arguments, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            found = re.search(r"http://\S+", line)
            if found is None:
                raise DemoFailed("the emulator did not start")
            print(line, flush=True)
            yield found[0]
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    # Commands

    def _start(self, arguments: Sequence[str], *, stdout: int | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*_DISPATCHER, *arguments], cwd=self._folder, env=self._environment, stdout=stdout, text=True
        )

    def _command(self, *arguments: str, check: bool = True) -> int:
        """Run `dispatcher` to its end with its output shown; return its exit code."""
        _echo(arguments)
        process = self._start(arguments)
        try:
            code = process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"dispatcher {arguments[0]} took more than {DEADLINE_S:g} s") from None
        finally:
            process.kill()
            process.wait()
        if check and code != 0:
            raise DemoFailed(f"dispatcher {arguments[0]} ended with exit code {code}")
        return code

    def _killed(self, url: str, *arguments: str) -> None:
        """Run `dispatcher` and kill it once the service has made some of the tasks."""
        _echo(arguments)
        process = self._start(arguments)
        try:
            give_up_s = time.monotonic() + DEADLINE_S
            while (tasks := int(_summary(url)["tasks"])) < KILL_AT_TASKS:
                if process.poll() is not None:
                    raise DemoFailed(f"the run ended by itself, with exit code {process.returncode}")
                if time.monotonic() > give_up_s:
                    raise DemoFailed(f"{tasks} tasks after {DEADLINE_S:g} s")
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        if sys.stderr.isatty():
            print(_SHOW_CURSOR, file=sys.stderr, flush=True)  # the bar had hidden it
        print(f"$ kill -9 {process.pid}", flush=True)

    # The proof

    def _prove(self, url: str, receipts: Path) -> str:
        """Hold inventory, receipts and ledger against each other; return the verdict."""
        planned = [row["managed_device_id"] for row in _rows(self._folder / "fleet.csv")]
        receipt_of = [(row["device_id"], row["state"], row["task_id"]) for row in _rows(receipts)]
        ledger = [(device, task["task_id"]) for task in _tasks(url) for device in task["targets"]]
        tasks = Counter(device for device, _ in ledger)
        summary = _summary(url)
        checks = {
            "devices of the inventory without a task": len(set(planned) - tasks.keys()),
            "devices with more than one task": sum(count > 1 for count in tasks.values()),
            "devices with a task that are not in the inventory": len(tasks.keys() - set(planned)),
            "devices with no receipt, or with several": abs(len(receipt_of) - len(planned))
            + len({device for device, _, _ in receipt_of} ^ set(planned)),
            "receipts that are not `accepted`": sum(state != "accepted" for _, state, _ in receipt_of),
            "receipts whose task the ledger does not have": len(
                {(device, task) for device, _, task in receipt_of} ^ set(ledger)
            ),
        }
        faults = ", ".join(f"{number} x {name}" for name, number in summary["by_fault"].items())
        print(f"  calls {summary['calls']:,}, tasks {summary['tasks']:,}, faults: {faults}")
        print(f"  repeated calls answered with the task they had already made: {summary['replays']:,}")
        for what, number in checks.items():
            print(f"  {what}: {number:,}")
        if len(set(planned)) != DEVICES:
            raise DemoFailed(f"the inventory has {len(set(planned)):,} devices, not {DEVICES:,}")
        wrong = [what for what, number in checks.items() if number]
        if wrong:
            raise DemoFailed("; ".join(wrong))
        took_s = time.monotonic() - self._began_s
        return (
            f"every one of {len(planned):,} devices got exactly one task, through a kill and"
            f" {sum(summary['by_fault'].values()):,} faults; receipts == ledger ({took_s:.0f} s)"
        )


def _summary(url: str) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(_get(f"{url}/_ledger"))
    return found


def _tasks(url: str) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in _get(f"{url}/_ledger/tasks").splitlines()]


def _get(url: str) -> bytes:
    try:
        with _DIRECT.open(url, timeout=30) as answer:
            body: bytes = answer.read()
    except OSError as error:
        raise DemoFailed(f"the emulator's ledger cannot be read: {error}") from error
    return body


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _say(text: str, *, gap: bool = True) -> None:
    print(f"\n{text}" if gap else text, flush=True)


def _echo(arguments: Sequence[str]) -> None:
    words = " ".join(word if word == "&" else shlex.quote(word) for word in arguments)
    print(f"$ dispatcher {words}", flush=True)


def main() -> int:
    """Show the demo; 0 when all is proven, 1 when anything is off."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a child is never left behind
    with tempfile.TemporaryDirectory(prefix="dispatcher-demo-") as folder:
        try:
            verdict = Demo(Path(folder)).show()
        except DemoFailed as failure:
            _say(f"FAILED: {failure}")
            return 1
        except KeyboardInterrupt:
            _say("interrupted; nothing is left behind")
            return 130
    _say(f"PROVEN: {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
