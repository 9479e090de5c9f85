"""The state folder's registry: one small file a run, so that a lost checkpoint is noticed.

The checkpoint is the truth, but a checkpoint can be deleted, moved, or restored from last week's backup,
and then nothing in it would say that devices were already commanded. So the registry keeps, apart from it,
the run's last checkpoint path, what its plan was cut from, when something was first sent, a mark that every
claim raises, and how many commits there were. Order: claim commit → mark durable → send, and outcome commit →
mark durable → told. A record is replaced whole and fsynced.

The count of commits is there because SQLite drops a damaged WAL from its first bad frame on, without a word:
what is left is an earlier state of the file, and nothing in it says so (docs/adr/0027).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from dispatcher.checkpoint.files import (
    check_folder,
    check_regular,
    explained,
    name_of,
    state_folder,
    write_private,
)
from dispatcher.errors import CheckpointCorrupt, CheckpointError
from dispatcher.hints import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dispatcher.model import Batch


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the state folder remembers of a run."""

    run: str
    checkpoint: str
    """Absolute path of the last checkpoint."""
    plan_id: str
    intent_digest: str
    """Of the intent with system tags; never of limits."""
    selection_digest: str
    inventory_digest: str
    token_version: int
    endpoint_url: str | None
    region: str
    planned_at: float
    first_sent_at: float | None = None
    """Unix time of the first claim; a record without it binds nothing."""
    commits: int = msgspec.field(name="claims", default=0)
    """Commits so far (once of claims alone); a checkpoint that has seen fewer has lost some."""
    mark: int = 0
    """The highest batch number ever claimed."""
    is_recut: bool = False
    """Whether a split, an edit or `--limit` cut batches anew: then the plan cannot be rebuilt."""
    planned: int = 0
    """Batches as they were planned first; 0 where that is not known: then `reached` says nothing."""
    reached: int = 0
    """The highest of these that was claimed, or of which a part was: above it a reconcile need not doubt."""
    seal: str = ""
    """Digest of all the rest, on disk alone: what detects damage must not be damaged unseen."""


def _seal(record: Record) -> str:
    return hashlib.blake2b(msgspec.json.encode(record), digest_size=8).hexdigest()


def _unsealed(record: Record) -> Record:
    bare = msgspec.structs.replace(record, seal="")
    if record.seal not in ("", _seal(bare)):  # older programs wrote none
        raise msgspec.ValidationError("its seal does not fit")
    return bare


@dataclass(frozen=True, slots=True)
class Damaged:
    """A record that cannot be read."""

    run: str
    path: Path
    error: CheckpointError


class Registry:
    """The records of a state folder."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._folder = state_dir / "registry"

    def _path(self, run: str) -> Path:
        return self._folder / name_of(run, ".json")

    def get(self, run: str) -> Record | None:
        """Return a run's record, or None; raises `CheckpointCorrupt` where it cannot be read."""
        path = self._path(run)
        check_folder(self._state_dir)
        check_folder(self._folder)
        with explained(path):
            if not path.exists() and not path.is_symlink():
                return None
            check_regular(path)
            data = path.read_bytes()
        try:
            found = msgspec.json.decode(data, type=Record)
            return _unsealed(found)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CheckpointCorrupt(
                f"{path} is damaged ({error})",
                hint="it guards against sending twice; if you know what this run has sent, set it aside:"
                f" mv {quoted(str(path))} {quoted(f'{path}.damaged')}",
            ) from error

    def put(self, record: Record) -> None:
        """Make `record` durable."""
        state_folder(self._state_dir)
        state_folder(self._folder)
        sealed = msgspec.structs.replace(record, seal=_seal(record))
        write_private(self._path(record.run), msgspec.json.format(msgspec.json.encode(sealed)))

    def all(self) -> Iterator[Record | Damaged]:
        """Yield every record, by run id."""
        check_folder(self._state_dir)
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("*.json")):
            try:
                record = self.get(path.stem)
            except CheckpointError as error:
                yield Damaged(path.stem, path, error)
            else:
                if record is not None:
                    yield record


class Marker:
    """Notes every commit that told of a batch: of a claim before anything of it is sent."""

    def __init__(self, registry: Registry, record: Record) -> None:
        self._registry = registry
        self.record = record

    def committed(self, claimed: Sequence[Batch], *, commits: int, now: float) -> None:
        """Note a commit, and what it claimed; raises `CheckpointIo` where it cannot be made durable."""
        old = self.record
        self.record = msgspec.structs.replace(
            old,
            first_sent_at=now if old.first_sent_at is None and claimed else old.first_sent_at,
            commits=commits,
            mark=max(old.mark, *(batch.number for batch in claimed), 0),
            is_recut=old.is_recut or any(batch.parent is not None for batch in claimed),
            reached=max(old.reached, *(_origin(batch, old.planned) for batch in claimed), 0),
        )
        self._registry.put(self.record)

    def reconciled(self, *, first_sent_at: float, mark: int, is_recut: bool) -> None:
        """Note that the run was sent, perhaps by another runner, and whether batches are cut anew."""
        old = self.record
        self.record = msgspec.structs.replace(
            old,
            first_sent_at=old.first_sent_at if old.first_sent_at is not None else first_sent_at,
            mark=max(old.mark, mark),
            is_recut=old.is_recut or is_recut,
            planned=0 if is_recut else old.planned,
        )
        if self.record != old:
            self._registry.put(self.record)


def _origin(batch: Batch, planned: int) -> int:
    """Return the batch of the first plan that `batch` is or is a part of, 0 for a part of a part.

    That one is claimed after its parent, or after a sibling of its parent: there the origin was counted.
    """
    number = batch.number if batch.parent is None else batch.parent
    return number if number <= planned else 0
