"""What must hold after a crash, after a process, and at the end of all: checkpoint against ledger."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

import apsw

from dispatcher.checkpoint.reading import SqliteReader
from dispatcher.checkpoint.registry import Registry
from dispatcher.errors import CheckpointCorrupt, CheckpointError, DispatcherError, RunStopped, UsageError
from dispatcher.model import Kind
from dispatcher.plan import ClientTokens
from dispatcher.report import receipts

if TYPE_CHECKING:
    from tests.simulation.world import Process, World


def rows_by_token(checkpoint: Any, tokens: ClientTokens) -> dict[str, tuple[str, Any]]:
    """Return (state, row) of every batch that stands for devices, by client token."""
    return {tokens.of(row.targets): (row.state, row) for row in checkpoint.rows()}


def kind_of_note(note: str) -> str:
    for word in ("rebuilt", "planned anew", "edited", "duplicate", "taking over", "bad rows"):
        if word in note:
            return word
    return "other"


@contextlib.contextmanager
def _copy(world: World) -> Any:
    """Read a copy of the checkpoint as the next process would find it; None where there is no plan."""
    copy = world.folder / "copy.db"
    for end in ("", "-wal", "-journal"):
        source = world.checkpoint.with_name(world.checkpoint.name + end)
        target = copy.with_name(copy.name + end)
        target.unlink(missing_ok=True)
        if source.exists():
            shutil.copyfile(source, target)
    reader = None
    connection = None
    try:
        if copy.exists() and copy.stat().st_size:
            connection = apsw.Connection(str(copy), vfs="unix")
            reader = SqliteReader(copy, connection)
            if not connection.execute("SELECT count(*) FROM sqlite_schema").get or reader.plan() is None:
                reader = None
        yield reader
    finally:
        if connection is not None:
            connection.close(True)


def check_after_crash(world: World, process: Process) -> None:
    """What reached the wire is claimed on the disk, what was told is settled there, the registry knows."""
    witness = world.witness
    if process.overtaken_s is not None or world.is_amnesiac:
        return
    with _copy(world) as reader:
        if reader is None:
            if process.departures:
                witness.breaks(4, f"{process.name} sent, and after the crash there is no plan")
            return
        try:
            rows = rows_by_token(reader, ClientTokens(reader.plan()))
        except CheckpointError as error:
            witness.breaks(6, f"after the crash of {process.name} the checkpoint is damaged: {error}")
            return
        for state, _row in rows.values():
            world.count("stored", state)
        if process.departures:
            _check_registry(world, process, rows)
        if process.reader is not None or process.departures:
            witness.check_stored(rows, when=f"{process.name} crashed")


def _check_registry(world: World, process: Process, rows: dict[str, tuple[str, Any]]) -> None:
    record = Registry(process.host.state).get("sim")
    if record is None or record.first_sent_at is None:
        world.witness.breaks(4, f"{process.name} sent, and the registry does not know")
        return
    for token, departures in world.witness.by_token.items():
        if any(old.process is process for old in departures) and token in rows:
            number = rows[token][1].number
            if number > record.mark:
                world.witness.breaks(4, f"batch {number} was sent above the registry's mark {record.mark}")


def check_released(world: World) -> None:
    """What a reconcile put back into the plan has no task; of a reboot it may put nothing back."""
    if world.scenario.command == "reboot":
        world.witness.breaks(1, "a reconcile put a reboot back into the plan without being told to")
    made = {task.client_token for task in world.service.tasks.in_order}
    with world.looking(), _copy(world) as reader:
        rows = {} if reader is None else rows_by_token(reader, ClientTokens(reader.plan()))
    for token, (state, row) in rows.items():
        if state != "planned":
            continue
        if token in made:
            world.witness.breaks(1, f"a reconcile put batch {row.number} back, and it has a task")
        for departure in world.witness.by_token.get(token, ()):
            departure.is_ruled_out = True


def rule_out(world: World) -> None:
    """After a reconcile that read the whole list: a batch that nobody knows, without a task, is no more."""
    made = {task.client_token for task in world.service.tasks.in_order}
    with world.looking(), _copy(world) as reader:
        rows = {} if reader is None else rows_by_token(reader, ClientTokens(reader.plan()))
    for token, departures in world.witness.by_token.items():
        if token not in rows and token not in made:
            for departure in departures:
                departure.is_ruled_out = True


def check_process(world: World, process: Process) -> None:
    """How a process may end: with a judgement or an error of ours, and never with damage."""
    error, witness = process.error, world.witness
    if process.is_killed:
        return
    if error is not None and not isinstance(error, DispatcherError):
        witness.breaks(0, f"{process.name} failed: {type(error).__name__}: {error}")
    is_corrupt = (
        isinstance(error, CheckpointCorrupt) and "not a dispatcher checkpoint; " not in error.one_line()
    )
    if is_corrupt or isinstance(error, UsageError):
        witness.breaks(6, f"{process.name}: {error.one_line()}")
    is_bug = any(text in str(error) for text in ("this is a bug", "failed ("))
    if isinstance(error, CheckpointError) and is_bug:
        witness.breaks(2, f"{process.name}: {error.one_line()}")
    summary = process.summary or (error.summary if isinstance(error, DispatcherError) else None)
    if summary is not None:
        counts = summary.counts
        classes = counts.accepted + counts.rejected + counts.in_doubt + counts.pending + counts.cancelled
        if classes != counts.devices:
            witness.breaks(2, f"{process.name}: the classes sum to {classes}, not {counts.devices}")
    if error is None and counts_pending(process) and "limit" not in process.limits:
        witness.breaks(6, f"{process.name} ended with {counts_pending(process)} devices pending")
    if not isinstance(error, CheckpointError) and process.departures:
        with world.looking(), _copy(world) as reader:
            if reader is not None:
                for (state,) in reader._db.execute("SELECT DISTINCT state FROM outcome"):
                    world.count("stored", state)
                _check_settled(world, process, rows_by_token(reader, ClientTokens(reader.plan())))


def counts_pending(process: Process) -> int:
    return process.summary.counts.pending if process.summary is not None else 0


def _check_settled(world: World, process: Process, rows: dict[str, tuple[str, Any]]) -> None:
    """After a process that ended by itself all is settled, or in doubt for a reason."""
    for token, (state, row) in rows.items():
        departures = world.witness.by_token.get(token, [])
        if state != "accepted" and any(
            old.process is process and old.answer is not None and old.answer.kind is Kind.ACCEPTED
            for old in departures
        ):
            world.witness.breaks(6, f"{process.name} ended, and batch {row.number}, accepted, is {state}")
        if state == "sent":
            world.witness.breaks(
                6, f"{process.name} ended, and batch {row.number} is neither settled nor given back"
            )
        has_reason = any(old.may_have_created for old in departures) or world.has_broken_off
        if state == "in_doubt" and not has_reason:
            world.witness.breaks(2, f"batch {row.number} is in doubt, and nothing can have come of it")


def is_final(world: World, process: Process) -> bool:
    """Whether a process without faults ended as it must, or may try once more."""
    error = process.error
    if isinstance(error, RunStopped):
        return "no device was accepted" in error.message
    if error is not None or process.summary is None:
        return False
    summary = process.summary
    if summary.counts.pending:
        return False
    before = world.processes[-2].summary if len(world.processes) > 1 else None
    return summary.already_complete or (before is not None and before.counts == summary.counts)


def check_end(world: World) -> None:
    """Hold the ledger, the receipts and the counts against each other."""
    witness = world.witness
    witness.check_rate()
    tasks = world.service.tasks.in_order
    commanded = Counter(device for task in tasks for device in task.device_ids())
    for device, count in commanded.items():
        if count > 1:
            witness.breaks(1, f"{device} got {count} tasks")
    if not world.checkpoint.exists() or any("liveness" in text for text in witness.broken):
        return
    reader = SqliteReader.open(world.checkpoint, read_only=True)
    try:
        _check_receipts(world, reader, commanded)
        rows = rows_by_token(reader, ClientTokens(reader.plan()))
        if not world.is_amnesiac:
            witness.check_stored(rows, when="at the end")
        _check_doubt(world, rows)
    finally:
        reader.close()


def _check_receipts(world: World, reader: Any, commanded: Counter[str]) -> None:
    witness = world.witness
    tasks = {task.task_id: task for task in world.service.tasks.in_order}
    seen: Counter[str] = Counter()
    states: Counter[str] = Counter()
    named = world.operators.named()
    for receipt in receipts(reader):
        device, state = receipt.device_id, receipt.state
        seen[device] += 1
        states[state] += 1
        task = tasks.get(receipt.task_id or "")
        if state == "accepted":
            if task is None or device not in task.device_ids():
                witness.breaks(3, f"{device} is accepted, and task {receipt.task_id} does not command it")
            elif task.client_token != receipt.client_token and not world.is_replanned:
                witness.breaks(1, f"{device}: the receipt's client token is not the task's")
        elif device in commanded and state != "in_doubt":
            witness.breaks(4, f"{device} has a task and is {state}")
        if state == "rejected" and device not in world.bad and not world.vanished:
            witness.breaks(7, f"{device} is good and is rejected")
        if state == "rejected" and world.scenario.is_wrong_region:
            witness.breaks(7, f"{device} is rejected, and it is the region that is wrong")
        if state == "cancelled" and device in named:
            witness.breaks(8, f"{device} is in the manifest and is cancelled")
        if state == "pending" and device not in named:
            witness.breaks(8, f"{device} is not in the manifest and is pending")
    for device in named - seen.keys():
        witness.breaks(2, f"{device} is in the manifest and has no receipt")
    for device, count in seen.items():
        if count > 1:
            witness.breaks(2, f"{device} has {count} receipts")
    _check_counts(world, reader, states)


def _check_counts(world: World, reader: Any, states: Counter[str]) -> None:
    counts = reader.counts()
    for name in ("accepted", "rejected", "in_doubt", "pending", "cancelled"):
        if getattr(counts, name) != states[name]:
            world.witness.breaks(2, f"{getattr(counts, name)} devices are counted {name}, {states[name]} are")
    last = world.processes[-1]
    summary = last.summary
    if summary is None or summary.counts.pending:
        return
    is_bad = summary.counts.in_doubt or summary.counts.rejected
    if (summary.exit == 0) and summary.counts.in_doubt:
        world.witness.breaks(6, "exit code 0 with devices in doubt")
    if summary.exit == 1 and not is_bad:
        world.witness.breaks(6, "exit code 1 with nothing wrong")


def _check_doubt(world: World, rows: dict[str, tuple[str, Any]]) -> None:
    """At the end only that is in doubt which no process could have settled."""
    witness = world.witness
    names = {item.what for item in world.scenario.items}
    unsettleable = names & {
        "window_passes", "days", "sleep", "sleep_io", "jump", "stop", "takeover", "mismatch", "vanish",
        "edit", "gap", "lose", "stale", "stall",
    }  # fmt: skip
    span_s = world.true_s() - 1_800_000_000.0
    made = {task.client_token for task in world.service.tasks.in_order}
    for token, (state, row) in rows.items():
        if state not in ("in_doubt", "sent"):
            continue
        if token in made:
            witness.breaks(6, f"batch {row.number} is in doubt at the end, and a reconcile finds its task")
        is_poisoned = world.scenario.is_wrong_region or any(device in world.bad for device in row.targets)
        is_for_good = is_poisoned or row.held == 0  # held: what a lost or old checkpoint cannot know
        if not unsettleable and not is_for_good and span_s < 0.7 * world.scenario.limits["token_window_s"]:
            witness.breaks(6, f"batch {row.number} is in doubt at the end, and could have been settled")
