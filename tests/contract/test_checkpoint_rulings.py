"""A reconcile's rulings, carried out by either store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dispatcher.checkpoint.base import Lost
from dispatcher.errors import CheckpointError
from dispatcher.model import Batch, BatchState, FoundTask, Part, Resend, Ruling

if TYPE_CHECKING:
    from tests.contract.conftest import Store

TASK = FoundTask("st-9", "arn:st-9", "t", (), 990.0)
OTHER = FoundTask("st-8", "arn:st-8", "u", (), 991.0)


def doubtful(store: Store, *, resend: Resend = Resend.ALLOWED) -> Batch:
    """Plan 25 devices and leave the first ten in doubt."""
    checkpoint = store.begin()
    (batch,) = store.claim(1)
    checkpoint.record([store.doubt(batch, resend=resend)], now=1002.0)
    return batch


def test_a_task_that_was_found_is_kept(store: Store) -> None:
    """Accepted, durable, with its id; when it was first sent and how often stays known."""
    batch = doubtful(store)
    store.now.rule([Ruling(batch.number, (Part(batch.targets, BatchState.ACCEPTED, TASK),))], now=2000.0)
    store.restart(now=2001.0)
    row = store.row(batch.number)
    assert (row.state, row.task_id, row.task_arn) == ("accepted", "st-9", "arn:st-9")
    assert (row.first_sent_at, row.attempts, row.settled_at, row.code) == (1001.0, 1, 2000.0, None)
    store.summed()


def test_what_was_never_created_is_planned_and_claimed_again(store: Store) -> None:
    """It is not fresh: `--limit` does not count it."""
    batch = doubtful(store)
    store.now.rule([Ruling(batch.number, (Part(batch.targets, BatchState.PLANNED),))], now=2000.0)
    assert store.row(batch.number).state == "planned"
    (again, _) = store.now.claim(limit=2, max_devices=10, now=2001.0)
    assert (again.number, again.targets, again.fresh) == (batch.number, batch.targets, False)
    assert store.summed().in_doubt == 20


def test_the_evidence_of_what_stays_in_doubt(store: Store) -> None:
    """The message is the ruling's; code, first sending and who may resend it stay."""
    batch = doubtful(store, resend=Resend.NEVER)
    part = Part(batch.targets, BatchState.IN_DOUBT)
    for _ in range(2):
        store.now.rule([Ruling(batch.number, (part,), message="not listed")], now=2000.0)
    row = store.row(batch.number)
    assert (row.state, row.code, row.message, row.first_sent_at, row.held) == (
        *("in_doubt", "Timeout", "not listed", 1001.0, 0),
    )
    assert row.attempts == 1
    store.restart(now=2001.0)
    assert store.now.doubts(after=0, limit=9) == []


def test_a_batch_is_cut_by_the_tasks_of_its_devices(store: Store) -> None:
    """Children take its place; those in doubt are held, since their token was never sent."""
    batch = doubtful(store)
    a, b, c = batch.targets[:3], batch.targets[3:6], batch.targets[6:]
    parts = (
        Part(a, BatchState.ACCEPTED, TASK),
        Part(b, BatchState.ACCEPTED, OTHER),
        Part(c, BatchState.IN_DOUBT),
    )
    store.now.rule([Ruling(batch.number, parts, message="not listed")], now=2000.0)
    counts = store.summed()
    assert (counts.devices, counts.accepted, counts.in_doubt, counts.split) == (25, 6, 4, 1)
    rows = [row for row in store.now.rows() if row.number > 3]
    assert [(row.targets, row.task_id, row.held) for row in rows] == [
        (a, "st-9", None),
        (b, "st-8", None),
        (c, None, 0),
    ]
    store.restart(now=2001.0)
    assert store.now.doubts(after=0, limit=9) == []
    assert store.now.last_number() == 6


def test_a_part_that_stays_in_doubt_stays_parked(store: Store) -> None:
    """Its removed device must not be released by a reconcile that reads no manifest."""
    batch = doubtful(store)
    store.now.edit(store.plan, work=[(batch.number, True)], added=[], now=1003.0)
    parts = (Part(batch.targets[:4], BatchState.ACCEPTED, TASK), Part(batch.targets[4:], BatchState.IN_DOUBT))
    store.now.rule([Ruling(batch.number, parts)], now=2000.0)
    assert [(row.state, row.removed) for row in store.now.rows() if row.number > 3] == [
        ("accepted", False),
        ("in_doubt", True),
    ]


def test_a_parked_batch_that_is_planned_again_is_parked_no_more(store: Store) -> None:
    """Whole where its device came back; else cut, and the device that left is cancelled."""
    batch = doubtful(store)
    store.now.edit(store.plan, work=[(batch.number, True)], added=[], now=1003.0)
    parts = (Part(batch.targets[:9], BatchState.PLANNED), Part(batch.targets[9:], BatchState.CANCELLED))
    store.now.rule([Ruling(batch.number, parts)], now=2000.0)
    counts = store.summed()
    assert (counts.pending, counts.cancelled, counts.in_doubt) == (24, 1, 0)
    sent = {device for found in store.claim(9, now=2001.0) for device in found.targets}
    assert batch.targets[9] not in sent
    assert set(batch.targets[:9]) < sent


def test_rejected_and_cancelled_devices_with_a_task(store: Store) -> None:
    """What the service had denied, or another runner sent, is accepted all the same."""
    checkpoint = store.begin()
    first, second = store.claim(2)
    checkpoint.record([store.refused(first), store.refused(second, BatchState.CANCELLED)], now=1002.0)
    rulings = [
        Ruling(first.number, (Part(first.targets, BatchState.ACCEPTED, TASK),)),
        Ruling(
            second.number,
            (
                Part(second.targets[:1], BatchState.ACCEPTED, OTHER),
                Part(second.targets[1:], BatchState.CANCELLED),
            ),
        ),
    ]
    checkpoint.rule(rulings, now=2000.0)
    counts = store.summed()
    assert (counts.accepted, counts.rejected, counts.cancelled, counts.pending) == (11, 0, 9, 5)


def test_devices_in_no_batch_become_history(store: Store) -> None:
    """They are accepted under a number of their own, and stay so."""
    store.begin()
    stray = FoundTask("st-7", "arn:st-7", None, ("x", "y"), 900.0)
    store.now.rule([], strays=[stray], now=2000.0)
    row = store.row(4)
    assert (row.state, row.targets, row.task_id, row.first_sent_at) == ("accepted", ("x", "y"), "st-7", 900.0)
    assert store.summed().devices == 27


@pytest.mark.parametrize(
    "parts",
    [
        (Part(("smd-0000",), BatchState.ACCEPTED, TASK),),
        (Part((*(f"smd-{n:04d}" for n in range(10)),), BatchState.ACCEPTED),),
        (Part((*(f"smd-{n:04d}" for n in range(10)),), BatchState.REJECTED),),
    ],
)
def test_a_ruling_that_cannot_be_changes_nothing(store: Store, parts: tuple[Part, ...]) -> None:
    """Devices forgotten, accepted without a task, no legal move: refused, with all of its block."""
    batch = doubtful(store)
    good = Ruling(batch.number, (Part(batch.targets, BatchState.IN_DOUBT),), message="new")
    with pytest.raises(CheckpointError):
        store.now.rule([good, Ruling(batch.number, parts)], now=2000.0)
    assert store.row(batch.number).message == "t"


@pytest.mark.parametrize("number", [1, 2])
def test_what_is_accepted_or_planned_is_never_ruled(store: Store, number: int) -> None:
    """A settled task id is never overwritten; a planned batch is in doubt before it is ruled."""
    checkpoint = store.begin()
    (batch,) = store.claim(1)
    checkpoint.record([store.accepted(batch)], now=1002.0)
    row = store.row(number)
    with pytest.raises(CheckpointError):
        checkpoint.rule([Ruling(number, (Part(row.targets, BatchState.ACCEPTED, TASK),))], now=2000.0)
    assert store.row(number) == row


def test_what_is_on_the_wire_is_never_ruled(store: Store) -> None:
    """A batch that is claimed may be answered in a moment: to rule it would be a bug, and is told as one."""
    store.begin()
    (batch,) = store.claim(1)
    row = store.row(batch.number)
    with pytest.raises(CheckpointError, match="on the wire"):
        store.now.rule([Ruling(batch.number, (Part(batch.targets, BatchState.ACCEPTED, TASK),))], now=2000.0)
    assert store.row(batch.number) == row


def test_doubts_that_are_held_are_not_resent(store: Store) -> None:
    """`doubt_up_to` with `held` leaves nothing for the engine, in this epoch or another."""
    store.begin()
    store.now.doubt_up_to(Lost(2, 500.0, held=True), now=1001.0)
    store.restart(now=1002.0)
    assert store.now.doubts(after=0, limit=9) == []
    assert store.now.doubt_kinds(0.0) == {"held": (20, 500.0)}
    assert [row.number for row in store.now.rows(after=1)] == [2, 3]


@pytest.mark.parametrize("held", [False, True])
def test_a_lease_of_an_old_copy_doubts_all_that_it_may_not_know(store: Store, held: bool) -> None:
    """Claims and what is planned up to the mark, at once; held, none of it is the engine's."""
    store.begin()
    claimed = store.claim(1, now=900.0)
    store.now.acquire("second", now=1001.0, lost=Lost(2, 500.0, held=held))
    assert store.states() == {1: "in_doubt", 2: "in_doubt", 3: "planned"}
    assert [store.row(number).first_sent_at for number in (claimed[0].number, 2)] == [900.0, 500.0]
    kind = "held" if held else "resendable"
    assert store.now.doubt_kinds(0.0) == {kind: (20, 500.0)}
    assert len(store.now.doubts(after=0, limit=9)) == (0 if held else 2)
