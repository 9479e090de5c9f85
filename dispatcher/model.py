"""The vocabulary: what a batch is, which states it may be in, and the facts of an answer.

Values only: no I/O, no clock, nothing from the rest of the package.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NewType, Self

import msgspec

DeviceId = NewType("DeviceId", str)
"""One managed device's id: 1 to 64 characters, no white space or control characters."""

MAX_TARGETS = 10
"""Targets in one CreateTask call (botocore model `snow-device-management`, shape TargetList)."""


class Command(enum.StrEnum):
    """What a run asks of every device."""

    REBOOT = "reboot"
    UNLOCK = "unlock"


class BatchState(enum.StrEnum):
    """Where a batch stands. `sent` is a claim without an outcome, and counts as in doubt."""

    PLANNED = "planned"
    SENT = "sent"
    IN_DOUBT = "in_doubt"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    SPLIT = "split"
    CANCELLED = "cancelled"


TRANSITIONS: dict[BatchState, frozenset[BatchState]] = {
    # An edit or --limit re-cuts a planned batch (split), or cancels it.
    BatchState.PLANNED: frozenset({BatchState.SENT, BatchState.SPLIT, BatchState.CANCELLED}),
    # sent → planned only when every attempt was answered *not created*.
    BatchState.SENT: frozenset(
        {
            BatchState.ACCEPTED,
            BatchState.REJECTED,
            BatchState.SPLIT,
            BatchState.IN_DOUBT,
            BatchState.PLANNED,
        }
    ),
    # A resend under the same client token may still bring the task id home.
    BatchState.IN_DOUBT: frozenset({BatchState.ACCEPTED, BatchState.IN_DOUBT}),
    BatchState.ACCEPTED: frozenset(),
    BatchState.REJECTED: frozenset(),
    # The systemic check undoes the one split that it tried.
    BatchState.SPLIT: frozenset({BatchState.PLANNED}),
    # A cancelled device that returns to the manifest is re-cut out of its cancelled batch.
    BatchState.CANCELLED: frozenset({BatchState.SPLIT}),
}
"""Every legal move of a run; what is absent is a bug. The SQL `CHECK` and the docs are tested against it."""

RECONCILE_MOVES: dict[BatchState, frozenset[BatchState]] = {
    # Its task was found; it is cut by the tasks of its devices; nothing came of it; its devices have left the
    # manifest and nothing came of it; or it stays, with the evidence.
    BatchState.IN_DOUBT: frozenset(
        {
            BatchState.ACCEPTED,
            BatchState.SPLIT,
            BatchState.PLANNED,
            BatchState.CANCELLED,
            BatchState.IN_DOUBT,
        }
    ),
    # The service had answered *not created*, and there is a task.
    BatchState.REJECTED: frozenset({BatchState.ACCEPTED}),
    # Another runner had sent it, or some of it.
    BatchState.CANCELLED: frozenset({BatchState.ACCEPTED, BatchState.SPLIT}),
}
"""Every legal move of a reconcile, by what the service lists. What is accepted is never moved."""

DEVICE_CLASSES = ("accepted", "rejected", "in_doubt", "pending", "cancelled")
"""What users see. Every planned device is in exactly one, and they sum to the plan."""


class Created(enum.Enum):
    """First fact of an answer: does a task exist because of this attempt?"""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Pace(enum.Enum):
    """Second fact of an answer: what it says about how fast to go on."""

    OK = "ok"
    THROTTLE = "throttle"
    QUOTA = "quota"
    FAULT = "fault"


class Kind(enum.Enum):
    """One row of the facts table (docs/architecture.md "Two facts in every answer"): its word and two facts.

    Policy reads the facts, never a status or a string.
    """

    ACCEPTED = "accepted", Created.YES, Pace.OK  # 200 with a task id
    UNREADABLE = "unreadable", Created.UNKNOWN, Pace.FAULT  # 200 with anything else
    THROTTLED = "throttled", Created.NO, Pace.THROTTLE  # ThrottlingException with a modelled body
    BARE_THROTTLE = "bare_throttle", Created.UNKNOWN, Pace.THROTTLE  # a 429 or 503 that may be a proxy's
    NO_REPLY = "no_reply", Created.UNKNOWN, Pace.FAULT  # other 5xx, reset, time-out after the first byte left
    UNREACHABLE = "unreachable", Created.NO, Pace.FAULT  # DNS, connect refused, TLS: nothing was sent
    POISON = "poison", Created.NO, Pace.OK  # Validation or ResourceNotFound
    QUOTA = "quota", Created.NO, Pace.QUOTA  # ServiceQuotaExceeded
    MISMATCH = "mismatch", Created.UNKNOWN, Pace.OK  # the token was used with other parameters
    ODD = "odd", Created.UNKNOWN, Pace.FAULT  # 3xx, or a 4xx with no modelled code
    DENIED = "denied", Created.NO, Pace.FAULT  # AccessDenied, bad credentials, bad signature
    EXPIRED = "expired", Created.NO, Pace.FAULT  # the service says that the credentials have expired
    NO_CREDENTIALS = "no_credentials", Created.NO, Pace.FAULT  # none at hand that are valid: nothing was sent

    created: Created
    pace: Pace

    def __new__(cls, word: str, created: Created, pace: Pace) -> Self:
        kind = object.__new__(cls)
        kind._value_, kind.created, kind.pace = word, created, pace
        return kind


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one attempt brought back, as facts."""

    kind: Kind
    task_id: str | None = None
    task_arn: str | None = None
    code: str | None = None
    """The service's error code, or a word of ours such as `Timeout`; for people and receipts only."""
    message: str | None = None

    @property
    def created(self) -> Created:
        return self.kind.created

    @property
    def pace(self) -> Pace:
        return self.kind.pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One (account, region) with its own client, token bucket and in-flight window."""

    index: int
    region: str
    account: str | None = None
    """The account where the manifest names it; a learnt account is kept with the run instead."""


class Batch(msgspec.Struct, frozen=True, gc=False):
    """One to ten targets of one lane and one wave: one CreateTask call.

    A struct and not a dataclass, as are `Answer` and `Outcome`: one of each is made per call, and a frozen
    dataclass takes ten times as long to make.
    """

    number: int
    """1-based, never reused within a run."""
    lane: int
    wave: int
    targets: tuple[str, ...]
    """Device ids in ascending order."""
    parent: int | None = None
    """The batch this one was cut from, if any."""
    fresh: bool = True
    """False where the devices were on the wire as part of the parent; `--limit` counts fresh ones."""


class Resend(enum.Enum):
    """Who may send a batch in doubt again, under the same client token and inside its window."""

    ALLOWED = "allowed"
    NEXT_PROCESS = "next_process"
    """Not this process: the service answered *not created* after an attempt nobody can vouch for."""
    NEVER = "never"
    """Only a reconcile may settle it: the service says the token was used with other parameters."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """A batch that may or may not have created a task, with what is known of it."""

    batch: Batch
    first_sent_at: float
    """Unix time of the first attempt (or claim) that was not answered *not created*."""
    attempts: int = 0
    code: str | None = None
    message: str | None = None


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """The fate of one batch's dispatch, ready to be written."""

    batch: int
    state: BatchState
    devices: int
    attempts: int
    first_sent_at: float | None
    """Unix time of the first attempt, or of the first that left doubt."""
    settled_at: float
    task_id: str | None = None
    task_arn: str | None = None
    code: str | None = None
    message: str | None = None
    resend: Resend = Resend.ALLOWED
    targets: tuple[str, ...] = ()
    """The batch's device ids, for events; not written, since the plan has them."""


class FoundTask(msgspec.Struct, frozen=True):
    """A task that the service lists."""

    task_id: str
    task_arn: str | None = None
    token: str | None = None
    """The client token that its tag names."""
    targets: tuple[str, ...] = ()
    """In ascending order; empty until it was described."""
    created_at: float | None = None
    """Unix seconds by our clock; None until it was described."""


class Part(msgspec.Struct, frozen=True):
    """Some devices of a batch and what becomes of them: accepted, in doubt, planned or cancelled."""

    targets: tuple[str, ...]
    state: BatchState
    task: FoundTask | None = None


class Ruling(msgspec.Struct, frozen=True):
    """What a reconcile makes of one batch: one part is the whole of it, several take its place."""

    batch: int
    parts: tuple[Part, ...]
    message: str | None = None
    """The evidence about what stays in doubt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One row per manifest device: device → batch → client token → task → state."""

    device_id: str
    region: str
    account: str | None
    wave: int
    batch: int
    client_token: str
    task_id: str | None
    task_arn: str | None
    state: str
    """One of `DEVICE_CLASSES`."""
    error_code: str | None
    error_message: str | None
    attempts: int
    first_sent_at: str | None
    """RFC 3339, UTC."""
    settled_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Devices by class, and batches, of the whole run."""

    devices: int = 0
    accepted: int = 0
    rejected: int = 0
    in_doubt: int = 0
    pending: int = 0
    cancelled: int = 0
    batches: int = 0
    split: int = 0


@dataclass(slots=True, kw_only=True)
class Summary:
    """How a run stands at its end: the object `--json` prints.

    State counts, `batches` and `split` speak of the whole run; `calls`, `throttled`, `retried` and
    `elapsed_s` of this process.
    """

    run: str
    counts: Counts = field(default_factory=Counts)
    replayed: int = 0
    calls: int = 0
    throttled: int = 0
    retried: int = 0
    elapsed_s: float = 0.0
    already_complete: bool = False
    completed_at: str | None = None
    faults: int = 0
    forecast_s: float | None = None
    """Seconds that all this process set out to send would have taken at the ceiling."""
    ceiling_per_s: float = 0.0
    allowed_per_s: float = 0.0
    """Calls per second that the service was believed to allow at the end."""
    exit: int = 0
    error: str | None = None
    notes: tuple[str, ...] = ()
    """What was told while preparing a run that then had nothing to send; not in the object."""

    def as_json(self) -> dict[str, object]:
        """Return the contract's flat object, in the contract's order."""
        counts = self.counts
        out: dict[str, object] = {
            "run": self.run,
            "devices": counts.devices,
            "accepted": counts.accepted,
            "rejected": counts.rejected,
            "in_doubt": counts.in_doubt,
            "pending": counts.pending,
            "cancelled": counts.cancelled,
            "replayed": self.replayed,
            "batches": counts.batches,
            "calls": self.calls,
            "throttled": self.throttled,
            "retried": self.retried,
            "split": counts.split,
            "elapsed_s": round(self.elapsed_s, 3),
            "calls_per_s": round(self.calls / self.elapsed_s, 2) if self.elapsed_s > 0 else 0.0,
            "already_complete": self.already_complete,
            "exit": self.exit,
        }
        if self.error is not None:
            out["error"] = self.error
        return out
