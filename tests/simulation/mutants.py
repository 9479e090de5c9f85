"""Bugs planted on purpose: a checker that never failed has proven nothing.

Each is a small change of the kind that slips in: a step left out, an order turned round, a case forgotten.
`python -m tests.simulation --mutants` runs seeds against each until one catches it, and prints the table.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from typing import TYPE_CHECKING, Any

import msgspec

from dispatcher import admission, diff, feed, flow, locate, plan, prepare, sender, trial
from dispatcher.checkpoint import files, lease, reading, registry, sqlite, writer
from dispatcher.model import Answer, BatchState, Created, Kind, Pace, Resend
from dispatcher.policy import lane, token_bucket, token_window
from dispatcher.policy import verdict as policy_verdict
from dispatcher.settings import Resolved
from dispatcher.transport import aiobotocore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Patch = tuple[Any, str, Any]
MUTANTS: dict[str, tuple[str, Callable[[], list[Patch]]]] = {}
"""Name → (what it does, how it is planted)."""


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Plant a bug for the time of the block."""
    with contextlib.ExitStack() as stack:
        for where, what, stand_in in MUTANTS[name][1]():
            if isinstance(where, dict):
                stack.callback(where.__setitem__, what, where[what])
                where[what] = stand_in
            else:
                stack.callback(setattr, where, what, where.__dict__[what])
                setattr(where, what, stand_in)
        yield


def mutant(
    function: Callable[[], list[Patch]],
) -> Callable[[], list[Patch]]:
    MUTANTS[function.__name__] = (str(function.__doc__), function)
    return function


def nothing(*_args: Any, **_options: Any) -> None:
    return None


async def _nothing_async(*_args: Any, **_options: Any) -> None:
    return None


async def _true(*_args: Any, **_options: Any) -> bool:
    return True


def _query(name: str, old: str, new: str) -> list[Patch]:
    text = reading.QUERIES[name]
    assert old in text, f"{name} no longer says {old!r}"
    return [(reading.QUERIES, name, text.replace(old, new))]


def _fact(kind: Kind, created: Created, pace: Pace) -> list[Patch]:
    return [(kind, "created", created), (kind, "pace", pace)]


# The client token


@mutant
def token_from_attempt() -> list[Patch]:
    """the client token depends on the attempt"""
    real = sender.Sender.send

    async def send(self: Any, flight: Any, **options: Any) -> Any:
        token = flight.client_token
        flight.client_token = f"{token[:-1]}{flight.attempts % 10}"
        try:
            return await real(self, flight, **options)
        finally:
            flight.client_token = token

    return [(sender.Sender, "send", send)]


@mutant
def token_from_process() -> list[Patch]:
    """the client token is salted anew in every process"""
    real, serial = plan.ClientTokens.__init__, itertools.count()

    def begin(self: Any, stored: Any) -> None:
        real(self, stored)
        self._prefix = hashlib.sha256(f"{next(serial)}".encode())

    return [(plan.ClientTokens, "__init__", begin)]


@mutant
def token_without_targets() -> list[Patch]:
    """the client token leaves the last target out"""
    real = plan.ClientTokens.of
    return [(plan.ClientTokens, "of", lambda self, targets: real(self, targets[:-1]))]


# What an answer means


@mutant
def success_without_task_id() -> list[Patch]:
    """a 200 without a task id is accepted"""
    real = aiobotocore.success

    def success(task_id: object, task_arn: object) -> Answer:
        return real(task_id or "st-0000000000000000", task_arn)

    return [(aiobotocore, "success", success)]


@mutant
def no_reply_is_not_created() -> list[Patch]:
    """a lost reply counts as not created"""
    return _fact(Kind.NO_REPLY, Created.NO, Pace.FAULT)


@mutant
def unreadable_is_not_created() -> list[Patch]:
    """an unreadable 200 counts as not created"""
    return _fact(Kind.UNREADABLE, Created.NO, Pace.FAULT)


@mutant
def bare_throttle_is_not_created() -> list[Patch]:
    """a proxy's 503 counts as the service's own throttle"""
    return _fact(Kind.BARE_THROTTLE, Created.NO, Pace.THROTTLE)


@mutant
def odd_is_not_created() -> list[Patch]:
    """an answer that no service gives counts as not created"""
    return _fact(Kind.ODD, Created.NO, Pace.FAULT)


@mutant
def split_after_unknown() -> list[Patch]:
    """a batch is split or rejected although an attempt of it was unknown"""
    real = policy_verdict.verdict_for

    def verdict(answer: Any, **facts: Any) -> Any:
        return real(answer, **{**facts, "tainted": False})

    return [(flow, "verdict_for", verdict)]


@mutant
def mismatch_is_sent_again() -> list[Patch]:
    """a batch whose token was used otherwise is not parked"""
    return [(flow.DOUBTS, policy_verdict.Verdict.PARK, Resend.ALLOWED)]


@mutant
def earlier_doubt_is_forgotten() -> list[Patch]:
    """what an earlier process left in doubt counts as never sent"""
    real = feed.Feed._in_doubt

    def in_doubt(self: Any, doubt: Any, at: Any) -> Any:
        flight = real(self, doubt, at)
        flight.doubt_at = None
        return flight

    return [(feed.Feed, "_in_doubt", in_doubt)]


# Order and durability


@mutant
def told_before_commit() -> list[Patch]:
    """an outcome is counted and told before its commit"""
    real = writer.Writer.record

    def record(self: Any, outcome: Any) -> None:
        self._on_durable([outcome])
        real(self, outcome)

    return [(writer.Writer, "record", record)]


@mutant
def sent_before_claim() -> list[Patch]:
    """batches are handed out without a claim"""
    return [(sqlite.SqliteCheckpoint, "_write_claims", nothing)]


@mutant
def claim_is_not_marked() -> list[Patch]:
    """the registry is not told of claims"""
    return [(registry.Marker, "committed", nothing)]


@mutant
def claim_is_dropped_early() -> list[Patch]:
    """a claim goes with the first outcome of its block"""
    return [
        (sqlite.ClaimBook, "settle", lambda self, numbers: [self._key_of[n] for n in numbers if n in self])
    ]


@mutant
def crash_forgets_claims() -> list[Patch]:
    """claims of a dead process are dropped, not turned into doubt"""
    return _query("recover_claims", "WHERE NOT EXISTS", "WHERE 0 AND NOT EXISTS")


@mutant
def crash_renews_doubt() -> list[Patch]:
    """the doubt of a crash is dated by the recovery, not by the claim"""
    return _query("recover_claims", "min(c.at)", ":now")


@mutant
def doubt_is_renewed() -> list[Patch]:
    """a doubt that is recorded again takes the newer date"""
    old = "min(outcome.first_sent_at, coalesce(excluded.first_sent_at, outcome.first_sent_at))"
    assert old in sqlite.RECORD.tail
    tail = sqlite.RECORD.tail.replace(old, "excluded.settled_at")
    return [(sqlite, "RECORD", sqlite.RECORD._replace(tail=tail))]


@mutant
def commits_are_not_synced() -> list[Patch]:
    """the checkpoint is not synced at commits"""
    real = sqlite.SqliteCheckpoint.acquire

    def acquire(self: Any, holder: str, **options: Any) -> int:
        epoch = real(self, holder, **options)
        self._db.execute("PRAGMA synchronous=OFF")
        return int(epoch)

    return [(sqlite.SqliteCheckpoint, "acquire", acquire)]


@mutant
def registry_is_not_synced() -> list[Patch]:
    """the registry's folder is not synced after the rename"""
    return [(files, "sync_folder", nothing)]


@mutant
def outcome_is_lost() -> list[Patch]:
    """the writer drops the first outcome of a full block"""
    real = writer.Writer._write

    def write(self: Any, block: Any, durable: Any, action: Any, then: Any) -> Any:
        return real(self, block[1:] if len(block) > 1 else block, durable, action, then)

    return [(writer.Writer, "_write", write)]


@mutant
def doubtful_is_given_back() -> list[Patch]:
    """a pause gives back what is in doubt as if it was never sent"""

    async def set_aside(self: Any, flights: Any) -> None:
        await self._feed.give_back(flights)

    return [(flow.Flow, "set_aside", set_aside)]


# The token window


@mutant
def window_is_ignored() -> list[Patch]:
    """a batch in doubt is resent however old it is"""
    return [(token_window.TokenWindow, "is_open", lambda *_: True)]


@mutant
def window_without_margin() -> list[Patch]:
    """the window does not allow for the time a call takes to arrive"""
    return [(Resolved, "resend_window_s", property(lambda self: self.token_window_s))]


@mutant
def window_by_monotonic_time_alone() -> list[Patch]:
    """a laptop that sleeps does not age what is in doubt"""
    real = token_window.TokenWindow.is_open

    def is_open(self: Any, at: Any, now: float, elapsed_s: Any) -> bool:
        return bool(real(self, at if elapsed_s is None else now, now, elapsed_s))

    return [(token_window.TokenWindow, "is_open", is_open)]


@mutant
def window_is_checked_before_the_wait() -> list[Patch]:
    """the window is not looked at again after the permit's wait"""

    async def permit(self: Any, flight: Any) -> bool:
        if not self.may_send(flight):
            return False
        await self._check_lease(flight)
        if not await self._admission.permit():
            return False
        self._admission.depart()
        return True

    return [(sender.Sender, "permit", permit)]


# Admission


@mutant
def bucket_starts_full() -> list[Patch]:
    """the bucket of a restarted process is full"""
    real = token_bucket.TokenBucket.__init__

    def begin(self: Any, rate_per_s: float, burst: float, *, now_s: float, level: float = 0.0) -> None:
        real(self, rate_per_s, burst, now_s=now_s, level=burst)

    return [(token_bucket.TokenBucket, "__init__", begin)]


@mutant
def refund_is_forgotten() -> list[Patch]:
    """a permit that was not used is not given back"""
    return [(token_bucket.TokenBucket, "refund", nothing)]


@mutant
def bucket_has_no_cap() -> list[Patch]:
    """permits gather without end while nobody calls"""
    real = token_bucket.TokenBucket._accrue

    def accrue(self: Any, now_s: float) -> float:
        burst, self._burst = self._burst, 1e9
        stock = real(self, now_s)
        self._burst = burst
        return stock

    return [(token_bucket.TokenBucket, "_accrue", accrue)]


@mutant
def retries_need_no_permit() -> list[Patch]:
    """a retry does not pass the bucket"""
    real = sender.Sender.permit

    async def permit(self: Any, flight: Any) -> bool:
        if not flight.attempts:
            return bool(await real(self, flight))
        self._admission.depart()
        return bool(self.may_send(flight))

    return [(sender.Sender, "permit", permit)]


@mutant
def slots_are_not_counted() -> list[Patch]:
    """the in-flight window is not kept"""
    return [(admission.Admission, "slot", _true)]


@mutant
def unproven_lane_is_wide() -> list[Patch]:
    """a lane without any acceptance has the whole window"""
    return [(lane.LanePolicy, "window", property(lambda self: self.max_in_flight))]


# The lane


@mutant
def trial_is_skipped() -> list[Patch]:
    """a lane counts as proven from the start: a wrong region rejects everybody"""
    real = lane.LanePolicy.__post_init__

    def begin(self: Any) -> None:
        real(self)
        self.proven = True

    return [(lane.LanePolicy, "__post_init__", begin)]


@mutant
def trial_is_not_undone() -> list[Patch]:
    """the split of a trial that found nothing stays"""
    return [(writer.Writer, "undo_split", _nothing_async)]


@mutant
def trial_undoes_what_settled() -> list[Patch]:
    """a trial is undone although a part of it is in doubt"""
    return [(trial.Trial, "can_undo", property(lambda _self: True))]


@mutant
def halt_leaves_retries_in_line() -> list[Patch]:
    """the end of a phase leaves retries in the line as well as with their loop"""

    def halt(self: Any) -> None:
        self._halt.set()
        self._stir.set()
        self._hungry.set()
        self._admission.interrupt()
        for flight in self.due:
            flight.end_turn(None)

    return [(flow.Flow, "halt", halt)]


@mutant
def held_batch_is_forgotten() -> list[Patch]:
    """poison that was held back is dropped when the lane is proven"""

    def release(self: Any) -> None:
        if self._lane.proven:
            self.held = []

    return [(flow.Flow, "_release_held", release)]


# Leases and locks


@mutant
def lease_is_not_checked() -> list[Patch]:
    """an old claim is sent without a look at the lease"""
    return [(sender.Sender, "_check_lease", _nothing_async)]


@mutant
def fence_is_open() -> list[Patch]:
    """a holder that was taken over may still write"""
    return _query("fence", "AND epoch = :epoch", "AND :epoch = :epoch")


@mutant
def locks_are_not_taken() -> list[Patch]:
    """two runners on one host do not exclude each other"""
    return [(lease.Locks, "take", nothing)]


# Lost and foreign checkpoints


@mutant
def lost_checkpoint_is_planned_anew() -> list[Patch]:
    """a lost checkpoint is planned anew, whatever the registry says"""

    def rebuild(
        self: Any, intent: Any, checkpoint: Any, record: Any, inventory: Any, digest: str, **_: Any
    ) -> None:
        self._plan_anew(intent, checkpoint, inventory, digest)

    return [(prepare.Preparation, "_rebuild", rebuild)]


@mutant
def stale_checkpoint_is_trusted() -> list[Patch]:
    """a checkpoint restored from an old copy is not noticed"""
    return [(prepare, "is_older", lambda *_: False), (locate, "is_older", lambda *_: False)]


@mutant
def rebuild_forgets_doubt() -> list[Patch]:
    """a rebuilt checkpoint calls what was sent planned"""
    return [(sqlite.SqliteCheckpoint, "_doubt_up_to", nothing)]


@mutant
def rebuild_ignores_recuts() -> list[Patch]:
    """a plan whose batches were cut anew is rebuilt as it was first"""
    real = registry.Registry.get

    def get(self: Any, run: str) -> Any:
        record = real(self, run)
        return None if record is None else msgspec.structs.replace(record, is_recut=False)

    return [(registry.Registry, "get", get)]


# Plans and edits


@mutant
def halves_lose_a_device() -> list[Patch]:
    """the split of an odd batch loses its last device"""
    real = plan.halves

    def halves(targets: Any) -> Any:
        left, right = real(targets)
        return left, right[: len(left)] or right

    return [(flow, "halves", halves)]


@mutant
def halves_overlap() -> list[Patch]:
    """the halves of a split share a device"""

    def halves(targets: Any) -> Any:
        middle = len(targets) // 2
        return targets[: middle + (len(targets) > 2)], targets[middle:]

    return [(flow, "halves", halves)]


@mutant
def tail_is_not_planned() -> list[Patch]:
    """the last, incomplete batch of a plan is left out"""
    real = plan.cut

    def cut(blocks: Any, **options: Any) -> Any:
        batches = list(real(blocks, **options))
        return iter(batches[:-1] if len(batches) > 1 and len(batches[-1].targets) < 10 else batches)

    return [(prepare, "cut", cut)]


@mutant
def duplicates_are_planned() -> list[Patch]:
    """a device that the inventory names twice is planned twice"""

    def distinct(self: Any, blocks: Any) -> Any:
        for block in blocks:
            self.devices += len(block)
            yield block

    return [(plan.Fold, "distinct", distinct)]


@mutant
def removed_device_is_resent() -> list[Patch]:
    """a batch in doubt with a device that was taken out is not parked"""
    return _query("doubts", "AND b.removed = 0", "")


@mutant
def removed_device_stays_planned() -> list[Patch]:
    """a planned device that was taken out of the manifest is not cancelled"""
    real = diff.Diff._gone

    def gone(self: Any, number: int, state: str, device: str) -> None:
        if state != BatchState.PLANNED:
            real(self, number, state, device)

    return [(diff.Diff, "_gone", gone)]


@mutant
def edit_resends_settled() -> list[Patch]:
    """an edit plans settled devices again"""
    real = diff.Diff._named

    def named(self: Any, number: int, state: str, device: str, *, removed: bool) -> None:
        if state == BatchState.ACCEPTED:
            self._add(device)
        real(self, number, state, device, removed=removed)

    return [(diff.Diff, "_named", named)]


@mutant
def returned_device_is_left_out() -> list[Patch]:
    """a cancelled device that is back in the manifest stays cancelled"""
    real = diff.Diff._named

    def named(self: Any, number: int, state: str, device: str, *, removed: bool) -> None:
        if state != BatchState.CANCELLED:
            real(self, number, state, device, removed=removed)

    return [(diff.Diff, "_named", named)]


# What is left at the end


@mutant
def doubts_are_not_taken_up() -> list[Patch]:
    """a resume leaves doubts of earlier processes alone"""
    return _query("doubts", "WHERE o.state = 'in_doubt'", "WHERE 0 AND o.state = 'in_doubt'")


@mutant
def given_back_is_not_fed_again() -> list[Patch]:
    """what a pause gave back is skipped by the feed"""
    real = sqlite.SqliteCheckpoint.give_back

    def give_back(self: Any, numbers: Any, **options: Any) -> None:
        cursor = self._cursor
        real(self, numbers, **options)
        self._cursor = cursor

    return [(sqlite.SqliteCheckpoint, "give_back", give_back)]
