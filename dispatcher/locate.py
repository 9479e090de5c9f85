"""Finding a run's checkpoint, and what can be said of one at a glance."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dispatcher.checkpoint.reading import SqliteReader
from dispatcher.checkpoint.registry import Record, Registry
from dispatcher.errors import CheckpointError, PlanMismatch, UsageError
from dispatcher.hints import command, resume
from dispatcher.manifest import NAME_PATTERN
from dispatcher.manifest_schema import near_miss
from dispatcher.manifest_text import SUFFIXES

if TYPE_CHECKING:
    from dispatcher.checkpoint.base import Plan, Stored
    from dispatcher.settings import Resolved

_RUN = re.compile(f"{NAME_PATTERN}(@{NAME_PATTERN})?", re.ASCII)
"""A run's id; any other word can only be a path."""


def stored_plan(checkpoint: Stored) -> Plan:
    """Return the committed plan; raise `CheckpointError` where planning never finished."""
    plan = checkpoint.plan()
    if plan is None:
        raise CheckpointError(
            "the checkpoint holds no committed plan", hint="run the manifest: planning was interrupted"
        )
    return plan


def binds(checkpoint: Stored) -> bool:
    """Whether anything was accepted or may have been: until then a plan binds nothing."""
    counts = checkpoint.counts()
    return bool(counts.accepted or counts.in_doubt)


def is_older(checkpoint: Stored, plan: Plan, record: Record) -> bool:
    """Whether the registry remembers commits that this file has never seen."""
    return record.plan_id != plan.plan_id or record.commits > checkpoint.standing().commits


def lost_commits(run: str, path: Path, checkpoint: Stored, record: Record | None) -> str | None:
    """Return what to tell whoever reads a checkpoint that has lost commits; None where it has not.

    `record` must have been read before the file: beside a live run the file is ahead of it.
    """
    plan = checkpoint.plan()
    if record is None or plan is None or record.first_sent_at is None or record.plan_id != plan.plan_id:
        return None
    missing = record.commits - checkpoint.standing().commits
    if missing <= 0:
        return None
    last = Path(record.checkpoint)
    where = f"; the last one is {last}" if last != path else ""
    return (
        f"{path} is {missing} commits older than what was recorded of run {run}: what is shown as planned or"
        f" in doubt may have been settled since{where}"
    )


def check_newest(checkpoint: Stored, path: Path, plan: Plan, record: Record | None) -> None:
    """Raise where the registry knows of an edit or a commit that is not in this file."""
    if record is None:
        return
    edited = record.inventory_digest, record.selection_digest
    if record.plan_id == plan.plan_id and edited != (plan.inventory_digest, plan.selection_digest):
        raise CheckpointError(
            f"the last edit of run {plan.run} is not in {path}",
            hint="run its manifest: a plan without it might send to devices that were taken out",
        )
    if record.first_sent_at is None or not is_older(checkpoint, plan, record):
        return
    last = Path(record.checkpoint)
    newer = f"use the newer one: {resume(str(last))}" if last != path else None
    raise CheckpointError(
        f"{path} is older than what the registry remembers of run {plan.run}",
        hint=newer or "run its manifest again: it may be rebuilt; or reconcile its manifest",
    )


class OrphanedWal:
    """A -wal whose database is gone. SQLite would delete it, and with it the outcomes that it holds.

    It is set aside before a database of that name is made, and put back where the run is refused: its own
    database may only have been moved.
    """

    def __init__(self, path: Path) -> None:
        self._database = path
        self._wal = path.with_name(f"{path.name}-wal")
        self._kept = path.with_name(f"{path.name}-wal.orphan")
        self._is_aside = False

    def set_aside(self) -> None:
        """Rename the -wal, if there is one."""
        if self._wal.exists():
            self._wal.replace(self._kept)
            self._is_aside = True

    def put_back(self) -> None:
        """Undo `set_aside`, unless a database is there now."""
        with contextlib.suppress(OSError):  # then it stays aside
            if self._is_aside and not self._database.exists():
                self._kept.replace(self._wal)


def discard(checkpoint: SqliteReader, *, is_new: bool) -> None:
    """Close the checkpoint of a run that was refused; a new one that holds no plan is removed.

    A refusal leaves nothing that looks like a run. What fails here is not what the operator must hear of.
    """
    with contextlib.suppress(CheckpointError, OSError):
        is_empty = is_new and checkpoint.plan() is None
        checkpoint.close()
        if is_empty:
            checkpoint.path.unlink(missing_ok=True)


def find_checkpoint(word: str, settings: Resolved) -> Path:
    """Find what `RUN|CHECKPOINT` means: a file, else a run of the registry, else of the state folder."""
    if settings.checkpoint is not None and settings.origins["checkpoint"] == "flag":
        if settings.checkpoint.exists():
            return _of_key(settings.checkpoint, settings)
        raise CheckpointError(f"there is no checkpoint at {settings.checkpoint}", hint="name where it is")
    if _is_path(word) and _exists(word):
        return _of_key(Path(word).absolute(), settings)
    word = named(word, settings)
    if _RUN.fullmatch(word):
        record = Registry(settings.state_dir).get(word)
        if record is not None and Path(record.checkpoint).exists():
            return of_run(word, Path(record.checkpoint))
        if record is not None:
            raise CheckpointError(
                f"the checkpoint of run {word} is not at {record.checkpoint} any more",
                hint="put it back, or name where it is now; if it is lost, reconcile the manifest",
            )
        if (settings.state_dir / f"{word}.db").exists():
            return settings.state_dir / f"{word}.db"
        if Path(word).is_file():
            return Path(word).absolute()
    raise UsageError(
        f"no run or checkpoint is called {word if len(word) <= 200 else f'{word[:200]}...'}"
        f"{near_miss(word, _known_runs(settings.state_dir))}",
        hint=f"`{command('runs')}` lists the known ones",
    )


def named(word: str, settings: Resolved) -> str:
    """Let `night --run-key x` mean the run that `night.yaml --run-key x` made, never another in silence.

    A flag does so; a key of the environment or the settings file is for manifests: a typed id stands.
    """
    key = _key(settings)
    if key is None or _is_path(word) or not _RUN.fullmatch(word) or word.endswith((f"@{key}", *SUFFIXES)):
        return word
    if "@" in word:
        raise UsageError(
            f"run {word} has another key than --run-key {key}",
            hint="name the run as it is, without --run-key",
        )
    return f"{word}@{key}"


def _key(settings: Resolved) -> str | None:
    return settings.run_key if settings.origins["run_key"] == "flag" else None


def _is_path(word: str) -> bool:
    return os.sep in word or word.endswith(".db")


def _of_key(path: Path, settings: Resolved) -> Path:
    """Return `path`, but not where `--run-key` names another run than is in it."""
    key, plan = _key(settings), None
    if key is not None:
        plan = _plan_at(path)
    if plan is not None and not plan.run.endswith(f"@{key}"):
        raise UsageError(
            f"{path} belongs to run {plan.run}, whose key is not {key}", hint="leave --run-key out"
        )
    return path


def _plan_at(path: Path) -> Plan | None:
    """Read a checkpoint's plan; None where it cannot be: whoever opens it next says what is wrong with it."""
    with contextlib.suppress(CheckpointError):
        reader = SqliteReader.open(path, read_only=True)
        try:
            return reader.plan()
        finally:
            reader.close()
    return None


def of_run(run: str, path: Path) -> Path:
    """Return `path`, but not where another run's file lies there: nobody asked for that one."""
    check_run(
        run, _plan_at(path), path, hint="put the right file back; if this one is meant, name it by its path"
    )
    return path


def check_run(run: str, plan: Plan | None, path: Path, *, hint: str) -> None:
    """Raise `PlanMismatch` where the plan stored at `path` is another run's."""
    if plan is not None and plan.run != run:
        raise PlanMismatch(f"{path} belongs to run {plan.run}, not to {run}", hint=hint)


def _exists(word: str) -> bool:
    """Whether a path is there; one that the system cannot even look for is not."""
    try:
        return Path(word).exists()
    except OSError:
        return False


def _known_runs(state_dir: Path) -> list[str]:
    """Return the runs that a slip may have meant; a registry that cannot be read has none."""
    try:
        return [one.run for one in Registry(state_dir).all()]
    except CheckpointError:
        return []
