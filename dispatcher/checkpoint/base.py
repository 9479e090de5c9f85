"""What a checkpoint is: the run's only truth, behind one protocol that two stores implement.

Every method is synchronous and is one transaction: it is durable when it returns, or it raises a
`CheckpointError` and nothing of it happened. The engine reaches it through `writer.Writer`, which keeps
it off the event loop and writes outcomes by the block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from dispatcher.model import Batch, Counts, Doubt, FoundTask, Lane, Outcome, Ruling

TOKEN_VERSION = 1
"""The client token algorithm of new plans; stored, so that an upgrade in mid-run changes nothing."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What binds a checkpoint to an intent. Written once, with the batches, in one transaction."""

    plan_id: str
    """Random; tells this planning from another of the same run."""
    run: str
    generation: int = 0
    token_version: int = TOKEN_VERSION
    command: str
    description: str | None = None
    tags: dict[str, str] = {}
    region: str
    account: str | None = None
    """Only where the manifest names it: then it is part of every client token."""
    endpoint_url: str | None = None
    """None means the service's own endpoint of the region."""
    system_tags: bool = True
    intent_digest: str
    selection_digest: str
    inventory_digest: str
    planned_at: float
    """Unix seconds."""
    rebuilt: bool = False
    """True where the plan replaces a checkpoint that was lost."""
    unsearched: bool = False
    """True where it does, and the service's list was not read to its end since: it may name other devices."""
    bad_rows: int = 0
    limits: dict[str, int | float] = {}
    """The limits the manifest gave, for `resume`, which reads no manifest."""


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """What the process at a run last said of itself: `status` shows it from another process."""

    began_at: float
    """Unix seconds."""
    calls: int
    throttled: int
    retried: int
    faults: int
    in_flight: int
    rate_per_s: float
    """Calls per second that the rate controller allows now."""
    rate_state: str = ""
    """What the controller is at; empty in what an older version wrote."""
    rate_why: str = ""
    """Why it is not faster, for people."""
    service_per_s: float | None = None
    """What the service was found to allow; None where it has never throttled."""
    ceiling_per_s: float
    lane_state: str
    lane_reason: str | None = None
    forecast_s: float
    """Seconds that all it set out to send takes at the ceiling."""


class Standing(NamedTuple):
    """The run row besides the plan."""

    epoch: int
    holder: str | None
    heartbeat_at: float
    commits: int
    """Fenced transactions so far: a file that has seen fewer than the registry has lost some."""
    mark: int
    account: str | None
    learned_rate: float | None
    finished_at: float | None
    exit_code: int | None
    pulse: Pulse | None = None


class Row(NamedTuple):
    """One batch as reports read it."""

    number: int
    lane: int
    wave: int
    targets: tuple[str, ...]
    removed: bool
    state: str
    """A `BatchState`; `sent` where a claim covers it and no outcome is known."""
    attempts: int
    first_sent_at: float | None
    settled_at: float | None
    task_id: str | None
    task_arn: str | None
    code: str | None
    message: str | None
    held: int | None


class Cut(NamedTuple):
    """One batch of an edit, taken apart: it is split, and two or three batches take its place.

    What is in neither list keeps the parent's state (planned stays planned, cancelled stays cancelled).
    """

    parent: int
    cancel: tuple[str, ...]
    plan: tuple[str, ...]
    """Cancelled devices that are back in the manifest."""


class Stored(Protocol):
    """What can be read of a run, also beside a live one."""

    def plan(self) -> Plan | None:
        """Return the committed plan, or None where planning never finished."""

    def lanes(self) -> list[Lane]: ...

    def standing(self) -> Standing: ...

    def counts(self) -> Counts: ...

    def removed_rejected(self) -> int:
        """Return how many rejected devices are no longer in the manifest."""

    def newest_doubt(self) -> float | None:
        """Return the latest first sending among doubts that a resume may resend."""

    def last_number(self) -> int:
        """Return the highest batch number there is, 0 without a batch."""

    def doubt_kinds(self, open_since: float) -> dict[str, tuple[int, float]]:
        """Return devices in doubt, and their earliest first sending, by what may become of them.

        `resendable`: first sent after `open_since`, so inside the token window; `expired`: before it;
        `held`: only a reconcile may settle them.
        """

    def rows(self, *, after: int = 0) -> Iterator[Row]:
        """Yield every batch that stands for devices (split ones do not), by number, with flat memory."""

    def close(self) -> None: ...


class Lost(NamedTuple):
    """What a checkpoint does not know, having been lost or being older than the registry's mark."""

    mark: int
    """Every batch up to here that is not settled may have been sent."""
    first_sent_at: float
    held: bool = False
    """Whether only a reconcile may settle them, claims included: the parts of a split may have been sent."""

    @property
    def hold(self) -> int | None:
        """As outcomes keep it: 0 until a reconcile, None not at all."""
        return 0 if self.held else None


class Checkpoint(Stored, Protocol):
    """A run's durable memory. All instants are Unix seconds."""

    def together(self, *, now: float) -> AbstractContextManager[None]:
        """Make all that is written inside one transaction: all of it is durable, or none."""

    def write_plan(self, plan: Plan, lanes: Sequence[Lane], batches: Iterable[Batch]) -> None:
        """Replace whatever is stored by this plan, in one transaction."""

    def acquire(self, holder: str, *, now: float, lost: Lost | None = None) -> int:
        """Take the lease: raise the epoch, and turn every open claim into a doubt. Return the epoch.

        What is `lost` is in doubt in the same transaction: this commit makes an old copy look newer.
        """

    def release(self, *, now: float) -> None:
        """Give the lease back at a clean end."""

    def check_lease(self, *, now: float) -> None:
        """Beat the heart; raise `CheckpointLeased` where another runner took over."""

    def claim(self, *, limit: int, max_devices: int | None, now: float) -> list[Batch]:
        """Claim the next planned batches, durably, before any is sent.

        With `max_devices` at most that many devices that were never on the wire are claimed, cutting
        one batch in two if it must. An empty list means that nothing (more) may be claimed.
        """

    def give_back(self, numbers: Sequence[int], *, sent: Collection[int] = (), now: float) -> None:
        """Return claimed batches that were not sent, or were only answered *not created*, to planned.

        Those in `sent` were on the wire: no longer fresh, they do not count against `max_devices` again.
        """

    def record(self, outcomes: Sequence[Outcome], *, now: float) -> None:
        """Write outcomes. A settled batch is never overwritten: trying to is a bug and raises."""

    def split(self, outcome: Outcome, parts: Sequence[tuple[str, ...]], *, now: float) -> list[Batch]:
        """Record the parent as split and plan and claim its children, in one transaction."""

    def undo_split(self, number: int, *, now: float) -> None:
        """Return a split batch to planned and forget its descendants, none of which is settled."""

    def doubts(self, *, after: int, limit: int) -> list[Doubt]:
        """Return batches in doubt that this epoch may resend, in order of number, from `after` on."""

    def doubt_up_to(self, lost: Lost, *, now: float) -> None:
        """Put every unsettled batch up to the mark in doubt: an earlier runner may have sent it.

        Where it is held none is resent: what was sent may have been cut otherwise, under other tokens.
        """

    def rule(self, rulings: Sequence[Ruling], *, strays: Sequence[FoundTask] = (), now: float) -> None:
        """Carry a reconcile's rulings out, in one transaction.

        `strays` are tasks of the run whose devices no batch holds: each becomes an accepted batch, so that
        its devices are never sent if a manifest names them again.
        """

    def edit(
        self,
        plan: Plan,
        *,
        work: Iterable[Cut | tuple[int, bool]],
        added: Iterable[Batch],
        now: float,
    ) -> None:
        """Apply an edited manifest in one transaction; a pair sets or clears a batch's `removed` mark.

        The numbers of `added` are ignored: they get the next free ones, in order.
        """

    def amend(self, plan: Plan, *, now: float) -> None:
        """Store the plan with other limits, or as searched."""

    def learn(
        self,
        *,
        account: str | None = None,
        rate: float | None = None,
        pulse: Pulse | None = None,
        now: float,
    ) -> None:
        """Keep the account of the first task, the rate that was last sustained, or how the process fares."""

    def finish(self, exit_code: int | None, *, now: float) -> None:
        """Note how the run ended; None where it did not end."""
