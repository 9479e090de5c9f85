"""An edited manifest against the plan, compared with sets."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.checkpoint.base import Cut, Plan
from dispatcher.checkpoint.memory import MemoryCheckpoint
from dispatcher.diff import diff
from dispatcher.model import BatchState, Lane, Outcome
from dispatcher.plan import cut

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
NAMES = [f"d{number:02d}" for number in range(70)]
DEVICES = st.sets(st.sampled_from(NAMES))
STATES = ("planned", "in_doubt", "accepted", "rejected")


@dataclass
class Model:
    """The same plan as sets: what each device is, and which share a batch that is in doubt."""

    state: dict[str, str] = field(default_factory=dict)
    doubts: list[set[str]] = field(default_factory=list)
    parked: list[set[str]] = field(default_factory=list)
    first_sent: set[str] = field(default_factory=set)

    def edit(self, named: set[str]) -> dict[str, int]:
        """Apply an edit and return what it changes."""
        old = self.state
        gone, kept = old.keys() - named, old.keys() & named
        found = {
            "kept": sum(old[device] != "cancelled" for device in kept),
            "added": len(named - old.keys()),
            "returned": sum(old[device] == "cancelled" for device in kept),
            "cancelled": sum(old[device] == "planned" for device in gone),
            "parked": sum(old[device] == "in_doubt" for device in gone),
            "dropped": sum(old[device] in ("accepted", "rejected") for device in gone),
        }
        for device in gone:
            if old[device] == "planned":
                old[device] = "cancelled"
        for device in named:
            if old.get(device, "cancelled") == "cancelled":
                old[device] = "planned"
        self.parked = [doubt for doubt in self.doubts if doubt - named]
        return found


def built(devices: set[str], states: list[str]) -> tuple[MemoryCheckpoint, Model]:
    """Plan the devices and bring batch after batch into the given states."""
    checkpoint, model = MemoryCheckpoint(), Model()
    checkpoint.write_plan(PLAN, [Lane(index=0, region="us-west-2")], cut([sorted(devices)]))
    checkpoint.acquire("me", now=1000.0)
    for batch in checkpoint.claim(limit=99, max_devices=None, now=1000.0):
        state = states[batch.number % len(states)]
        parts = [batch]
        if state == "rejected" and len(batch.targets) > 1:  # only a single device is ever rejected
            parent = Outcome(batch.number, BatchState.SPLIT, len(batch.targets), 1, 1.0, 1.0)
            singles = [(device,) for device in batch.targets]
            parts = checkpoint.split(parent, singles, now=1001.0)
        for part in parts:
            size = len(part.targets)
            task = "st-1" if state == "accepted" else None
            if state == "planned":
                checkpoint.give_back([part.number], now=1001.0)
            else:
                outcome = Outcome(part.number, BatchState(state), size, 1, 1.0, 1.0, task)
                checkpoint.record([outcome], now=1001.0)
            model.state |= dict.fromkeys(part.targets, state)
            if state == "in_doubt":
                model.doubts.append(set(part.targets))
    return checkpoint, model


def check(checkpoint: MemoryCheckpoint, model: Model) -> None:
    """The checkpoint says of every device what the model says."""
    rows = list(checkpoint.rows())
    assert {device: str(row.state) for row in rows for device in row.targets} == model.state
    assert sum(len(row.targets) for row in rows) == len(model.state)
    parked = [set(row.targets) for row in rows if row.state == BatchState.IN_DOUBT and row.removed]
    assert sorted(map(sorted, parked)) == sorted(map(sorted, model.parked))
    sendable = [set(doubt.batch.targets) for doubt in checkpoint.doubts(after=0, limit=99)]
    assert all(doubt not in model.parked for doubt in sendable)
    assert len(sendable) + len(parked) == len(model.doubts)


@settings(max_examples=120, deadline=None)
@given(
    planned=DEVICES.filter(bool),
    states=st.lists(st.sampled_from(STATES), min_size=1, max_size=6),
    edits=st.lists(DEVICES, min_size=1, max_size=4),
)
def test_edits_do_what_sets_say(planned: set[str], states: list[str], edits: list[set[str]]) -> None:
    """Through any edits: removed and never sent is cancelled, in doubt is parked, what returns is planned.

    Settled devices never move, and the counts of each edit are those of the sets.
    """
    checkpoint, model = built(planned, states)
    settled = {d: s for d, s in model.state.items() if s in ("accepted", "rejected", "in_doubt")}
    for named in edits:
        before = sum(state != "cancelled" for state in model.state.values())
        found = diff([sorted(named)], checkpoint.rows())
        expected = model.edit(named)
        assert found.as_json() == expected
        assert found.removals == expected["cancelled"] + expected["parked"]
        assert found.planned_before == before
        checkpoint.edit(PLAN, work=list(found.work()), added=cut(found.new_blocks()), now=1002.0)
        found.close()
        check(checkpoint, model)
        assert settled.items() <= model.state.items()
        judged = {d for d, s in model.state.items() if s == "rejected" and d not in named}
        assert checkpoint.removed_rejected() == len(judged)


@settings(max_examples=50, deadline=None)
@given(planned=DEVICES.filter(bool), states=st.lists(st.sampled_from(STATES), min_size=1, max_size=4))
def test_an_edit_that_changes_nothing_is_no_work(planned: set[str], states: list[str]) -> None:
    """The same devices in any blocks: all kept, nothing to cut, nothing to mark."""
    checkpoint, _ = built(planned, states)
    found = diff([[device] for device in sorted(planned)], checkpoint.rows())
    assert found.as_json() == dict.fromkeys(found.as_json(), 0) | {"kept": len(planned)}
    assert list(found.work()) == []
    assert list(found.new_blocks()) == []
    found.close()


def test_work_comes_by_batch_with_cuts_before_marks() -> None:
    """One cut a batch, its devices ascending; a doubt that keeps one removed device stays parked."""
    checkpoint, _ = built({f"d{n:02d}" for n in range(30)}, ["planned", "in_doubt", "planned"])
    found = diff([["d00", "d02", "d15", "d29", "x"]], checkpoint.rows())
    work = list(found.work())
    assert [item if isinstance(item, tuple) and not isinstance(item, Cut) else item[0] for item in work] == [
        (1, True),
        2,
        3,
    ]
    cuts = [item for item in work if isinstance(item, Cut)]
    assert cuts[0].cancel == tuple(f"d{n:02d}" for n in range(10, 20) if n != 15)
    assert list(found.new_blocks()) == [["x"]]
    found.close()
