"""The state folder's memory of a run: replaced whole, private, and never guessed."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest

from dispatcher.checkpoint.files import private_folder, write_private
from dispatcher.checkpoint.registry import Damaged, Marker, Record, Registry
from dispatcher.errors import CheckpointCorrupt, CheckpointIo
from dispatcher.model import Batch

if TYPE_CHECKING:
    from pathlib import Path


def record(run: str = "nightly@2026-11-23") -> Record:
    return Record(
        run=run,
        checkpoint="/state/run.db",
        plan_id="p",
        intent_digest="i",
        selection_digest="s",
        inventory_digest="v",
        token_version=1,
        endpoint_url=None,
        region="us-west-2",
        planned_at=900.0,
    )


def batch(number: int, *, parent: int | None = None) -> Batch:
    return Batch(number, 0, 0, ("a",), parent)


def test_a_record_is_read_back_as_put(tmp_path: Path) -> None:
    """What is put is what is got; an unknown run has no record."""
    registry = Registry(tmp_path)
    assert registry.get("nightly") is None
    assert list(registry.all()) == []
    registry.put(record())
    assert registry.get("nightly@2026-11-23") == record()


def test_records_are_private(tmp_path: Path) -> None:
    """Files are 0600, and every folder made for them 0700, whatever the umask; no other file is left."""
    old = os.umask(0)
    try:
        Registry(tmp_path / "home" / "state").put(record())
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"home": 0o700, "state": 0o700, "registry": 0o700, "nightly@2026-11-23.json": 0o600}


def test_a_record_is_replaced_whole(tmp_path: Path) -> None:
    """A reader beside a writer sees one record or the next, never a part."""
    path = tmp_path / "file"
    old, new = b"a" * 100_000, b"b" * 50_000
    write_private(path, old)
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(50):
        write_private(path, new if turn % 2 else old)
    stop.set()
    reader.join()
    assert seen <= {old, new}
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_record(tmp_path: Path) -> None:
    """Where the replacement cannot be made, the old bytes stay and no temporary file is left."""
    folder = tmp_path / "file"
    folder.mkdir()
    with pytest.raises(CheckpointIo, match="file"):
        write_private(folder, b"data")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"run": 3}', b'{"run": "\xff"}', b"\x00" * 40])
def test_a_damaged_record_is_named(tmp_path: Path, data: bytes) -> None:
    """It is never taken for a missing one: that would allow a second sending."""
    registry = Registry(tmp_path)
    registry.put(record("a"))
    registry.put(record("b"))
    path = tmp_path / "registry" / "a.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointCorrupt, match=str(path)):
        registry.get("a")
    damaged, good = registry.all()
    assert isinstance(damaged, Damaged)
    assert (damaged.run, damaged.path, good.run) == ("a", path, "b")


def test_a_link_is_no_record(tmp_path: Path) -> None:
    """Neither a link to a file nor one to nowhere is followed or overlooked."""
    registry = Registry(tmp_path)
    registry.put(record("a"))
    folder = tmp_path / "registry"
    (folder / "b.json").symlink_to(folder / "a.json")
    (folder / "c.json").symlink_to(folder / "nowhere.json")
    for run in ("b", "c"):
        with pytest.raises(CheckpointIo, match="symbolic link"):
            registry.get(run)


def test_the_mark_is_durable_when_the_claim_is_told(tmp_path: Path) -> None:
    """Each commit counts, a claim raises the mark, and the first instant of sending is kept."""
    registry = Registry(tmp_path)
    marker = Marker(registry, record("a"))
    for commits, (batches, now, expected) in enumerate(
        (
            ([batch(1), batch(2)], 1000.0, (1, 2, 1000.0, False)),
            ([batch(7)], 1010.0, (2, 7, 1000.0, False)),
            ([batch(3)], 1020.0, (3, 7, 1000.0, False)),
            ([batch(8, parent=7)], 1030.0, (4, 8, 1000.0, True)),
            ([], 1035.0, (5, 8, 1000.0, True)),
            ([batch(9)], 1040.0, (6, 9, 1000.0, True)),
        ),
        start=1,
    ):
        marker.committed(batches, commits=commits, now=now)
        found = registry.get("a")
        assert found is not None
        assert (found.commits, found.mark, found.first_sent_at, found.is_recut) == expected


def test_a_recut_is_remembered(tmp_path: Path) -> None:
    """A claim of a batch that was cut anew is kept for ever."""
    registry = Registry(tmp_path)
    marker = Marker(registry, record("a"))
    marker.committed([batch(3, parent=1)], commits=1, now=1000.0)
    marker.committed([batch(2)], commits=2, now=1001.0)
    found = registry.get("a")
    assert found is not None
    assert found.is_recut


def test_a_mark_that_cannot_be_written_stops_the_claim(tmp_path: Path) -> None:
    """Where the registry cannot be written, the claim is not told and nothing may be sent."""
    (tmp_path / "registry").write_text("a file where the folder should be")
    marker = Marker(Registry(tmp_path), record("a"))
    with pytest.raises(CheckpointIo):
        marker.committed([batch(1)], commits=1, now=1000.0)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    """An existing folder keeps its mode: it may be the operator's."""
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o755)
    assert private_folder(folder).stat().st_mode & 0o777 == 0o755


def test_what_was_reached_of_the_first_plan(tmp_path: Path) -> None:
    """Batches of it, and those of which a part was claimed; not parts of parts, nor what was added later."""
    marker = Marker(Registry(tmp_path), msgspec.structs.replace(record(), planned=100))

    def claimed(number: int, parent: int | None = None) -> int:
        marker.committed([batch(number, parent=parent)], commits=1, now=1.0)
        return marker.record.reached

    assert [claimed(3), claimed(101, 3), claimed(103, 101), claimed(104, 9), claimed(150)] == [3, 3, 3, 9, 9]
    assert marker.record.mark == 150
    marker.reconciled(first_sent_at=5.0, mark=120, is_recut=False)
    assert (marker.record.planned, marker.record.first_sent_at) == (100, 1.0)
    marker.reconciled(first_sent_at=5.0, mark=120, is_recut=True)
    assert (marker.record.planned, marker.record.is_recut, marker.record.mark) == (0, True, 150)
    assert Registry(tmp_path).get(record().run) == marker.record
