"""What the program relies on below it, and who may touch a checkpoint."""

from __future__ import annotations

import ast
import random
import threading
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

import dispatcher
from dispatcher.checkpoint.reading import SqliteReader
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.errors import CheckpointError, PlanMismatch
from tests.integration.test_damage import NOW, Story

IMPORTS = (ast.Import, ast.ImportFrom)
PACKAGE = Path(dispatcher.__file__).parent


def test_the_sqlite_at_hand_has_no_wal_reset_bug() -> None:
    """Before 3.51.3 two connections could lose commits; apsw brings its own, and one connection writes."""
    assert tuple(map(int, apsw.sqlite_lib_version().split("."))) >= (3, 51, 3)


def test_nothing_forks_while_a_checkpoint_is_open() -> None:
    """A connection must not be carried over a fork: no module of the package can make one."""
    forking = {"fork", "forkpty", "forkserver", "multiprocessing", "ProcessPoolExecutor", "preexec_fn"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                {alias.name for alias in node.names}
                if isinstance(node, ast.Import | ast.ImportFrom)
                else set()
            )
            names |= {node.attr} if isinstance(node, ast.Attribute) else set()
            names |= {node.arg} if isinstance(node, ast.keyword) and node.arg else set()
            assert not names & forking, f"{path}: {names & forking}"


def test_two_threads_at_once_are_refused(tmp_path: Path) -> None:
    """A second thread in the middle of a call gets an error, and the file gets nothing of it."""
    checkpoint = SqliteCheckpoint.open(tmp_path / "run.db", create=True)
    inside, leave = threading.Event(), threading.Event()

    def slowly(value: int) -> int:
        inside.set()
        leave.wait(10)
        return value

    checkpoint._db.create_scalar_function("slowly", slowly)
    first = threading.Thread(target=lambda: checkpoint._db.execute("SELECT slowly(1)").fetchall())
    first.start()
    inside.wait(10)
    try:
        with pytest.raises(CheckpointError, match="ThreadingViolation"):
            checkpoint.check_lease(now=NOW)
    finally:
        leave.set()
        first.join()
    checkpoint.close()


def test_a_plan_of_another_token_version_is_refused(tmp_path: Path) -> None:
    """After an upgrade or a downgrade in mid-run no client token may come out differently."""
    story = Story(tmp_path, random.Random(1), cuts=False)
    story.state.mkdir(mode=0o700)
    prepared = story.prepare(story.state)
    batches = prepared.checkpoint.claim(limit=1, max_devices=None, now=NOW)
    story._mark(prepared, batches)
    later: Any = msgspec.structs.replace(prepared.plan, token_version=2)
    prepared.checkpoint.amend(later, now=NOW)
    prepared.checkpoint.release(now=NOW)
    prepared.close()
    for resume in (True, False):
        with pytest.raises(CheckpointError, match="client tokens of version 2"):
            story.prepare(story.state, resume=resume)
    reader = SqliteReader.open(story.state / "fleet.db", read_only=True)
    with pytest.raises(CheckpointError, match="client tokens of version 2"):
        reader.plan()
    reader.close()


def test_a_lost_plan_of_another_token_version_is_not_rebuilt(tmp_path: Path) -> None:
    """The same devices under other tokens would be commanded again."""
    story = Story(tmp_path, random.Random(1), cuts=False)
    story.state.mkdir(mode=0o700)
    prepared = story.prepare(story.state)
    story._mark(prepared, prepared.checkpoint.claim(limit=1, max_devices=None, now=NOW))
    record = msgspec.structs.replace(prepared.marker.record, token_version=2)
    prepared.marker._registry.put(record)
    prepared.checkpoint.release(now=NOW)
    prepared.close()
    (story.state / "fleet.db").unlink()
    with pytest.raises(PlanMismatch, match="client tokens of version 2"):
        story.prepare(story.state)
