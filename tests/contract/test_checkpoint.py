"""One suite over both checkpoints: plans, claims, crashes, outcomes and splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from dispatcher.errors import CheckpointError
from dispatcher.model import Batch, BatchState, Counts
from dispatcher.plan import cut

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.conftest import Store


def test_an_unplanned_checkpoint_is_empty(store: Store) -> None:
    """Before a plan is committed there is nothing: no plan, no lane, no batch."""
    assert store.now.plan() is None
    assert store.now.lanes() == []
    assert list(store.now.rows()) == []
    assert store.now.standing().epoch == 0


def test_a_plan_is_read_back_as_written(store: Store) -> None:
    """Plan, lanes and batches come back equal; every device is pending."""
    checkpoint = store.begin(25)
    assert checkpoint.plan() == store.plan
    assert checkpoint.lanes() == store.lanes
    assert [len(each.targets) for each in checkpoint.rows()] == [10, 10, 5]
    assert store.summed() == Counts(devices=25, pending=25, batches=3)


def test_a_second_plan_replaces_the_first(store: Store) -> None:
    """Nothing of the first plan is left, and the lease that wrote it still holds."""
    checkpoint = store.begin(25)
    epoch = checkpoint.standing().epoch
    store.claim()
    checkpoint.write_plan(msgspec.structs.replace(store.plan, plan_id="p2"), store.lanes, cut([["a"]]))
    assert (checkpoint.standing().epoch, checkpoint.standing().holder) == (epoch, "first")
    assert store.summed() == Counts(devices=1, pending=1, batches=1)
    assert [batch.targets for batch in store.claim()] == [("a",)]


def test_a_plan_that_fails_half_way_changes_nothing(store: Store) -> None:
    """An error out of the inventory while planning leaves the plan that was there."""
    checkpoint = store.begin(25)

    def broken() -> Iterator[Batch]:
        yield from cut([["a"]])
        raise CheckpointError("a bad row")

    with pytest.raises(CheckpointError, match="a bad row"):
        checkpoint.write_plan(store.plan, store.lanes, broken())
    assert store.summed() == Counts(devices=25, pending=25, batches=3)
    assert len(store.claim()) == 3


def test_a_claim_takes_the_next_batches_once(store: Store) -> None:
    """Claims go by number, never hand a batch out twice, and count as in doubt until settled."""
    checkpoint = store.begin(55)
    before = checkpoint.standing().commits
    assert [batch.number for batch in store.claim(2)] == [1, 2]
    assert [batch.number for batch in store.claim(3)] == [3, 4, 5]
    assert store.summed() == Counts(devices=55, in_doubt=50, pending=5, batches=6)
    assert (checkpoint.standing().commits, checkpoint.standing().mark) == (before + 2, 5)
    assert [batch.number for batch in store.claim()] == [6]
    assert store.claim() == []
    assert (checkpoint.standing().commits, checkpoint.standing().mark) == (before + 4, 6)


def test_given_back_batches_are_planned_and_claimed_again(store: Store) -> None:
    """Parts of several claims, in scattered order, return to planned and are handed out again."""
    checkpoint = store.begin(100)
    store.claim(6)
    store.claim(2)
    checkpoint.record([store.accepted(batch) for batch in [Batch(4, 0, 0, ("x",) * 10)]], now=1001.0)
    checkpoint.give_back([7, 2, 5, 1], now=1002.0)
    assert [n for n, state in store.states().items() if state == "planned"] == [1, 2, 5, 7, 9, 10]
    assert [n for n, state in store.states().items() if state == "sent"] == [3, 6, 8]
    assert [batch.number for batch in store.claim(3)] == [1, 2, 5]
    assert [batch.number for batch in store.claim()] == [7, 9, 10]
    assert store.summed().pending == 0


def test_giving_back_what_is_not_claimed_changes_nothing(store: Store) -> None:
    """It is a bug and raises, and what is claimed stays claimed."""
    checkpoint = store.begin(30)
    store.claim(2)
    with pytest.raises((CheckpointError, ValueError)):
        checkpoint.give_back([1, 3], now=1001.0)
    assert [batch.number for batch in store.claim()] == [3]
    checkpoint.give_back([1], now=1001.0)
    assert [batch.number for batch in store.claim()] == [1]


def test_a_crash_turns_open_claims_into_doubts(store: Store) -> None:
    """What was claimed and has no outcome is in doubt since its claim; what was given back is planned."""
    checkpoint = store.begin(60)
    first = store.claim(3, now=1000.0)
    store.claim(2, now=1010.0)
    checkpoint.record([store.accepted(first[0])], now=1011.0)
    checkpoint.give_back([2], now=1012.0)
    checkpoint = store.restart(now=2000.0)
    expected = {1: "accepted", 2: "planned", 3: "in_doubt", 4: "in_doubt", 5: "in_doubt", 6: "planned"}
    assert store.states() == expected
    found = {doubt.batch.number: doubt.first_sent_at for doubt in checkpoint.doubts(after=0, limit=9)}
    assert found == {3: 1000.0, 4: 1010.0, 5: 1010.0}
    assert store.row(3).code == "Interrupted"
    assert [batch.number for batch in store.claim()] == [2, 6]
    assert store.summed().accepted == 10


def test_a_second_crash_renews_no_doubt(store: Store) -> None:
    """A doubt keeps the instant of its first claim through any number of restarts."""
    store.begin(10)
    store.claim(now=1000.0)
    store.restart(now=2000.0)
    checkpoint = store.restart(now=3000.0)
    assert [found.first_sent_at for found in checkpoint.doubts(after=0, limit=9)] == [1000.0]
    assert checkpoint.newest_doubt() == 1000.0


@pytest.mark.parametrize("state", [BatchState.ACCEPTED, BatchState.REJECTED, BatchState.SPLIT])
def test_a_settled_batch_is_never_overwritten(store: Store, state: BatchState) -> None:
    """A second outcome raises, and nothing of its block is written."""
    checkpoint = store.begin(20)
    one, two = store.claim()
    first = store.accepted(one) if state is BatchState.ACCEPTED else store.refused(one, state)
    checkpoint.record([first], now=1001.0)
    before = store.summed()
    for again in (store.accepted(one), store.doubt(one), store.refused(one)):
        with pytest.raises(CheckpointError):
            checkpoint.record([store.accepted(two), again], now=1002.0)
        assert store.summed() == before
        assert store.states()[2] == "sent"


def test_a_doubt_may_only_become_accepted(store: Store) -> None:
    """In doubt, a batch is neither rejected nor split; a task id settles it and clears the error."""
    checkpoint = store.begin(10)
    (batch,) = store.claim()
    checkpoint.record([store.doubt(batch)], now=1001.0)
    for state in (BatchState.REJECTED, BatchState.SPLIT, BatchState.CANCELLED):
        with pytest.raises(CheckpointError):
            checkpoint.record([store.refused(batch, state)], now=1002.0)
    checkpoint.record([store.accepted(batch, at=1005.0)], now=1005.0)
    found = store.row(1)
    assert (found.state, found.task_id, found.task_arn) == ("accepted", "st-1", "arn:st-1")
    assert (found.code, found.message, found.attempts, found.first_sent_at) == (None, None, 2, 1001.0)


def test_a_doubt_keeps_its_earliest_instant_and_sums_attempts(store: Store) -> None:
    """Later doubts add attempts and never make the first sending younger; evidence is not lost."""
    checkpoint = store.begin(10)
    (batch,) = store.claim()
    checkpoint.record([store.doubt(batch, first=1005.0, attempts=2)], now=1006.0)
    checkpoint.record([store.doubt(batch, first=1001.0, attempts=3)], now=1007.0)
    silent = msgspec.structs.replace(store.doubt(batch, first=1009.0, attempts=1), code=None, message=None)
    checkpoint.record([silent], now=1010.0)
    found = store.row(1)
    assert (found.first_sent_at, found.attempts, found.code, found.message) == (1001.0, 6, "Timeout", "t")


def test_nothing_is_accepted_without_a_task_id(store: Store) -> None:
    """Nor is a doubt written without the instant of its sending; both are bugs and raise."""
    checkpoint = store.begin(10)
    (batch,) = store.claim()
    for wrong in (
        msgspec.structs.replace(store.accepted(batch), task_id=None),
        msgspec.structs.replace(store.doubt(batch), first_sent_at=None),
        msgspec.structs.replace(store.refused(batch), state=BatchState.PLANNED),
        msgspec.structs.replace(store.refused(batch), state=BatchState.SENT),
    ):
        with pytest.raises(CheckpointError):
            checkpoint.record([wrong], now=1001.0)
    assert store.states() == {1: "sent"}


def test_a_block_of_outcomes_is_written_whole(store: Store) -> None:
    """Hundreds of outcomes in one block each reach their batch, a batch's doubt before its task."""
    checkpoint = store.begin(3_330)
    batches = store.claim(1_000)
    block = [store.doubt(batch) for batch in batches] + [store.accepted(batch) for batch in batches[:-1]]
    checkpoint.record(block, now=1001.0)
    checkpoint.record([], now=1001.0)
    assert store.summed() == Counts(devices=3_330, accepted=3_320, in_doubt=10, batches=333)


def test_a_split_plans_and_claims_its_children(store: Store) -> None:
    """The children take the parent's place, claimed, with new numbers, and cost no --limit."""
    checkpoint = store.begin(20)
    one, _ = store.claim()
    parts = (one.targets[:5], one.targets[5:])
    children = checkpoint.split(store.refused(one, BatchState.SPLIT), parts, now=1003.0)
    assert children == [Batch(3, 0, 0, parts[0], 1, False), Batch(4, 0, 0, parts[1], 1, False)]
    assert store.states() == {2: "sent", 3: "sent", 4: "sent"}
    assert store.summed() == Counts(devices=20, in_doubt=20, batches=3, split=1)
    assert checkpoint.standing().mark == 4
    checkpoint.give_back([4], now=1004.0)
    checkpoint = store.restart(now=2000.0)
    assert [found.batch for found in checkpoint.doubts(after=2, limit=9)] == [children[0]]
    assert checkpoint.claim(limit=9, max_devices=0, now=2001.0) == [children[1]]


def test_an_undone_split_is_planned_again(store: Store) -> None:
    """The parent is planned, its descendants are forgotten, and their numbers are never used again."""
    checkpoint = store.begin(30)
    one, two, _ = store.claim()
    left, _ = checkpoint.split(
        store.refused(one, BatchState.SPLIT), (one.targets[:5], one.targets[5:]), now=1001.0
    )
    again = msgspec.structs.replace(store.refused(left, BatchState.SPLIT), devices=5)
    checkpoint.split(again, (left.targets[:2], left.targets[2:]), now=1002.0)
    checkpoint.undo_split(1, now=1003.0)
    assert store.states() == {1: "planned", 2: "sent", 3: "sent"}
    assert store.summed() == Counts(devices=30, in_doubt=20, pending=10, batches=3)
    assert store.claim() == [one]
    (fresh, _) = checkpoint.split(
        store.refused(two, BatchState.SPLIT), (two.targets[:5], two.targets[5:]), now=1.0
    )
    assert fresh.number == 8
    checkpoint.give_back([1, 3], now=1004.0)
    store.restart(now=2000.0)
    assert store.states()[1] == "planned"


def test_a_split_with_a_settled_part_cannot_be_undone(store: Store) -> None:
    """A part that has a task, or may have one, is never forgotten."""
    checkpoint = store.begin(20)
    one, two = store.claim()
    left, _ = checkpoint.split(
        store.refused(one, BatchState.SPLIT), (one.targets[:5], one.targets[5:]), now=1001.0
    )
    checkpoint.record([store.accepted(left), store.accepted(two)], now=1002.0)
    before = store.states()
    for number in (1, 2):
        with pytest.raises(CheckpointError):
            checkpoint.undo_split(number, now=1003.0)
    assert store.states() == before
    assert store.summed().accepted == 15
