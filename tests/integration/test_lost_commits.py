"""What a checkpoint has lost is told: outcomes, an edit, a bit of a page, and by whom it was written."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import apsw
import pytest

from dispatcher.checkpoint import pages
from dispatcher.checkpoint.backup import back_up
from dispatcher.checkpoint.reading import SqliteReader
from dispatcher.checkpoint.registry import Registry
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.errors import CheckpointCorrupt, CheckpointError, CheckpointIo
from dispatcher.model import BatchState, Outcome
from dispatcher.prepare import Prepared
from dispatcher.recover import Recovery
from dispatcher.report import read_lost_commits
from dispatcher.settings import Settings
from tests.integration.test_damage import IDS, NOW, Story


@pytest.fixture
def story(tmp_path: Path) -> Story:
    made = Story(tmp_path, random.Random(1), cuts=False)
    made.state.mkdir(mode=0o700)
    return made


def accept(story: Story, prepared: Prepared, count: int = 3) -> None:
    """Claim and settle some batches, and mark both as the writer does."""
    checkpoint = prepared.checkpoint
    batches = checkpoint.claim(limit=count, max_devices=None, now=NOW)
    story._mark(prepared, batches)
    checkpoint.record(
        [Outcome(b.number, BatchState.ACCEPTED, len(b.targets), 1, NOW, NOW, task_id="t-1") for b in batches],
        now=NOW,
    )
    story._mark(prepared, [])


def without_the_end_of_its_wal(story: Story, prepared: Prepared) -> None:
    """Kill the process, and damage the last commit of its WAL, so that SQLite drops it."""
    kept = story.folder / "killed"
    shutil.copytree(story.state, kept)
    prepared.close()
    shutil.rmtree(story.state)
    kept.rename(story.state)
    wal = story.state / "fleet.db-wal"
    wal.write_bytes(wal.read_bytes()[:-1])


def states(checkpoint: Any) -> list[str]:
    return [row.state for row in checkpoint.rows()]


def test_lost_outcomes_are_told_and_in_doubt(story: Story) -> None:
    """Batches that were told as accepted, and are not any more, are a rebuilt run's doubts; readers warn."""
    prepared = story.prepare(story.state)
    accept(story, prepared)
    without_the_end_of_its_wal(story, prepared)
    path = story.state / "fleet.db"
    lost = read_lost_commits(path, story.state)
    assert lost is not None
    assert "1 commits older" in lost
    with pytest.raises(CheckpointError, match="older than what the registry remembers"):
        story.prepare(story.state, resume=True)
    prepared = story.prepare(story.state)
    assert any("rebuilt" in note for note in prepared.notes)
    assert states(prepared.checkpoint) == ["in_doubt"] * 3 + ["planned"] * 57
    prepared.close()
    assert read_lost_commits(path, story.state) is None


def test_lost_outcomes_outside_the_window_are_refused(story: Story) -> None:
    """Nobody can ask again for what was lost, so nothing is sent before somebody looked."""
    prepared = story.prepare(story.state)
    accept(story, prepared)
    without_the_end_of_its_wal(story, prepared)
    story.now = NOW + 3_600
    with pytest.raises(CheckpointError, match="cannot be rebuilt: the first call is older"):
        story.prepare(story.state)


def test_a_plan_that_lost_its_edit_is_not_resumed(story: Story) -> None:
    """The operator took devices out; a resume of the plan before that would send to them."""
    prepared = story.prepare(story.state)
    accept(story, prepared)
    prepared.checkpoint.release(now=NOW)
    prepared.close()
    before = (story.state / "fleet.db").read_bytes()
    edited = story.prepare(story.state, targets=IDS[:-30])
    edited.checkpoint.release(now=NOW)
    edited.close()
    (story.state / "fleet.db").write_bytes(before)
    with pytest.raises(CheckpointError, match="the last edit of run fleet is not in"):
        story.prepare(story.state, resume=True)


def test_an_edit_that_a_kill_cut_off_is_made_again(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry is told of an edit before it is made: until then nothing but the manifest may go on."""
    prepared = story.prepare(story.state)
    accept(story, prepared)
    prepared.checkpoint.release(now=NOW)
    prepared.close()

    def killed(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(SqliteCheckpoint, "edit", killed)
        with pytest.raises(SystemExit):
            story.prepare(story.state, targets=IDS[:-30])
    with pytest.raises(CheckpointError, match="the last edit"):
        story.prepare(story.state, resume=True)
    edited = story.prepare(story.state, targets=IDS[:-30])
    assert states(edited.checkpoint)[-3:] == ["cancelled"] * 3
    edited.close()


def planned(story: Story) -> Path:
    """Return a checkpoint that ended cleanly."""
    prepared = story.prepare(story.state)
    accept(story, prepared)
    prepared.checkpoint.release(now=NOW)
    prepared.close()
    return story.state / "fleet.db"


def test_a_flipped_bit_in_a_row_is_found(story: Story) -> None:
    """Every bit of every page is summed: a task id or a device id that changed is not believed."""
    path = planned(story)
    good = path.read_bytes()
    for word in (b"t-1", b"smd-00500"):
        bad = bytearray(good)
        bad[bad.index(word) + len(word) - 1] ^= 1
        path.write_bytes(bad)
        for read_only in (True, False):
            with pytest.raises(CheckpointCorrupt, match="sum it was written with"):
                list(SqliteCheckpoint.open(path, read_only=read_only).rows())


def test_a_page_that_was_cut_off_is_found(story: Story) -> None:
    """SQLite reads zeros for what is missing of the last page, and verifies no sum: the size tells."""
    path = planned(story)
    path.write_bytes(path.read_bytes()[:-1_000])
    for read_only in (True, False):
        with pytest.raises(CheckpointCorrupt, match="ends within a page"):
            SqliteCheckpoint.open(path, read_only=read_only)


def test_a_page_that_the_wal_has_whole_is_written_again(story: Story) -> None:
    """A disk that filled while the WAL moved into the file has lost nothing."""
    prepared = story.prepare(story.state)
    accept(story, prepared, 40)
    kept = story.folder / "killed"
    shutil.copytree(story.state, kept)
    prepared.close()
    path = kept / "fleet.db"
    with path.open("ab") as file:
        file.write(b"half a page")
    SqliteReader.open(path, read_only=True).close()
    checkpoint = SqliteCheckpoint.open(path)
    assert states(checkpoint) == ["accepted"] * 40 + ["planned"] * 20
    checkpoint.close()
    assert path.stat().st_size % 4096 == 0


def test_what_another_program_wrote_can_be_copied(story: Story, tmp_path: Path) -> None:
    """A plain SQLite that moves a killed run's WAL into the file leaves sums behind that do not fit."""
    prepared = story.prepare(story.state)
    accept(story, prepared)
    killed = tmp_path / "killed"
    shutil.copytree(story.state, killed)
    prepared.close()
    path = killed / "fleet.db"
    plain = sqlite3.connect(path)
    assert plain.execute("SELECT count(*) FROM outcome").fetchone() == (3,)
    plain.close()
    with pytest.raises(CheckpointCorrupt, match="sum it was") as refused:
        SqliteCheckpoint.open(path)
    assert refused.value.hint
    assert "backup --any-sums" in refused.value.hint
    with pytest.raises(CheckpointCorrupt):
        back_up(path, tmp_path / "copy.db")
    made = back_up(path, tmp_path / "copy.db", any_sums=True)
    assert (made.counts.accepted, made.counts.devices) == (30, 600)
    copy = SqliteCheckpoint.open(tmp_path / "copy.db")
    assert states(copy) == ["accepted"] * 3 + ["planned"] * 57
    copy.close()


def test_a_file_of_format_2_goes_on(story: Story) -> None:
    """It has no sums; it is read, written and counted as any other."""
    path = planned(story)
    story_of_old = apsw.Connection(":memory:")
    with story_of_old.backup("main", pages.connect(path), "main") as backup:
        backup.step(-1)
    story_of_old.execute("PRAGMA user_version=2")
    script = "\n".join(
        f"{sql};" for (sql,) in story_of_old.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")
    )
    rows = {
        table: story_of_old.execute(f"SELECT * FROM {table}").fetchall()
        for table in ("run", "lane", "batch", "claim", "outcome")
    }
    path.unlink()
    path.touch(mode=0o600)
    old = apsw.Connection(str(path))
    old.execute(f"{script} PRAGMA application_id={0x534E4F57}; PRAGMA user_version=2").fetchall()
    for table, content in rows.items():
        for row in content:
            old.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)
    old.close()
    prepared = story.prepare(story.state)
    assert states(prepared.checkpoint) == ["accepted"] * 3 + ["planned"] * 57
    accept(story, prepared)
    prepared.checkpoint.release(now=NOW)
    prepared.close()
    again = SqliteReader.open(path, read_only=True)
    assert again.counts().accepted == 60
    again.close()


def test_sums_that_cannot_be_kept_are_not_spoilt(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SQLite's sums at hand a file that has them is read, and refused for writing."""
    path = planned(story)
    monkeypatch.setattr(pages, "_sums", lambda: None)
    reader = SqliteReader.open(path, read_only=True)
    assert reader.counts().accepted == 30
    reader.close()
    with pytest.raises(CheckpointIo, match="apsw"):
        SqliteCheckpoint.open(path)
    fresh = SqliteCheckpoint.open(story.folder / "fresh.db", create=True)
    assert fresh._db.reserve_bytes("main") == 0
    fresh.close()


def test_a_build_without_the_extension_has_no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """An apsw built from source may lack it; nothing else depends on it."""
    monkeypatch.setattr(apsw.sqlite_extra, "has", lambda _name: None)
    assert pages._sums.__wrapped__() is None


def test_a_flipped_bit_in_the_registry_is_found(story: Story) -> None:
    """What detects damage is sealed itself: any bit that changes is found, or changes nothing."""
    planned(story)
    registry = Registry(story.state)
    good = registry.get("fleet")
    path = story.state / "registry" / "fleet.json"
    data = path.read_bytes()
    for at in range(len(data)):
        for bit in (0, 2, 5):
            bad = bytearray(data)
            bad[at] ^= 1 << bit
            path.write_bytes(bad)
            try:
                found = registry.get("fleet")
            except CheckpointCorrupt:
                continue
            assert found == good


def test_a_plan_or_a_pulse_that_cannot_be_read(story: Story) -> None:
    """A plan that is no JSON is damage; a pulse that is none costs a line of `status` and nothing else."""
    path = planned(story)
    raw = pages.connect(path)
    raw.execute("UPDATE run SET pulse = '{'")
    reader = SqliteReader.open(path, read_only=True)
    assert reader.standing().pulse is None
    assert reader.calls_per_s(NOW + 5, window_s=10) == 0.3
    raw.execute("UPDATE run SET plan = '{'")
    raw.close()
    with pytest.raises(CheckpointCorrupt, match="holds a plan that cannot be read"):
        reader.plan()
    reader.close()
    with pytest.raises(CheckpointCorrupt, match="holds a plan that cannot be read"):
        story.prepare(story.state)


def test_what_readers_say_of_the_registry(story: Story) -> None:
    """A checkpoint without a plan has lost nothing; a registry that cannot be read is told."""
    empty = story.folder / "empty.db"
    SqliteCheckpoint.open(empty, create=True).close()
    assert read_lost_commits(empty, story.state) is None
    path = planned(story)
    assert read_lost_commits(path, story.state) is None
    copy = story.folder / "copy.db"
    back_up(path, copy)
    prepared = story.prepare(story.state)
    accept(story, prepared)
    prepared.checkpoint.release(now=NOW)
    prepared.close()
    assert str(path) in (read_lost_commits(copy, story.state) or "")
    (story.state / "registry" / "fleet.json").write_bytes(b"{")
    assert "damaged" in (read_lost_commits(path, story.state) or "")


def test_a_reconcile_that_fails_leaves_no_claim_of_an_old_copy_to_be_resent(story: Story) -> None:
    """What the copy knew as on the wire may have been split since: only a reconcile that ends may free it."""
    prepared = story.prepare(story.state)
    (batch,) = prepared.checkpoint.claim(limit=1, max_devices=None, now=NOW)
    story._mark(prepared, [batch])
    old = story.folder / "old.db"
    back_up(story.state / "fleet.db", old)
    split = Outcome(batch.number, BatchState.SPLIT, len(batch.targets), 1, NOW, NOW)
    halves = (batch.targets[:5], batch.targets[5:])
    story._mark(prepared, prepared.checkpoint.split(split, halves, now=NOW))
    prepared.close()
    for path in story.state.glob("fleet.db*"):
        path.unlink()
    shutil.copyfile(old, story.state / "fleet.db")
    (story.state / "fleet.db").chmod(0o600)
    settings = Settings(state_dir=story.state, region="us-west-2", take_over=True).resolve(None)
    Recovery(settings).of_stored(story.state / "fleet.db").close(now=NOW)  # the service could not be asked
    again = story.prepare(story.state)
    assert again.checkpoint.doubts(after=0, limit=9) == []
    assert again.checkpoint.doubt_kinds(0.0).keys() == {"held"}
    again.close()
