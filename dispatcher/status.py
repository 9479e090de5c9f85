"""How a run stands, read from its checkpoint by any process, also while the run is live."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dispatcher.checkpoint.lease import Holder, is_locked, lock_paths
from dispatcher.checkpoint.registry import Damaged, Registry
from dispatcher.errors import DispatcherError
from dispatcher.locate import of_run, stored_plan
from dispatcher.model import MAX_TARGETS, Command
from dispatcher.report import instant, open_reader

if TYPE_CHECKING:
    from dispatcher.checkpoint.base import Pulse, Standing
    from dispatcher.checkpoint.reading import SqliteReader
    from dispatcher.checkpoint.registry import Record
    from dispatcher.model import Counts
    from dispatcher.settings import Settings

RATE_WINDOW_S = 10.0
"""The live rate is that of the last so many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Devices in doubt, by what may become of them."""

    unanswered: int
    """Claimed or on the wire: a live process waits for their answers, a dead one left them."""
    resendable: int
    """Inside the token window: the next pass or process asks again."""
    resend_until: str | None
    """When the first of the resendable expires, RFC 3339."""
    expired: int
    """Past the token window: never resent."""
    held: int
    """Parked by an edit, or disowned by the service: only a reconcile may settle them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a run stands; the object of `status --json`."""

    run: str
    state: str
    """`running`, `planned`, `resumable`, `in_doubt` or `finished`."""
    command: str
    checkpoint: str
    devices: int
    accepted: int
    rejected: int
    in_doubt: int
    pending: int
    cancelled: int
    batches: int
    split: int
    doubt: Doubt
    rate_per_s: float | None
    """Batches settled per second of late; None unless the run is live."""
    learned_rate_per_s: float | None
    """What the service was found to allow; None where it never throttled."""
    eta_s: float | None
    """Seconds left at that rate; None unless the run is live and moving."""
    process: dict[str, Any] | None
    """The `Pulse` of the process at it, or of the last one: its calls, throttles, faults, rate, lane."""
    heartbeat_at: str | None
    planned_at: str | None
    finished_at: str | None
    exit: int | None

    def as_json(self) -> dict[str, Any]:
        """Return the documented object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableRun:
    """A run that the state folder remembers and that cannot be read."""

    run: str
    state: str = "unreadable"
    checkpoint: str
    error: str
    """One sentence."""

    def as_json(self) -> dict[str, Any]:
        """Return the documented object."""
        return asdict(self)


def read_runs(settings: Settings) -> list[Status | UnreadableRun]:
    """Read how every run of the state folder stands.

    Raises:
        CheckpointError: the state folder cannot be used.
    """
    return [_read_one(record, settings) for record in Registry(settings.resolve().state_dir).all()]


def _read_one(record: Record | Damaged, settings: Settings) -> Status | UnreadableRun:
    if isinstance(record, Damaged):
        return UnreadableRun(run=record.run, checkpoint=str(record.path), error=record.error.one_line())
    try:
        return read_status(of_run(record.run, Path(record.checkpoint)), settings)
    except DispatcherError as error:
        return UnreadableRun(run=record.run, checkpoint=record.checkpoint, error=error.one_line())


def read_status(path: Path, settings: Settings) -> Status:
    """Read how the run of the checkpoint at `path` stands; `settings` as for resuming it.

    Raises:
        CheckpointError: it cannot be read, or holds no committed plan.
    """
    reader = open_reader(path)
    try:
        plan, standing, counts = stored_plan(reader), reader.standing(), reader.counts()
        resolved = settings.resolve(command=Command(plan.command), stored=plan.limits)
        live = any(is_locked(lock) for lock in lock_paths(path, resolved.state_dir, plan.run))
        rate = _recent_rate(reader, standing) if live else None
        return Status(
            run=plan.run,
            state=_state(live=live, counts=counts),
            command=plan.command,
            checkpoint=str(path),
            devices=counts.devices,
            accepted=counts.accepted,
            rejected=counts.rejected,
            in_doubt=counts.in_doubt,
            pending=counts.pending,
            cancelled=counts.cancelled,
            batches=counts.batches,
            split=counts.split,
            doubt=_doubt(reader, resolved.resend_window_s, counts),
            rate_per_s=None if rate is None else round(rate, 2),
            learned_rate_per_s=None if standing.learned_rate is None else round(standing.learned_rate, 3),
            eta_s=_eta_s(counts, rate, standing.pulse),
            process=None if standing.pulse is None else _process(standing.pulse),
            heartbeat_at=instant(standing.heartbeat_at or None),
            planned_at=instant(plan.planned_at),
            finished_at=instant(standing.finished_at),
            exit=standing.exit_code,
        )
    finally:
        reader.close()


def _process(pulse: Pulse) -> dict[str, Any]:
    return msgspec.structs.asdict(pulse) | {"began_at": instant(pulse.began_at)}


def _recent_rate(reader: SqliteReader, standing: Standing) -> float:
    """Return settled batches per second of late: in the last 10 s, or since its process began."""
    age_s = RATE_WINDOW_S
    if standing.holder is not None:
        with contextlib.suppress(msgspec.DecodeError):
            began_at = msgspec.json.decode(standing.holder, type=Holder).since
            age_s = standing.heartbeat_at - began_at
    return reader.calls_per_s(standing.heartbeat_at, window_s=min(RATE_WINDOW_S, max(0.1, age_s)))


def _eta_s(counts: Counts, rate: float | None, pulse: Pulse | None) -> float | None:
    left = -(-counts.pending // MAX_TARGETS)
    if not rate or not left or (pulse is not None and pulse.lane_state not in ("open", "slowed")):
        return None  # a paused lane settles nothing, and nobody knows for how long
    return round(left / rate, 1)


def _doubt(reader: SqliteReader, window_s: float, counts: Counts) -> Doubt:
    found = reader.doubt_kinds(time.time() - window_s) if counts.in_doubt else {}
    resting = {kind: devices for kind, (devices, _) in found.items()}
    return Doubt(
        unanswered=max(0, counts.in_doubt - sum(resting.values())),  # read a moment later
        resendable=resting.get("resendable", 0),
        resend_until=instant(found["resendable"][1] + window_s) if "resendable" in found else None,
        expired=resting.get("expired", 0),
        held=resting.get("held", 0),
    )


def _state(*, live: bool, counts: Counts) -> str:
    if live:
        return "running"
    if counts.pending:
        return "resumable" if counts.accepted or counts.in_doubt else "planned"
    return "in_doubt" if counts.in_doubt else "finished"
