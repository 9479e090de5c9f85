"""The service's state survives a restart, a kill, and tells damage from an unfinished line."""

from __future__ import annotations

import resource
import stat
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.emulator.config import Config
from dispatcher.emulator.fleet import AnyFleet, Fleet, GeneratedFleet, ListedFleet, fleet_id
from dispatcher.emulator.service import Service
from dispatcher.emulator.state_file import StateFile, read_origin
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

A, B = fleet_id(0), fleet_id(1)


class Process:
    """A service with its state file, as one process of the emulator has them."""

    def __init__(self, path: Path, config: Config) -> None:
        self.service = Service(config)
        self.state = StateFile(path, config)
        self.service.restore(self.state.records())

    def call(self, operation: str, now_s: float, **params: Any) -> dict[str, Any]:
        reply = self.service.handle(operation, params, now_s)
        self.state.keep(reply)
        assert reply.status == 200, reply
        return dict(reply.body)

    def create(self, token: str, now_s: float) -> dict[str, Any]:
        sent = {"command": {"unlock": {}}, "targets": [A, B], "clientToken": token, "tags": {"a": "1"}}
        return self.call("CreateTask", now_s, **sent)


def views(process: Process, now_s: float) -> list[dict[str, Any]]:
    """Everything that can be seen of a service."""
    found = [process.call("ListDevices", now_s)] if len(process.service.config.fleet) else []
    found += [process.call("DescribeDevice", now_s, managedDeviceId=device) for device in (A, B)]
    tasks = process.call("ListTasks", now_s)
    for entry in tasks["tasks"]:
        found.append(process.call("DescribeTask", now_s, taskId=entry["taskId"]))
        found.append(process.call("ListExecutions", now_s, taskId=entry["taskId"]))
    return [*found, tasks]


@pytest.mark.parametrize(
    "fleet", [AnyFleet(), GeneratedFleet(5), ListedFleet([A, B])], ids=["any", "made", "listed"]
)
def test_a_restart_changes_nothing(tmp_path: Path, fleet: Fleet) -> None:
    """Tasks, tokens, cancels, tags and lives are as they were; the fleet comes out of the file."""
    path = tmp_path / "state"
    config = Config(fleet=fleet, seed=7, quota=3)
    first = Process(path, config)
    made = first.create("t1", 100.0)
    doomed = first.create("t2", 100.0)
    first.call("CancelTask", 100.0, taskId=doomed["taskId"])
    for arn in (made["taskArn"], first.call("DescribeDevice", 100.0, managedDeviceId=A)["managedDeviceArn"]):
        first.call("TagResource", 100.0, resourceArn=arn, tags={"b": "2"})
    before = [views(first, now_s) for now_s in (100.0, 102.0, 105.0, 120.0)]
    first.state.close()
    origin = read_origin(path)
    assert origin is not None
    second = Process(path, Config(**origin.settings(), quota=3))
    assert [views(second, now_s) for now_s in (100.0, 102.0, 105.0, 120.0)] == before
    assert second.create("t1", 200.0) == made
    assert second.create("t3", 200.0)["taskId"] not in {made["taskId"], doomed["taskId"]}
    sent = {"command": {"reboot": {}}, "targets": [A]}
    assert second.service.handle("CreateTask", sent, 200.0).status == 402
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_an_unfinished_line_is_dropped(tmp_path: Path) -> None:
    """Cut anywhere within its last line, the file restores to the state before it, and goes on."""
    path = tmp_path / "state"
    process = Process(path, Config())
    first = process.create("t1", 0.0)
    whole_bytes = path.stat().st_size
    process.create("t2", 0.0)
    process.state.close()
    text = path.read_bytes()
    for size in range(whole_bytes, len(text)):
        path.write_bytes(text[:size])
        again = Process(path, Config())
        assert len(again.service.tasks) == 1
        assert again.create("t1", 1.0) == first
        again.create("t3", 1.0)
        again.state.close()
        assert len(path.read_bytes().splitlines()) == 3


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda lines: [b"\0" * 40 + b"\n", *lines[1:]], "line 1"),
        (lambda lines: [b"", *lines[1:]], "line 1"),
        (lambda lines: [lines[0].replace(b'"version":1', b'"version":2'), *lines[1:]], "version 2"),
        (lambda lines: [lines[0], b"{}\n", *lines[2:]], "line 2"),
        (lambda lines: [lines[0], lines[1][:50] + b"\n", *lines[2:]], "line 2"),
        (lambda lines: [lines[0], lines[1].replace(b"t1", b"\xff\xff"), *lines[2:]], "line 2"),
    ],
    ids=["zeros", "headless", "version", "foreign", "cut", "bytes"],
)
def test_damage_is_one_line(tmp_path: Path, damage: Any, words: str) -> None:
    """The error names the file and the line, and nothing is changed."""
    path = tmp_path / "state"
    process = Process(path, Config())
    process.create("t1", 0.0)
    process.create("t2", 0.0)
    process.state.close()
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    text = path.read_bytes()
    with pytest.raises(UsageError, match=words) as caught:
        Process(path, Config())
    assert str(path) in str(caught.value)
    assert len(caught.value.one_line().splitlines()) == 1
    assert path.read_bytes() == text


def test_a_missing_line_is_damage(tmp_path: Path) -> None:
    """Tasks are numbered, so a gap does not go unseen."""
    path = tmp_path / "state"
    process = Process(path, Config())
    for token in ("t1", "t2", "t3"):
        process.create(token, 0.0)
    process.state.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    with pytest.raises(ValueError, match="task 2 comes where 1 should"):
        Process(path, Config())


@pytest.mark.parametrize(
    ("change", "words"),
    [({"seed": 1}, "seed"), ({"region": "eu-west-1"}, "region"), ({"fleet": GeneratedFleet(3)}, "devices")],
    ids=["seed", "region", "fleet"],
)
def test_another_service_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """What the past depends on cannot be changed, and the error says what differs."""
    path = tmp_path / "state"
    StateFile(path, Config()).close()
    with pytest.raises(UsageError, match=words):
        StateFile(path, Config(**change))


def test_a_state_belongs_to_one_emulator(tmp_path: Path) -> None:
    """A second one is refused while the first lives."""
    held = StateFile(tmp_path / "state", Config())
    with pytest.raises(UsageError, match="another emulator"):
        StateFile(tmp_path / "state", Config())
    held.close()
    StateFile(tmp_path / "state", Config()).close()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(UsageError, match="absent"):
        StateFile(tmp_path / "absent" / "state", Config())


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """What did not fit is cut off again, and no more is taken."""
    path = tmp_path / "state"
    process = Process(path, Config())
    process.create("t1", 0.0)
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        with pytest.raises(OSError):
            process.create("t2", 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert process.state.is_broken
    assert path.stat().st_size == size
    process.state.close()
    assert len(Process(path, Config()).service.tasks) == 1
