"""One suite over both checkpoints: edits, --limit, doubts and what a run keeps of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from dispatcher.checkpoint.base import Cut, Lost
from dispatcher.errors import CheckpointError
from dispatcher.model import BatchState, Counts, Resend
from dispatcher.plan import cut

if TYPE_CHECKING:
    from tests.contract.conftest import Store


def test_a_limit_cuts_one_batch(store: Store) -> None:
    """Twelve devices are one batch and two tenths of the next; the rest waits for another process."""
    checkpoint = store.begin(30)
    found = checkpoint.claim(limit=9, max_devices=12, now=1000.0)
    assert [(batch.number, len(batch.targets), batch.parent) for batch in found] == [(1, 10, None), (4, 2, 2)]
    assert checkpoint.claim(limit=9, max_devices=0, now=1000.0) == []
    assert store.summed() == Counts(devices=30, in_doubt=12, pending=18, batches=4, split=1)
    assert [batch.number for batch in store.claim()] == [3, 5]
    assert checkpoint.standing().mark == 5


def test_an_exact_limit_cuts_nothing(store: Store) -> None:
    """A limit on a batch's edge claims whole batches."""
    checkpoint = store.begin(30)
    assert [batch.number for batch in checkpoint.claim(limit=9, max_devices=20, now=1000.0)] == [1, 2]
    assert checkpoint.claim(limit=9, max_devices=0, now=1000.0) == []
    assert store.summed().split == 0


def test_a_used_up_limit_still_sends_what_was_on_the_wire(store: Store) -> None:
    """Parts of a split that were given back are claimed, though batches before them may not go."""
    checkpoint = store.begin(30)
    (one,) = checkpoint.claim(limit=9, max_devices=10, now=1000.0)
    parts = (one.targets[:5], one.targets[5:])
    children = checkpoint.split(store.refused(one, BatchState.SPLIT), parts, now=1001.0)
    checkpoint.give_back([child.number for child in children], now=1002.0)
    assert checkpoint.claim(limit=1, max_devices=0, now=1003.0) == children[:1]
    assert checkpoint.claim(limit=9, max_devices=0, now=1003.0) == children[1:]
    assert checkpoint.claim(limit=9, max_devices=0, now=1003.0) == []
    assert [batch.number for batch in store.claim()] == [2, 3]


def test_doubts_are_paged_by_number(store: Store) -> None:
    """`after` and `limit` walk through every doubt once; settled and planned batches are not among them."""
    checkpoint = store.begin(70)
    batches = store.claim(6)
    checkpoint.record(
        [store.doubt(batch) for batch in batches[:5]] + [store.accepted(batches[5])], now=1001.0
    )
    pages = [[found.batch.number for found in checkpoint.doubts(after=n, limit=2)] for n in (0, 2, 4, 5)]
    assert pages == [[1, 2], [3, 4], [5], []]
    assert checkpoint.doubts(after=0, limit=1)[0] == checkpoint.doubts(after=0, limit=9)[0]


def test_a_held_doubt_is_not_resent(store: Store) -> None:
    """`next_process` waits for the next epoch, `never` for a reconcile; neither is forgotten."""
    checkpoint = store.begin(30)
    one, two, three = store.claim()
    checkpoint.record(
        [
            store.doubt(one, first=1001.0),
            store.doubt(two, first=1002.0, resend=Resend.NEXT_PROCESS),
            store.doubt(three, first=1003.0, resend=Resend.NEVER),
        ],
        now=1004.0,
    )
    assert [found.batch.number for found in checkpoint.doubts(after=0, limit=9)] == [1]
    assert checkpoint.newest_doubt() == 1002.0
    checkpoint = store.restart(now=2000.0)
    assert [found.batch.number for found in checkpoint.doubts(after=0, limit=9)] == [1, 2]
    assert store.summed().in_doubt == 30


def test_an_edit_cancels_returns_and_adds(store: Store) -> None:
    """A cut leaves each device in one class; added batches take the next free numbers in order."""
    checkpoint = store.begin(20)
    one = tuple(f"smd-{n:04d}" for n in range(10))
    changed = msgspec.structs.replace(store.plan, inventory_digest="w")
    added = cut([["zz-1", "zz-2"]], first=77)
    checkpoint.edit(changed, work=[Cut(1, one[:3], ())], added=added, now=1001.0)
    assert checkpoint.plan() == changed
    assert {n: (s, store.row(n).targets) for n, s in store.states().items() if n != 2} == {
        3: ("planned", one[3:]),
        4: ("cancelled", one[:3]),
        5: ("planned", ("zz-1", "zz-2")),
    }
    assert store.summed() == Counts(devices=22, pending=19, cancelled=3, batches=4, split=1)
    checkpoint.edit(changed, work=[Cut(4, (), one[1:2])], added=cut([["zz-3"]]), now=1002.0)
    found = {row.targets: str(row.state) for row in checkpoint.rows() if row.number > 5}
    assert found == {(one[0], one[2]): "cancelled", (one[1],): "planned", ("zz-3",): "planned"}
    assert store.summed() == Counts(devices=23, pending=21, cancelled=2, batches=6, split=2)
    assert [batch.number for batch in store.claim()] == [2, 3, 5, 7, 8]


def test_an_edit_parks_and_unparks(store: Store) -> None:
    """A doubt that holds a removed device is not resent until the device returns; parking survives."""
    checkpoint = store.begin(20)
    one, two = store.claim()
    checkpoint.record([store.doubt(one), store.refused(two)], now=1001.0)
    checkpoint.edit(store.plan, work=[(1, True), (2, True)], added=(), now=1002.0)
    checkpoint = store.restart(now=2000.0)
    assert checkpoint.doubts(after=0, limit=9) == []
    assert checkpoint.newest_doubt() is None
    assert checkpoint.removed_rejected() == 10
    checkpoint.edit(store.plan, work=[(1, False), (2, False)], added=(), now=2001.0)
    assert [found.batch.number for found in checkpoint.doubts(after=0, limit=9)] == [1]
    assert checkpoint.removed_rejected() == 0


@pytest.mark.parametrize("touch", ["settled", "claimed"])
def test_an_edit_never_cuts_what_may_have_been_sent(store: Store, touch: str) -> None:
    """It raises, and nothing of the edit happened."""
    checkpoint = store.begin(20)
    one, _ = store.claim()
    if touch == "settled":
        checkpoint.record([store.accepted(one)], now=1001.0)
    before, counts = store.states(), store.summed()
    changed = msgspec.structs.replace(store.plan, inventory_digest="w")
    with pytest.raises(CheckpointError):
        checkpoint.edit(changed, work=[(2, True), Cut(1, one.targets[:1], ())], added=(), now=1002.0)
    assert (store.states(), store.summed()) == (before, counts)
    assert not store.row(2).removed
    assert checkpoint.plan() == store.plan


def test_a_rebuilt_checkpoint_doubts_up_to_the_mark(store: Store) -> None:
    """Every unsettled batch up to the mark is in doubt since the run's first send; later ones are planned."""
    checkpoint = store.begin(50)
    one, two = store.claim(2)
    checkpoint.record([store.accepted(one), store.doubt(two, first=500.0)], now=1001.0)
    checkpoint.doubt_up_to(Lost(4, 600.0), now=1002.0)
    found = {doubt.batch.number: doubt.first_sent_at for doubt in checkpoint.doubts(after=0, limit=9)}
    assert found == {2: 500.0, 3: 600.0, 4: 600.0}
    assert store.row(3).code == "Rebuilt"
    assert checkpoint.standing().mark == 4
    assert store.summed() == Counts(devices=50, accepted=10, in_doubt=30, pending=10, batches=5)
    assert [batch.number for batch in store.claim()] == [5]


def test_the_first_account_is_kept(store: Store) -> None:
    """An account is learnt once; the rate is the last one."""
    checkpoint = store.begin()
    checkpoint.learn(rate=5.0, now=1001.0)
    checkpoint.learn(account="111111111111", now=1001.0)
    checkpoint.learn(account="222222222222", rate=7.5, now=1002.0)
    standing = store.restart(now=2000.0).standing()
    assert (standing.account, standing.learned_rate) == ("111111111111", 7.5)


def test_the_first_end_is_kept(store: Store) -> None:
    """`finished_at` is when the run first ended; an edit or a run that did not end clears it."""
    checkpoint = store.begin()
    checkpoint.finish(1, now=1001.0)
    checkpoint.finish(0, now=1002.0)
    assert (checkpoint.standing().finished_at, checkpoint.standing().exit_code) == (1001.0, 0)
    checkpoint.edit(store.plan, work=(), added=(), now=1003.0)
    assert (checkpoint.standing().finished_at, checkpoint.standing().exit_code) == (None, None)
    checkpoint.finish(0, now=1004.0)
    checkpoint.finish(None, now=1005.0)
    assert (checkpoint.standing().finished_at, checkpoint.standing().exit_code) == (None, None)


def test_a_lease_is_held_beaten_and_given_back(store: Store) -> None:
    """Acquiring raises the epoch; every write beats the heart; a release leaves no holder."""
    checkpoint = store.begin()
    assert checkpoint.standing()[:3] == (1, "first", 1000.0)
    checkpoint.check_lease(now=1007.0)
    assert checkpoint.standing().heartbeat_at == 1007.0
    store.claim(now=1009.0)
    assert checkpoint.standing().heartbeat_at == 1009.0
    checkpoint.release(now=1010.0)
    assert checkpoint.standing().holder is None
    assert store.restart(now=2000.0).standing()[:3] == (2, "second", 2000.0)


def test_amended_limits_bind_nothing(store: Store) -> None:
    """Other limits are stored with the plan; batches, outcomes and the end stay as they are."""
    checkpoint = store.begin()
    store.claim(1)
    before = store.states()
    changed = msgspec.structs.replace(store.plan, limits={"rate_per_s": 5.0})
    checkpoint.amend(changed, now=1001.0)
    assert checkpoint.plan() == changed
    assert store.states() == before
