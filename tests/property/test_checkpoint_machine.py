"""Both checkpoints in lockstep: whatever is done to them, they tell the same story."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dispatcher.checkpoint.base import Cut, Lost, Plan, Row
from dispatcher.checkpoint.memory import MemoryCheckpoint
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.diff import diff
from dispatcher.model import Batch, BatchState, FoundTask, Lane, Outcome, Part, Resend, Ruling
from dispatcher.plan import cut, halves

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.checkpoint.base import Checkpoint

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
NAMES = [f"d{number:02d}" for number in range(60)]
FOUND = FoundTask("st-9", "arn:st-9", None, (), 5.0)
FATES = st.sampled_from([BatchState.ACCEPTED, BatchState.IN_DOUBT, BatchState.PLANNED, BatchState.CANCELLED])
DEVICES = st.sets(st.sampled_from(NAMES), min_size=1)


class LockstepCheckpoints(RuleBasedStateMachine):
    """Drives a `MemoryCheckpoint` and a `SqliteCheckpoint` through the same run."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "run.db"
        self.memory = MemoryCheckpoint()
        self.sqlite = SqliteCheckpoint.open(self.path, create=True)
        self.time = 1000.0
        self.flying: dict[int, Batch] = {}
        """Claimed by this process, no outcome yet: what an engine would hold."""
        self.doubtful: dict[int, Batch] = {}
        self.splits: list[int] = []
        self.planned: set[str] = set()

    def teardown(self) -> None:
        self.sqlite.close()
        shutil.rmtree(self.folder)

    def both(self, call: Callable[[Checkpoint], object]) -> object:
        """Do the same to both stores, and see the same returned."""
        self.time += 1.0
        one, two = call(self.memory), call(self.sqlite)
        assert one == two
        return one

    @initialize(devices=DEVICES)
    def plan(self, devices: set[str]) -> None:
        self.planned = devices
        lane = [Lane(index=0, region="us-west-2")]
        self.both(lambda store: store.write_plan(PLAN, lane, cut([sorted(devices)])))
        self.both(lambda store: store.acquire("one", now=self.time))

    @rule(limit=st.integers(1, 5), most=st.none() | st.integers(0, 25))
    def claim(self, limit: int, most: int | None) -> None:
        found = self.both(lambda store: store.claim(limit=limit, max_devices=most, now=self.time))
        assert isinstance(found, list)
        assert not self.flying.keys() & {batch.number for batch in found}
        self.flying |= {batch.number: batch for batch in found}

    def chosen(self, data: st.DataObject, pool: dict[int, Batch]) -> list[Batch]:
        numbers = data.draw(st.lists(st.sampled_from(sorted(pool)), min_size=1, unique=True))
        return [pool[number] for number in numbers]

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), kinds=st.lists(st.sampled_from("ARDNP"), min_size=1))
    def record(self, data: st.DataObject, kinds: list[str]) -> None:
        block: list[Outcome] = []
        for at, batch in enumerate(self.chosen(data, self.flying)):
            block.append(self.outcome(batch, kinds[at % len(kinds)]))
            del self.flying[batch.number]
            if block[-1].state is BatchState.IN_DOUBT:
                self.doubtful[batch.number] = batch
        self.both(lambda store: store.record(block, now=self.time))

    @precondition(lambda self: self.doubtful)
    @rule(data=st.data(), kind=st.sampled_from("ADNP"))
    def resend(self, data: st.DataObject, kind: str) -> None:
        batches = self.chosen(data, self.doubtful)
        block = [self.outcome(batch, kind) for batch in batches]
        if kind == "A":
            self.doubtful = {n: batch for n, batch in self.doubtful.items() if batch not in batches}
        self.both(lambda store: store.record(block, now=self.time))

    def outcome(self, batch: Batch, kind: str) -> Outcome:
        size, at = len(batch.targets), self.time
        if kind == "A":
            return Outcome(batch.number, BatchState.ACCEPTED, size, 1, at, at, "st-1", "arn:st-1")
        if kind == "R":
            return Outcome(batch.number, BatchState.REJECTED, size, 1, at, at, code="X", message="gone")
        resend = {"D": Resend.ALLOWED, "N": Resend.NEXT_PROCESS, "P": Resend.NEVER}[kind]
        return Outcome(batch.number, BatchState.IN_DOUBT, size, 2, at - 5.0, at, code="T", resend=resend)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        numbers = [batch.number for batch in self.chosen(data, self.flying)]
        self.both(lambda store: store.give_back(numbers, now=self.time))
        for number in numbers:
            del self.flying[number]

    @precondition(lambda self: any(len(batch.targets) > 1 for batch in self.flying.values()))
    @rule(data=st.data())
    def split(self, data: st.DataObject) -> None:
        large = sorted(n for n, batch in self.flying.items() if len(batch.targets) > 1)
        batch = self.flying.pop(data.draw(st.sampled_from(large)))
        size, at = len(batch.targets), self.time
        parent = Outcome(batch.number, BatchState.SPLIT, size, 1, at, at, code="V", message="poison")
        found = self.both(lambda store: store.split(parent, halves(batch.targets), now=self.time))
        assert isinstance(found, list)
        self.flying |= {child.number: child for child in found}
        self.splits.append(batch.number)

    @precondition(lambda self: self.splits)
    @rule(data=st.data())
    def undo_split(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.splits))
        parents = {n: batch.parent for n, batch in self.memory._batches.items()}
        family = {number}
        for child in sorted(parents):
            if parents[child] in family:
                family.add(child)
        if any(
            str(row.state) not in ("planned", "sent") for row in self.memory.rows() if row.number in family
        ):
            return  # a part is settled or in doubt: no engine would
        self.both(lambda store: store.undo_split(number, now=self.time))
        self.splits = [n for n in self.splits if n not in family]
        for child in family:
            self.flying.pop(child, None)

    @rule(is_clean=st.booleans())
    def restart(self, is_clean: bool) -> None:
        if is_clean:
            self.both(lambda store: store.give_back(sorted(self.flying), now=self.time))
            self.both(lambda store: store.release(now=self.time))
            self.flying = {}
        self.sqlite.close()
        self.sqlite = SqliteCheckpoint.open(self.path)
        self.both(lambda store: store.acquire("next", now=self.time))
        self.doubtful |= self.flying
        self.flying, self.splits = {}, []

    @precondition(lambda self: not self.flying)
    @rule(named=DEVICES)
    def edit(self, named: set[str]) -> None:
        """Edit as a run does: by the diff of the new devices with the rows."""

        def apply(store: Checkpoint) -> object:
            found = diff([sorted(named)], store.rows())
            try:
                work: list[Cut | tuple[int, bool]] = list(found.work())
                store.edit(PLAN, work=work, added=cut(found.new_blocks()), now=self.time)
                return found.as_json()
            finally:
                found.close()

        self.both(apply)
        self.splits = []
        self.planned |= named

    @precondition(lambda self: not self.flying)
    @rule(mark=st.integers(0, 8))
    def doubt_up_to(self, mark: int) -> None:
        for row in self.memory.rows():
            if row.number <= mark and row.state == "planned":
                self.doubtful[row.number] = self.memory._batches[row.number]
        self.both(lambda store: store.doubt_up_to(Lost(mark, 700.0), now=self.time))
        self.splits = []

    @precondition(lambda self: self.doubtful and not self.flying)
    @rule(data=st.data(), stray=st.booleans())
    def reconcile(self, data: st.DataObject, stray: bool) -> None:
        """Rule on doubts as a reconcile does: whole, or cut by the fate of each device."""
        rulings = []
        for batch in self.chosen(data, self.doubtful):
            kinds = data.draw(st.lists(FATES, min_size=len(batch.targets), max_size=len(batch.targets)))
            groups: dict[BatchState, list[str]] = {}
            for device, kind in zip(batch.targets, kinds, strict=True):
                groups.setdefault(kind, []).append(device)
            parts = (
                Part(tuple(devices), kind, FOUND if kind is BatchState.ACCEPTED else None)
                for kind, devices in groups.items()
            )
            rulings.append(Ruling(batch.number, tuple(parts), message="not listed"))
        extra = f"x{self.memory.last_number():03d}"
        strays = [FoundTask("st-x", None, None, (extra,), 5.0)] if stray else []
        self.both(lambda store: store.rule(rulings, strays=strays, now=self.time))
        self.planned |= {extra} if stray else set()
        self.doubtful = {
            row.number: self.memory._batches[row.number]
            for row in self.memory.rows()
            if row.state == "in_doubt"
        }
        self.splits = []

    @invariant()
    def they_agree(self) -> None:
        if not self.planned:
            return
        assert self.memory.counts() == self.sqlite.counts()
        rows = [_plain(row) for row in self.memory.rows()]
        assert rows == [_plain(row) for row in self.sqlite.rows()]
        assert self.memory.doubts(after=0, limit=99) == self.sqlite.doubts(after=0, limit=99)
        assert self.memory.newest_doubt() == self.sqlite.newest_doubt()
        assert self.memory.doubt_kinds(900.0) == self.sqlite.doubt_kinds(900.0)
        assert self.memory.last_number() == self.sqlite.last_number()
        assert self.memory.removed_rejected() == self.sqlite.removed_rejected()
        assert self.memory.standing() == self.sqlite.standing()

    @invariant()
    def every_device_is_in_exactly_one_class(self) -> None:
        if not self.planned:
            return
        seen = [device for row in self.sqlite.rows() for device in row.targets]
        assert sorted(seen) == sorted(self.planned)
        found = self.sqlite.counts()
        classes = (found.accepted, found.rejected, found.in_doubt, found.pending, found.cancelled)
        assert sum(classes) == found.devices == len(self.planned)
        sent = {row.number for row in self.sqlite.rows() if row.state == "sent"}
        assert sent == self.flying.keys()


def _plain(row: Row) -> Row:
    return row._replace(state=str(row.state))


TestLockstepCheckpoints = LockstepCheckpoints.TestCase
TestLockstepCheckpoints.settings = settings(
    max_examples=50, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
