"""What only a file can do: be foreign, full, shared, taken over, or read beside a live run."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import apsw
import pytest

from dispatcher.checkpoint.base import Lost, Plan
from dispatcher.checkpoint.pages import connect
from dispatcher.checkpoint.reading import SqliteReader
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.checkpoint.statements import load_schema
from dispatcher.errors import CheckpointCorrupt, CheckpointError, CheckpointIo, CheckpointLeased
from dispatcher.model import TRANSITIONS, Batch, BatchState, Counts, Lane, Outcome
from dispatcher.plan import cut

if TYPE_CHECKING:
    from pathlib import Path

PLAN = Plan(
    plan_id="p",
    run="nightly",
    command="reboot",
    region="us-west-2",
    intent_digest="i",
    selection_digest="s",
    inventory_digest="v",
    planned_at=900.0,
)
LANES = [Lane(index=0, region="us-west-2")]


def planned(path: Path, devices: int = 100) -> SqliteCheckpoint:
    checkpoint = SqliteCheckpoint.open(path, create=True)
    checkpoint.write_plan(PLAN, LANES, cut([[f"smd-{number:06d}" for number in range(devices)]]))
    checkpoint.acquire("me", now=1000.0)
    return checkpoint


def accepted(batch: Batch) -> Outcome:
    return Outcome(batch.number, BatchState.ACCEPTED, len(batch.targets), 1, 1001.0, 1001.0, "st-1", "arn")


def test_every_file_is_private(tmp_path: Path) -> None:
    """The checkpoint, its -wal and its -shm are for their owner only, whatever the umask."""
    checkpoint = planned(tmp_path / "run.db")
    found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert found == {"run.db": 0o600, "run.db-wal": 0o600, "run.db-shm": 0o600}
    checkpoint.close()


def test_a_missing_file_is_not_made(tmp_path: Path) -> None:
    """Reading or resuming names the file that is not there, and leaves none behind."""
    with pytest.raises(CheckpointIo, match=r"run\.db"):
        SqliteReader.open(tmp_path / "run.db", read_only=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read_only", [False, True])
def test_foreign_files_are_refused_untouched(tmp_path: Path, read_only: bool) -> None:
    """Another program's database, and bytes that are none, are named and left as they were."""
    path = tmp_path / "other.db"
    other = apsw.Connection(str(path))
    other.execute("CREATE TABLE notes (text)")
    other.close()
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"not a database, but long enough to look at " * 40)
    for each in (path, garbage):
        before = each.read_bytes()
        with pytest.raises(CheckpointCorrupt, match=str(each)):
            SqliteCheckpoint.open(each, read_only=read_only)
        assert each.read_bytes() == before


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """A file of a later version names both formats."""
    path = tmp_path / "run.db"
    planned(path).close()
    connection = connect(path)
    connection.execute("PRAGMA user_version=9")
    connection.close()
    with pytest.raises(CheckpointCorrupt, match=r"format 9, this program reads 2 and 3"):
        SqliteCheckpoint.open(path)


def test_links_and_folders_are_refused(tmp_path: Path) -> None:
    """A symbolic link is never followed, not even when it dangles; a folder is no file."""
    planned(tmp_path / "real.db").close()
    link, dangling = tmp_path / "link.db", tmp_path / "dangling.db"
    link.symlink_to(tmp_path / "real.db")
    dangling.symlink_to(tmp_path / "nowhere.db")
    for path in (link, dangling):
        with pytest.raises(CheckpointIo, match="symbolic link"):
            SqliteCheckpoint.open(path, create=True)
    with pytest.raises(CheckpointCorrupt, match="not a file"):
        SqliteCheckpoint.open(tmp_path, create=True)
    assert not (tmp_path / "nowhere.db").exists()


def test_a_folder_that_cannot_hold_files_is_named(tmp_path: Path) -> None:
    """A path below a plain file is an I/O error with a hint, not a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointIo, match=r"file/run\.db") as raised:
        SqliteCheckpoint.open(tmp_path / "file" / "run.db", create=True)
    assert raised.value.hint


def test_a_read_only_connection_explains_itself(tmp_path: Path) -> None:
    """Writing where nothing may be written is `CheckpointIo`, before anything is sent."""
    planned(tmp_path / "run.db").close()
    checkpoint = SqliteCheckpoint.open(tmp_path / "run.db", read_only=True)
    with pytest.raises(CheckpointIo, match="read-only"):
        checkpoint.acquire("me", now=1.0)
    checkpoint.close()


def test_a_damaged_page_is_corrupt(tmp_path: Path) -> None:
    """Bytes overwritten in mid-file are reported as damage of that file."""
    path = tmp_path / "run.db"
    checkpoint = planned(path, 5_000)
    checkpoint.release(now=1001.0)
    checkpoint.close()
    with path.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(b"\xff" * 4096 * 12)
    reader = SqliteReader.open(path, read_only=True)
    with pytest.raises(CheckpointCorrupt, match=r"run\.db"):
        list(reader.rows())
    reader.close()


def test_a_text_that_is_no_text_is_corrupt(tmp_path: Path) -> None:
    """A flipped bit inside a text is damage, not a traceback."""
    path = tmp_path / "run.db"
    checkpoint = planned(path, 10)
    checkpoint._db.execute("UPDATE batch SET targets = CAST(x'ff41' AS TEXT)")
    checkpoint._db.execute("UPDATE run SET plan = CAST(x'ff41' AS TEXT)")
    with pytest.raises(CheckpointCorrupt):
        list(checkpoint.rows())
    with pytest.raises(CheckpointCorrupt):
        checkpoint.plan()
    checkpoint.close()


def test_a_full_database_loses_nothing(tmp_path: Path) -> None:
    """Out of space is `CheckpointIo`; after reopening, every block is there whole or not at all."""
    path = tmp_path / "run.db"
    checkpoint = planned(path, 20_000)
    batches = checkpoint.claim(limit=2_000, max_devices=None, now=1001.0)
    pages = int(checkpoint._db.execute("PRAGMA page_count").get)
    checkpoint._db.execute(f"PRAGMA max_page_count={pages + 8}")
    written = 0

    def fill() -> None:
        nonlocal written
        for start in range(0, len(batches), 100):
            checkpoint.record([accepted(batch) for batch in batches[start : start + 100]], now=1002.0)
            written += 100

    with pytest.raises(CheckpointIo, match="no space left") as raised:
        fill()
    assert raised.value.hint
    assert 0 < written < 2_000
    checkpoint.close()
    again = SqliteCheckpoint.open(path)
    again.acquire("me", now=2000.0)
    expected = Counts(devices=20_000, accepted=10 * written, in_doubt=20_000 - 10 * written, batches=2_000)
    assert again.counts() == expected
    again.close()


_FULL_DISK = """
import resource, signal
from pathlib import Path
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.errors import CheckpointIo
from dispatcher.model import BatchState, Outcome
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoint = SqliteCheckpoint.open(Path({path!r}))
checkpoint.acquire("me", now=1000.0)
batches = checkpoint.claim(limit=2000, max_devices=None, now=1001.0)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
written = 0
try:
    while written < len(batches):
        block = batches[written : written + 50]
        checkpoint.record(
            [Outcome(b.number, BatchState.ACCEPTED, 10, 1, 1.0, 1.0, "st-1", "arn") for b in block], now=1.0
        )
        written += 50
except CheckpointIo:
    print(written)
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A disk that fills up under the -wal is `CheckpointIo`; what was told as written is there."""
    path = tmp_path / "run.db"
    planned(path, 20_000).close()
    code = _FULL_DISK.format(path=str(path), size=150_000)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = int(done.stdout)
    assert 0 < written < 2_000
    again = SqliteCheckpoint.open(path)
    again.acquire("me", now=2000.0)
    assert again.counts().accepted in (10 * written, 10 * written + 500)
    assert again.counts().in_doubt == 20_000 - again.counts().accepted
    again.close()


def test_a_reader_sees_one_instant_beside_a_live_run(tmp_path: Path) -> None:
    """Rows and counts read beside a writer are a snapshot, and the writer is not held up."""
    writer = planned(tmp_path / "run.db")
    batches = writer.claim(limit=100, max_devices=None, now=1001.0)
    reader = SqliteReader.open(tmp_path / "run.db", read_only=True)
    rows = reader.rows()
    states = [next(rows).state]
    writer.record([accepted(batch) for batch in batches], now=1002.0)
    states += [row.state for row in rows]
    assert states == ["sent"] * 10
    assert reader.counts() == Counts(devices=100, accepted=100, batches=10)
    with pytest.raises(CheckpointError):
        reader._value("DELETE FROM outcome")
    reader.close()
    writer.close()


def test_a_holder_that_was_taken_over_writes_nothing_more(tmp_path: Path) -> None:
    """After a second acquire every write of the first holder raises, and none of it happened."""
    first = planned(tmp_path / "run.db")
    one, two = first.claim(limit=2, max_devices=None, now=1001.0)
    second = SqliteCheckpoint.open(tmp_path / "run.db")
    assert second.acquire("other", now=1002.0) == 2
    before = [*second.rows()], second.standing()
    for write in (
        lambda: first.claim(limit=1, max_devices=None, now=9.0),
        lambda: first.give_back([one.number], now=9.0),
        lambda: first.record([accepted(one)], now=9.0),
        lambda: first.split(accepted(two), [two.targets], now=9.0),
        lambda: first.undo_split(1, now=9.0),
        lambda: first.doubt_up_to(Lost(9, 9.0), now=9.0),
        lambda: first.edit(PLAN, work=(), added=(), now=9.0),
        lambda: first.amend(PLAN, now=9.0),
        lambda: first.learn(rate=1.0, now=9.0),
        lambda: first.finish(0, now=9.0),
        lambda: first.check_lease(now=9.0),
        lambda: first.release(now=9.0),
        lambda: first.write_plan(PLAN, LANES, ()),
    ):
        with pytest.raises(CheckpointLeased):
            write()
    assert ([*second.rows()], second.standing()) == before
    first.close()
    second.close()


def test_planning_anew_never_lowers_the_epoch(tmp_path: Path) -> None:
    """A new plan over an old one keeps the epoch, or a sleeping holder of that epoch could write again."""
    first = planned(tmp_path / "run.db")
    second = SqliteCheckpoint.open(tmp_path / "run.db")
    second.write_plan(PLAN, LANES, cut([["a"]]))
    assert second.acquire("other", now=1002.0) == 2
    with pytest.raises(CheckpointLeased):
        first.claim(limit=1, max_devices=None, now=1003.0)
    first.close()
    second.close()


def test_a_failed_planning_leaves_a_wal_file(tmp_path: Path) -> None:
    """Planning drops the WAL for a while; when it fails, the next holder has it back."""
    checkpoint = planned(tmp_path / "run.db")

    def broken() -> list[Batch]:
        raise CheckpointError("a bad row")

    with pytest.raises(CheckpointError, match="a bad row"):
        checkpoint.write_plan(PLAN, LANES, (batch for batch in broken()))
    checkpoint.close()
    again = SqliteCheckpoint.open(tmp_path / "run.db")
    again.acquire("me", now=2000.0)
    assert again._db.execute("PRAGMA journal_mode").get == "wal"
    assert again._db.execute("PRAGMA synchronous").get == 2  # FULL
    again.close()


def test_a_lease_without_a_plan_is_refused(tmp_path: Path) -> None:
    """There is nothing to hold before a plan is committed."""
    checkpoint = SqliteCheckpoint.open(tmp_path / "run.db", create=True)
    with pytest.raises(CheckpointError, match="no plan"):
        checkpoint.acquire("me", now=1.0)
    checkpoint.close()


def test_the_schema_agrees_with_the_table_of_states() -> None:
    """An outcome is any state but planned and sent, which are the two that have no row."""
    (found,) = re.findall(r"state IN \(([^)]*)\)", load_schema())
    states = {BatchState(word.strip(" '")) for word in found.split(",")}
    assert states == TRANSITIONS.keys() - {BatchState.PLANNED, BatchState.SENT}
    overwritable = {state for state in states if TRANSITIONS[state] & {BatchState.ACCEPTED}}
    assert overwritable == {BatchState.IN_DOUBT}
    assert TRANSITIONS[BatchState.IN_DOUBT] == {BatchState.IN_DOUBT, BatchState.ACCEPTED}


def test_every_table_is_strict(tmp_path: Path) -> None:
    """No table takes a value of another type."""
    checkpoint = planned(tmp_path / "run.db")
    tables = checkpoint._db.execute("PRAGMA table_list").fetchall()
    ours = {row[1]: row[5] for row in tables if not str(row[1]).startswith("sqlite_")}
    assert ours == dict.fromkeys(("run", "lane", "batch", "claim", "outcome"), 1)
    checkpoint.close()
