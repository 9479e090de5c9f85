"""The sorting spool: order, duplicates, files and their failures."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest

from dispatcher import spool as spool_module
from dispatcher.errors import CheckpointIo
from dispatcher.spool import SortedSpool


def drain(spool: SortedSpool) -> list[str]:
    return [text for block in spool.sorted_blocks() for text in block]


def test_one_chunk_is_sorted_without_a_file(tmp_path: Path) -> None:
    """What fits in one chunk never touches the folder, not even one that is missing."""
    with SortedSpool(tmp_path / "missing", chunk=10) as spool:
        spool.extend(["b", "a", "b"])
        spool.add("A")
        assert drain(spool) == ["A", "a", "b", "b"]


def test_an_empty_spool_yields_nothing() -> None:
    """No string gives no block, rather than an empty one."""
    with SortedSpool() as spool:
        assert list(spool.sorted_blocks()) == []


def test_many_runs_come_back_sorted_in_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The merge of many runs gives what `sorted` gives, and holds only blocks of it."""
    monkeypatch.setattr(spool_module, "MERGE_BYTES", 2048)
    monkeypatch.setattr(spool_module, "MIN_BLOCK_BYTES", 64)
    rng = random.Random(7)
    texts = [f"smd-{rng.getrandbits(40):010x}" for _ in range(20_000)] * 2
    rng.shuffle(texts)
    with SortedSpool(chunk=900) as spool:
        for at in range(0, len(texts), 100):
            spool.extend(texts[at : at + 100])
        blocks = list(spool.sorted_blocks())
    assert [text for block in blocks for text in block] == sorted(texts)
    assert len(blocks) > 20
    assert all(blocks)
    assert max(map(len, blocks)) < 2_000


def test_a_string_longer_than_a_block_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block always holds whole strings, however small blocks are."""
    monkeypatch.setattr(spool_module, "MERGE_BYTES", 8)
    monkeypatch.setattr(spool_module, "MIN_BLOCK_BYTES", 8)
    texts = ["x" * 100, "é" * 50, "", "a", "\U0001f600" * 9, "\ud7ff", "\ue000"]
    with SortedSpool(chunk=2) as spool:
        for text in texts:
            spool.add(text)
        assert drain(spool) == sorted(texts)


def test_the_file_has_no_name_once_it_is_open(tmp_path: Path) -> None:
    """A crash leaves nothing behind, since the file is unlinked while it is used."""
    with SortedSpool(tmp_path, chunk=2) as spool:
        spool.extend(["c", "b", "a"])
        spool.add("d")
        assert list(tmp_path.iterdir()) == []
        assert drain(spool) == ["a", "b", "c", "d"]


def test_a_folder_that_cannot_hold_the_file_is_named(tmp_path: Path) -> None:
    """A spool that cannot be written is the disk's fault: exit code 4 and the folder's name."""
    folder = tmp_path / "gone"
    with SortedSpool(folder, chunk=1) as spool, pytest.raises(CheckpointIo, match=str(folder)) as caught:
        spool.add("a")
    assert caught.value.exit_code == 4
    assert caught.value.hint is not None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A full disk is one sentence that names folder and reason."""

    def full(**_: object) -> object:
        return Path("/dev/full").open("r+b", buffering=0)

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with (
        SortedSpool(tmp_path, chunk=1) as spool,
        pytest.raises(CheckpointIo, match="No space left") as caught,
    ):
        spool.add("a")
    assert str(tmp_path) in caught.value.one_line()


def test_a_file_that_ends_early_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncated file is never taken for the end of the strings."""
    with SortedSpool(chunk=1) as spool:
        spool.add("a")
        spool.add("b")
        monkeypatch.setattr(os, "pread", lambda *_: b"")
        with pytest.raises(CheckpointIo, match="ended early"):
            drain(spool)


def test_a_chunk_of_nothing_is_refused() -> None:
    """A chunk holds at least one string."""
    with pytest.raises(ValueError, match="at least 1"):
        SortedSpool(chunk=0)


def test_its_repr_tells_how_full_it_is() -> None:
    """The repr is an honest status line."""
    with SortedSpool(chunk=2) as spool:
        spool.extend(["a", "b"])
        spool.add("c")
        assert repr(spool) == "<SortedSpool [1 runs of 4 bytes, 1 held]>"
