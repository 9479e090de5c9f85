"""Torn and flipped bytes in a checkpoint and its WAL: never believed, never silent.

Each trial takes the files of a run as they were at some moment, damages one of them, and lets the real
preparation of a run or a resume read them. Either it is refused in one line, or it says that it was rebuilt
and doubts what is missing, or what it read is exactly what was written.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dispatcher import Inventory, Manifest, Settings
from dispatcher.checkpoint.base import Row
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.errors import CheckpointError
from dispatcher.intent import Intent
from dispatcher.model import Batch, BatchState, Outcome
from dispatcher.prepare import Preparation, Prepared

NOW = 1_800_000_000.0
IDS = [f"smd-{i:05d}" for i in range(600)]
SEED = int(os.environ.get("DAMAGE_SEED", "2027"))
TRIALS = 10_000 if "SOAK" in os.environ else 300


@dataclass(frozen=True, slots=True)
class Moment:
    """The files of a run at one moment, all acknowledged, and what an undamaged resume reads in them."""

    folder: Path
    rows: list[Row]


class Story:
    """A run, played by hand through the real checkpoint and registry, and kept at many moments."""

    def __init__(self, folder: Path, rng: random.Random, *, cuts: bool) -> None:
        self.folder, self.rng, self.cuts = folder, rng, cuts
        self.state = folder / "live"
        self.moments: list[Moment] = []
        self.now = NOW

    def prepare(self, state: Path, *, targets: list[str] = IDS, resume: bool = False) -> Prepared:
        """Prepare the run as the command does, in `state`."""
        settings = Settings(state_dir=state, accept_removals=len(IDS))
        manifest = Manifest(
            name="fleet", command="reboot", region="us-west-2", inventory=Inventory(targets=targets)
        )
        resolved = settings.resolve(manifest)
        preparation = Preparation(resolved, now=lambda: self.now)
        if resume:
            return preparation.of_checkpoint(state / "fleet.db")
        return preparation.of_manifest(Intent.of(manifest, resolved, "us-west-2"))

    def keep(self) -> None:
        """Keep the files of this moment, and what an undamaged resume makes of them."""
        place = self.folder / f"moment-{len(self.moments)}"
        shutil.copytree(self.state, place)
        twin = self.folder / "twin"
        shutil.copytree(place, twin)
        prepared = self.prepare(twin, resume=True)
        rows = list(prepared.checkpoint.rows())
        prepared.close()
        shutil.rmtree(twin)
        self.moments.append(Moment(place, rows))

    def play(self) -> list[Moment]:
        """Send half of the fleet: accepted, rejected, in doubt, given back, split and edited."""
        prepared = self.prepare(self.state)
        checkpoint = prepared.checkpoint
        assert isinstance(checkpoint, SqliteCheckpoint)
        checkpoint._db.execute("PRAGMA wal_autocheckpoint=12")  # pages move into the file again and again
        for _ in range(8):
            self.now += 1
            self._block(prepared)
        if self.cuts:
            prepared.checkpoint.release(now=self.now)
            prepared.close()
            self.keep()
            prepared = self.prepare(self.state, targets=IDS[:-25])
            self.keep()
            self._block(prepared)
        prepared.checkpoint.release(now=self.now)
        prepared.close()
        self.keep()
        return self.moments

    def _block(self, prepared: Prepared) -> None:
        checkpoint, now = prepared.checkpoint, self.now
        claimed = checkpoint.claim(limit=self.rng.randint(1, 6), max_devices=None, now=now)
        self._mark(prepared, claimed)
        self.keep()
        outcomes = [self._outcome(batch) for batch in claimed[:-1]]
        if self.cuts and self.rng.random() < 0.4:
            split = Outcome(claimed[-1].number, BatchState.SPLIT, len(claimed[-1].targets), 1, now, now)
            halves = (claimed[-1].targets[:5], claimed[-1].targets[5:])
            children = checkpoint.split(split, tuple(half for half in halves if half), now=now)
            self._mark(prepared, children)
            self.keep()
            outcomes += [self._outcome(child) for child in children]
        elif self.rng.random() < 0.5:
            checkpoint.give_back([claimed[-1].number], sent=[claimed[-1].number], now=now)
            self._mark(prepared, [])
        if outcomes:
            checkpoint.record(outcomes, now=now)
            self._mark(prepared, [])
        self.keep()

    def _mark(self, prepared: Prepared, claimed: list[Batch]) -> None:
        commits = prepared.checkpoint.standing().commits
        prepared.marker.committed(claimed, commits=commits, now=self.now)

    def _outcome(self, batch: Batch) -> Outcome:
        luck, state = self.rng.random(), BatchState.ACCEPTED
        evidence: dict[str, str] = {"task_id": f"task-{batch.number:06d}"}
        if luck < 0.25:
            state, evidence = BatchState.IN_DOUBT, {"code": "Timeout", "message": "late"}
        elif luck < 0.35:
            state, evidence = BatchState.REJECTED, {"code": "Poison", "message": "bad"}
        return Outcome(batch.number, state, len(batch.targets), 1, self.now, self.now, **evidence)


def flip(data: bytearray, rng: random.Random) -> None:
    """One bit."""
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut_off(data: bytearray, rng: random.Random) -> None:
    """The end is gone."""
    del data[rng.randrange(len(data)) :]


def blank(data: bytearray, rng: random.Random) -> None:
    """A sector of zeros."""
    start = rng.randrange(0, len(data), 512)
    data[start : start + 512] = bytes(min(512, len(data) - start))


def noise(data: bytearray, rng: random.Random) -> None:
    """A sector of something else."""
    start = rng.randrange(0, len(data), 512)
    data[start : start + 512] = rng.randbytes(min(512, len(data) - start))


def vanish(data: bytearray, rng: random.Random) -> None:
    """The file is empty."""
    data.clear()


def tear(data: bytearray, rng: random.Random) -> None:
    """A page of which only the first half was written: the other is that of another page."""
    pages = len(data) // 4096
    if pages < 2:
        return flip(data, rng)
    one, other = rng.sample(range(pages), 2)
    data[one * 4096 + 2048 : (one + 1) * 4096] = data[other * 4096 + 2048 : (other + 1) * 4096]
    return None


DAMAGES = (flip, flip, flip, cut_off, blank, noise, tear, vanish)


class Trials:
    """Damages moments, and holds what is read against what was written."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.found: Counter[str] = Counter()

    def stories(self) -> Iterator[tuple[Story, Moment]]:
        """Yield moments at random, of new stories now and then."""
        for number in itertools.count():
            story = Story(self.folder / f"story-{number}", self.rng, cuts=number % 2 == 1)
            moments = story.play()
            for _ in range(150):
                yield story, self.rng.choice(moments)
            shutil.rmtree(story.folder)

    def go(self, count: int) -> Counter[str]:
        for story, moment in itertools.islice(self.stories(), count):
            self._one(story, moment)
        return self.found

    def _one(self, story: Story, moment: Moment) -> None:
        place = story.state  # the registry knows the checkpoint by its path
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(moment.folder, place)
        targets = [path for path in place.glob("fleet.db*") if path.suffix in (".db", ".db-wal")]
        target = self.rng.choice([path for path in targets if path.stat().st_size])
        damage = self.rng.choice(DAMAGES)
        data = bytearray(target.read_bytes())
        before = bytes(data)
        damage(data, self.rng)
        target.write_bytes(data)
        what = f"{damage.__name__} {target.suffix}"
        try:
            prepared = story.prepare(place, resume=self.rng.random() < 0.5, targets=self._targets(moment))
        except CheckpointError as error:
            if "\n" in error.one_line():
                raise AssertionError(error.one_line()) from error
            self.found[f"{what}: refused"] += 1
        else:
            rows, notes = list(prepared.checkpoint.rows()), prepared.notes
            prepared.close()
            self._judge(moment, rows, notes, f"{what} of {moment.folder}, {len(before)} bytes")
            same = "rebuilt" if any("rebuilt" in note for note in notes) else "harmless"
            self.found[f"{what}: {same}"] += 1

    @staticmethod
    def _targets(moment: Moment) -> list[str]:
        return sorted(target for row in moment.rows if row.state != "cancelled" for target in row.targets)

    def _judge(self, moment: Moment, rows: list[Row], notes: list[str], what: str) -> None:
        if not any("rebuilt" in note for note in notes):
            assert _facts(rows) == _facts(moment.rows), f"silently another: {what}"
            return
        then = {row.number: row for row in moment.rows}
        assert {row.number: row.targets for row in rows} == {row.number: row.targets for row in moment.rows}
        for row in rows:
            old = then[row.number]
            if row.state == "planned":
                assert old.state == "planned", f"batch {row.number} was {old.state}: {what}"
            elif row.state != "in_doubt":
                assert _fact(row) == _fact(old), f"batch {row.number}: {what}"


def _fact(row: Row) -> tuple[Any, ...]:
    sent = row.first_sent_at if row.state == "in_doubt" else None
    return (*row[:6], sent, *row[9:])


def _facts(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [_fact(row) for row in rows]


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_damage_is_never_silent(tmp_path: Path) -> None:
    """Whatever byte of checkpoint or WAL is damaged, nothing is believed that was not written."""
    found = Trials(tmp_path, random.Random(SEED)).go(TRIALS)
    for end in ("refused", "rebuilt", "harmless"):
        assert sum(count for what, count in found.items() if what.endswith(end)), found
    print(f"\n{sum(found.values())} trials: {dict(sorted(found.items()))}")
