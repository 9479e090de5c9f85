"""The ledger tells the truth, in memory and on disk."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.emulator.config import Config
from dispatcher.emulator.faults import Fault, FaultPlan
from dispatcher.emulator.fleet import AnyFleet, Fleet, GeneratedFleet, fleet_id
from dispatcher.emulator.ledger import Ledger
from dispatcher.emulator.service import Service
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def call(service: Service, ledger: Ledger, token: Any, targets: Any, in_flight: int = 1) -> None:
    sent = {"command": {"reboot": {}}, "targets": targets, "clientToken": token}
    reply = service.handle("CreateTask", sent, 5.0)
    ledger.record(
        "CreateTask",
        reply,
        at_s=5.0,
        region="us-west-2",
        in_flight=in_flight,
        client_token=token,
        targets=targets,
    )


def test_the_summary_counts_calls_tasks_replays_and_throttles() -> None:
    """Each figure of the summary, on a small history."""
    service = Service(Config(rate_per_s=1, burst=3))
    ledger = Ledger(service.config.fleet)
    call(service, ledger, "t1", ["a", "b"], in_flight=4)
    call(service, ledger, "t1", ["a", "b"])
    call(service, ledger, "t2", ["b", "c"])
    call(service, ledger, "t3", ["d"])
    call(service, ledger, "t4", [])
    assert ledger.summary() == {
        "calls": 5,
        "tasks": 2,
        "replays": 1,
        "throttled": 1,
        "max_in_flight": 4,
        "devices": 3,
        "devices_with_many_tasks": 1,
        "devices_with_many_tasks_listed": ["b"],
        "by_status": {"200": 3, "400": 1, "429": 1},
        "by_operation": {"CreateTask": 5},
        "by_code": {"ThrottlingException": 1, "ValidationException": 1},
        "by_fault": {},
    }


@pytest.mark.parametrize("fleet", [AnyFleet(), GeneratedFleet(300)])
def test_devices_with_many_tasks_are_counted_exactly_and_listed_up_to_a_cap(fleet: Fleet) -> None:
    """The tally is the same for fleets with and without positions."""
    service = Service(Config(fleet=fleet))
    ledger = Ledger(fleet)
    for round_number in range(300):
        call(service, ledger, f"twice{round_number}", [fleet_id(0), fleet_id(0)])
    for number in range(1, 200):
        call(service, ledger, f"a{number}", [fleet_id(number)])
        call(service, ledger, f"b{number}", [fleet_id(number)])
    call(service, ledger, "once", [fleet_id(299), fleet_id(299)])
    summary = ledger.summary()
    assert (summary["devices"], summary["devices_with_many_tasks"]) == (201, 200)
    listed: Any = summary["devices_with_many_tasks_listed"]
    assert listed == [fleet_id(number) for number in range(100)]


def test_the_file_has_every_line_at_once_and_only_for_its_owner(tmp_path: Path) -> None:
    """Nothing waits in a buffer, and the mode is 0600 even where the file was there before."""
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"record":"before"}\n')
    path.chmod(0o644)
    service = Service(Config(faults=FaultPlan(shares={Fault.LOST_REPLY: 1.0})))
    ledger = Ledger(service.config.fleet, path)
    call(service, ledger, "t1", ["a"])
    call(service, ledger, "t1", ["a"])
    before, task, made, replayed = [json.loads(line) for line in path.read_text().splitlines()]
    ledger.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [before["record"], task["record"], made["record"]] == ["before", "task", "call"]
    assert (task["client_token"], task["targets"], task["command"]) == ("t1", ["a"], "reboot")
    assert (made["status"], made["fault"], made["created"]) == (0, "lost_reply", True)
    assert (replayed["replayed"], replayed["task_id"]) == (True, task["task_id"])


def test_refused_calls_are_written_down_without_trusting_them() -> None:
    """Targets of a wrong shape and overlong tokens neither break nor swell the ledger."""
    service = Service(Config())
    ledger = Ledger(service.config.fleet)
    call(service, ledger, 7, "smd-a")
    call(service, ledger, "x" * 10_000, [{}])
    call(service, ledger, "t", ["y" * 10_000] * 1000)
    lines = [json.loads(line) for line in b"".join(ledger.lines("calls")).splitlines()]
    assert [line["status"] for line in lines] == [400, 400, 400]
    assert [line["targets"] for line in lines[:2]] == [None, None]
    assert len(lines[1]["client_token"]) == 256
    assert sum(map(len, lines[2]["targets"])) == 25_600


def test_only_a_regular_file_gets_its_mode_changed(tmp_path: Path) -> None:
    """A device or a pipe that is given as the file keeps its mode."""
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o644)
    mode = path.stat().st_mode
    reader = os.open(path, os.O_RDWR)
    Ledger(AnyFleet(), path).close()
    os.close(reader)
    assert path.stat().st_mode == mode


def test_an_impossible_file_is_a_usage_error(tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(UsageError, match="absent"):
        Ledger(AnyFleet(), tmp_path / "absent" / "ledger.jsonl")
