"""The whole reconcile in virtual time: memory checkpoint, scripted lists, no threads, no sockets."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.checkpoint.base import Plan
from dispatcher.checkpoint.memory import MemoryCheckpoint
from dispatcher.checkpoint.registry import Marker, Record, Registry
from dispatcher.checkpoint.writer import InlineOffload
from dispatcher.errors import CheckpointError, PlanMismatch, RunStopped
from dispatcher.lookup import Lookup
from dispatcher.model import Answer, BatchState, Kind, Lane, Outcome
from dispatcher.plan import SYSTEM_TAG_RUN, SYSTEM_TAG_TOKEN, ClientTokens, cut
from dispatcher.probe import RETRY_S, Probe
from dispatcher.reconcile import Reconciliation
from dispatcher.recover import Recovered
from dispatcher.settings import Settings
from dispatcher.transport.base import TaskPage, TaskSummary, TaskView
from dispatcher.transport.scripted import ScriptedTransport
from tests.engine.conftest import EPOCH, VirtualClock, VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dispatcher.reconciled import Reconciled

PLAN = Plan(
    plan_id="p",
    run="bench",
    command="reboot",
    region="us-west-2",
    intent_digest="i",
    selection_digest="s",
    inventory_digest="d",
    planned_at=EPOCH - 7_200,
)
SENT_AT = EPOCH - 3_600


@dataclass
class World:
    """A service's tasks, and a checkpoint that may know less."""

    plan: Plan = PLAN
    tasks: list[tuple[str, tuple[str, ...], dict[str, str]]] = field(default_factory=list)
    store: MemoryCheckpoint = field(default_factory=MemoryCheckpoint)
    page_size: int = 3
    fate: Callable[[str, int], Answer | None] = lambda _operation, _call: None
    reads: list[tuple[float, str]] = field(default_factory=list)
    removed: set[str] | None = None
    marker: Marker | None = None
    made_at: Callable[[str], float] = lambda _task_id: SENT_AT
    service_now: float | None = None
    """The service's clock, where it differs from ours."""
    known_since: float | None = None
    """What the last look returned."""

    def planned(self, devices: Sequence[str]) -> None:
        self.store.write_plan(self.plan, [Lane(index=0, region="us-west-2")], cut([sorted(devices)]))
        self.store.acquire("test", now=EPOCH)

    def task(self, *targets: str, token: str | None = None, run: str = "bench") -> str:
        """Make a task, by default under the token that its devices have in the plan."""
        task_id = f"st-{len(self.tasks):04d}"
        tags = {SYSTEM_TAG_RUN: run, SYSTEM_TAG_TOKEN: token or ClientTokens(self.plan).of(sorted(targets))}
        self.tasks.append((task_id, targets, tags if self.plan.system_tags else dict(self.plan.tags)))
        return task_id

    def sent_elsewhere(self, *devices: str) -> None:
        """Plan one batch that another host has sent: nothing here knows of its task."""
        self.planned(devices)
        self.task(*devices)

    def doubt(self, *numbers: int, first: float = SENT_AT) -> None:
        """Put batches in doubt."""
        self.store.record(
            [
                Outcome(row.number, BatchState.IN_DOUBT, len(row.targets), 1, first, first, code="Timeout")
                for row in self.store.rows()
                if row.number in numbers
            ],
            now=EPOCH,
        )

    def _seen(self, operation: str) -> Answer | None:
        self.reads.append((asyncio.get_running_loop().time(), operation))
        return self.fate(operation, len(self.reads))

    def _pages(self, token: str | None, limit: int) -> TaskPage | Answer:
        if (answer := self._seen("ListTasks")) is not None:
            return answer
        start, size = int(token or 0), min(limit, self.page_size)
        shown = self.tasks[start : start + size]
        more = start + size < len(self.tasks)
        arn = "arn:aws:snow-device-management:us-west-2:123456789012:task/"
        rows = tuple(TaskSummary(task_id, arn + task_id, tags) for task_id, _, tags in shown)
        return TaskPage(rows, str(start + size) if more else None)

    def _describe(self, task_id: str) -> TaskView | Answer | None:
        if (answer := self._seen("DescribeTask")) is not None:
            return answer
        found = {one[0]: one[1] for one in self.tasks}
        if task_id not in found:
            return None
        return TaskView(
            self.made_at(task_id),
            self.service_now,
            found[task_id][::-1],
            self.plan.description,
            self.plan.tags,
        )

    def transport(self) -> ScriptedTransport:
        return ScriptedTransport(_never, describe=self._describe, pages=self._pages)

    def reconcile(self, *, max_pages: int = 1_000, **options: Any) -> Reconciled:
        """Reconcile in virtual time; what it raised is raised here."""
        chosen = Settings(**({"rate_per_s": 100.0, "rate_control": "fixed"} | options)).resolve()

        async def work() -> Reconciled:
            clock = VirtualClock()
            recovered = Recovered(
                self.store, self.store, self.plan, self.marker, None, SENT_AT, removed=self.removed
            )
            lookup = Lookup(self.transport(), chosen, clock, rng=random.Random(1))
            made = Reconciliation(recovered, chosen, lookup, clock, offload=InlineOffload())
            return await made.go(max_pages=max_pages)

        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            return runner.run(work())

    def probe(self, **options: Any) -> float:
        """Look before a fresh run; return how long that took."""
        chosen = Settings(**options).resolve()

        async def work() -> float:
            looking = Probe(self.transport(), self.plan, chosen, VirtualClock(), stored=self.store)
            self.known_since = await looking.look()
            return asyncio.get_running_loop().time()

        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            return runner.run(work())

    def states(self) -> dict[str, tuple[str, str | None]]:
        return {device: (row.state, row.task_id) for row in self.store.rows() for device in row.targets}


def _never(_targets: Sequence[str], _token: str) -> Answer:
    raise AssertionError("a reconcile sends nothing")


def ids(count: int) -> list[str]:
    return [f"smd-{number:03d}" for number in range(count)]


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_was_sent_and_whatever_is_remembered(data: st.DataObject) -> None:
    """Every device with a task is accepted with it; no other is; none is released that may have been sent.

    The service made tasks of any cut of the fleet; the checkpoint remembers any part of that.
    """
    fleet = ids(data.draw(st.integers(1, 60)))
    world = World(page_size=data.draw(st.integers(1, 4)))
    world.planned(data.draw(st.lists(st.sampled_from(fleet), min_size=1, unique=True)))
    left = data.draw(st.permutations(fleet)) if data.draw(st.booleans()) else list(fleet)
    truth: dict[str, str] = {}
    while left:
        size = data.draw(st.integers(1, 10))
        chunk, left = sorted(left[:size]), left[size:]
        if data.draw(st.booleans()):
            truth |= dict.fromkeys(chunk, world.task(*chunk))
    rows = list(world.store.rows())
    world.doubt(*data.draw(st.sets(st.sampled_from([row.number for row in rows]))))
    before = world.states()
    sends = data.draw(st.booleans())
    found = world.reconcile(assume_absent=sends)
    after = world.states()
    assert {device: task for device, (_, task) in after.items() if task is not None} == truth
    assert {device for device, (state, _) in after.items() if state == "accepted"} == set(truth)
    assert set(after) == set(before) | set(truth)
    counts = found.counts
    assert counts.accepted + counts.in_doubt + counts.pending + counts.cancelled == counts.devices
    assert counts.in_doubt == sum(found.doubts.values())
    planned = {device for device, (state, _) in after.items() if state == "planned"}
    if not sends:
        doubted = {device for device, (state, _) in before.items() if state == "in_doubt"}
        assert not planned & doubted
        if found.behind:
            assert not planned
    else:
        assert counts.in_doubt == 0
    again = world.reconcile(assume_absent=sends)
    assert (again.adopted, again.released, again.history, again.behind) == (0, 0, 0, False)
    assert world.states() == after


def test_reads_keep_the_ceiling() -> None:
    """In any window T at most rate · T + burst reads leave, and the first waits for its permit."""
    world = World(page_size=1)
    world.planned(ids(40))
    for number in range(0, 40, 2):
        world.task(ids(40)[number])
    world.doubt(1, 2, 3, 4)
    world.reconcile(rate_per_s=5.0, burst=2)
    at = [instant for instant, _ in world.reads]
    assert len(at) == 40
    assert all(end - begin >= (n - 2) / 5.0 - 1e-6 for n, (begin, end) in _spans(at))


def _spans(at: list[float]) -> list[tuple[int, tuple[float, float]]]:
    return [
        (last - first + 1, (at[first], at[last]))
        for first in range(len(at))
        for last in range(first, len(at))
    ]


def test_a_list_that_is_cut_short_proves_nothing_absent() -> None:
    """What was found is adopted; the rest stays in doubt, whatever the policy."""
    world = World()
    world.planned(ids(50))
    world.doubt(1, 2, 3, 4, 5)
    for start in range(0, 40, 10):
        world.task(*ids(50)[start : start + 10])
    found = world.reconcile(max_pages=1, assume_absent=True)
    assert (found.complete, found.adopted, found.counts.in_doubt, found.released) == (False, 30, 20, 0)


def test_a_list_in_circles_ends() -> None:
    """A next token that comes again is no end of the list."""
    world = World()
    world.planned(ids(10))
    world.doubt(1)
    world._pages = lambda _token, _limit: TaskPage((), "again")  # type: ignore[method-assign]
    found = world.reconcile(assume_absent=True)
    assert (found.complete, found.counts.in_doubt, found.pages) == (False, 10, 2)


def test_known_tasks_that_are_not_listed_spoil_the_proof() -> None:
    """A list without an accepted batch's task does not show everything: a reboot is not released by it."""
    world = World()
    world.planned(ids(20))
    (batch,) = world.store.claim(limit=1, max_devices=None, now=SENT_AT)
    accepted = Outcome(batch.number, BatchState.ACCEPTED, 10, 1, SENT_AT, SENT_AT, "st-gone", None)
    world.store.record([accepted], now=EPOCH)
    world.doubt(2)
    found = world.reconcile(assume_absent=True)
    assert (found.unlisted, found.released, found.counts.in_doubt) == (1, 0, 10)


def test_tasks_of_other_runs_are_nobodys_business() -> None:
    """Neither adopted nor described."""
    world = World()
    world.planned(ids(10))
    world.doubt(1)
    world.task(*ids(10), run="bench@other")
    found = world.reconcile()
    assert (found.listed, found.tasks, found.adopted, found.calls) == (1, 0, 0, 1)


def test_two_tasks_are_told() -> None:
    """Under one token, and one device in tasks of two cuts: ids, devices, exit 1; the first one is kept."""
    world = World()
    world.planned(ids(20))
    world.doubt(1, 2)
    first, second = world.task(*ids(20)[:10]), world.task(*ids(20)[:10])
    third = world.task(*ids(20)[10:])
    fourth = world.task("smd-015", "smd-016")
    found = world.reconcile()
    assert (found.twice, found.exit, found.counts.accepted) == (12, 1, 20)
    assert {one.task_ids: len(one.devices) for one in found.broken} == {
        (first, second): 10,
        (third, fourth): 2,
    }
    assert world.states()["smd-000"] == ("accepted", first)


def test_throttles_and_faults_are_waited_out() -> None:
    """Each is asked again; pages are halved where answers do not come."""
    world = World(page_size=100)
    world.planned(ids(10))
    world.doubt(1)
    world.task(*ids(10))
    bad = [Answer(kind=Kind.THROTTLED, code="ThrottlingException"), Answer(kind=Kind.NO_REPLY, code="Reset")]
    world.fate = lambda _operation, call: bad[call % 2] if call < 9 else None
    found = world.reconcile(rate_control="aimd")
    assert (found.adopted, found.calls, found.throttled) == (10, 9, 4)


@pytest.mark.parametrize(
    ("kind", "calls"), [(Kind.DENIED, 2), (Kind.ODD, 3), (Kind.POISON, 1), (Kind.NO_REPLY, None)]
)
def test_a_list_that_cannot_be_had_is_exit_3(kind: Kind, calls: int | None) -> None:
    """Refused, not the service's own answer, no such page, or away for the patience: nothing has changed."""
    world = World(fate=lambda _operation, _call: Answer(kind=kind, code="No", message="no"))
    world.planned(ids(10))
    world.doubt(1)
    before = world.states()
    with pytest.raises(RunStopped, match="ListTasks cannot be had"):
        world.reconcile(patience_s=60)
    assert calls is None or len(world.reads) == calls
    assert world.states() == before


def test_a_description_that_cannot_be_had_is_exit_3() -> None:
    """One error, not a group of them."""
    world = World(page_size=100)
    world.planned(ids(30))
    world.doubt(1, 2, 3)
    for device in ids(30):
        world.task(device)
    denied = Answer(kind=Kind.DENIED, code="AccessDeniedException")
    world.fate = lambda operation, _call: denied if operation == "DescribeTask" else None
    with pytest.raises(RunStopped, match="DescribeTask"):
        world.reconcile()


def test_tasks_of_another_account_are_refused() -> None:
    """Credentials of somebody else must not settle this run."""
    world = World()
    world.planned(ids(10))
    world.doubt(1)
    world.store.learn(account="999999999999", now=EPOCH)
    world.task(*ids(10))
    with pytest.raises(PlanMismatch, match="123456789012"):
        world.reconcile()


def test_killed_between_two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever block it was stopped at, doing it again ends as doing it once."""
    monkeypatch.setattr("dispatcher.reconcile.BLOCK", 1)
    outcomes = []
    for stop_after in range(6):
        world = World()
        world.planned(ids(50))
        world.doubt(1, 2)
        world.task(*ids(50)[:10])
        world.task(*ids(50)[12:15])
        world.task(*ids(50)[30:40])
        rule, done = world.store.rule, [0]

        def stopping(
            *arguments: Any, _rule: Any = rule, _done: list[int] = done, _at: int = stop_after, **more: Any
        ) -> None:
            if _done[0] == _at:
                raise CheckpointError("killed")
            _done[0] += 1
            _rule(*arguments, **more)

        world.store.rule = stopping  # type: ignore[method-assign]
        try:
            world.reconcile()
        except CheckpointError:
            world.store.rule = rule  # type: ignore[method-assign]
            world.reconcile()
        outcomes.append(world.states())
    assert all(found == outcomes[-1] for found in outcomes)


def marked(world: World, folder: Path) -> Registry:
    """Give a world a registry that knows of no sending."""
    record = Record(
        run="bench", checkpoint="-", plan_id="p", intent_digest="i", selection_digest="s",
        inventory_digest="d",
        token_version=1, endpoint_url=None, region="us-west-2", planned_at=EPOCH, planned=2,
    )  # fmt: skip
    registry = Registry(folder)
    registry.put(record)
    world.marker = Marker(registry, record)
    return registry


def test_the_registry_is_never_ahead_of_the_doubt(tmp_path: Path) -> None:
    """Were the run marked as sent while all of it is still planned, a crash would have it sent again."""
    world = World()
    world.planned(ids(20))
    world.task(*ids(20)[:10])
    registry = marked(world, tmp_path)
    doubt = world.store.doubt_up_to

    def killed(*_arguments: Any, **_options: Any) -> None:
        raise CheckpointError("killed")

    world.store.doubt_up_to = killed  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="killed"):
        world.reconcile()
    kept = registry.get("bench")
    assert kept is not None
    assert kept.first_sent_at is None
    assert {state for state, _ in world.states().values()} == {"planned"}
    world.store.doubt_up_to = doubt  # type: ignore[method-assign]
    assert (world.reconcile().counts.in_doubt, world.marker and world.marker.record.first_sent_at) == (
        *(10, SENT_AT),
    )


def test_the_registry_learns_of_a_sending_it_did_not_know(tmp_path: Path) -> None:
    """What is adopted was sent: a checkpoint that is lost after that is not planned anew."""
    world = World()
    world.planned(ids(20))
    world.doubt(1)
    world.task(*ids(20)[:10])
    registry = marked(world, tmp_path)
    world.reconcile()
    kept = registry.get("bench")
    assert kept is not None
    assert (kept.first_sent_at, kept.is_recut, kept.planned) == (SENT_AT, False, 2)


def test_a_listed_task_that_cannot_be_described_hides_its_devices() -> None:
    """It may have any of them: whatever is not found is not taken for absent, and the list as unread."""
    unknown = Answer(kind=Kind.POISON)
    world = World(fate=lambda operation, _call: unknown if operation == "DescribeTask" else None)
    world.planned(ids(20))
    world.doubt(1)
    world.doubt(2)
    world.task(*ids(20)[:10])
    world.task(*ids(20)[10:15], token="of another cut")
    found = world.reconcile(assume_absent=True)
    assert (found.adopted, found.released, found.counts.in_doubt, found.complete) == (10, 0, 10, False)


def test_without_system_tags_only_the_same_devices_count() -> None:
    """Same devices, tags and description, made after the batch was sent; a subset is somebody else's."""
    plan = Plan(**{name: getattr(PLAN, name) for name in PLAN.__struct_fields__} | {"system_tags": False})
    world = World(plan=plan)
    world.planned(ids(30))
    world.doubt(1)
    world.doubt(2)
    world.doubt(3, first=SENT_AT + 60)
    world.task(*ids(30)[:10])
    world.task(*ids(30)[10:15])
    world.task(*ids(30)[20:])
    found = world.reconcile()
    assert (found.adopted, found.counts.in_doubt) == (10, 20)


# ----------------------------------------------------------------------------- the look before


def test_a_look_finds_an_old_task() -> None:
    """Exit 4 with the command that takes them up."""
    world = World()
    world.task("smd-1")
    with pytest.raises(CheckpointError, match="no record") as caught:
        world.probe()
    assert caught.value.exit_code == 4
    assert "dispatcher reconcile MANIFEST" in caught.value.one_line()


def test_a_look_inside_the_window_lets_the_run_go_on() -> None:
    """The service answers the same tokens with the tasks it has."""
    world = World()
    world.sent_elsewhere("smd-1", "smd-2")
    world.probe(token_window_s=86_400)


def test_a_look_refuses_tasks_that_are_cut_otherwise() -> None:
    """Another cut has other tokens, which the service would not know."""
    world = World()
    world.sent_elsewhere("smd-1", "smd-2")
    world.probe(token_window_s=86_400)
    world.task("smd-1")
    with pytest.raises(CheckpointError, match="already has tasks of run bench"):
        world.probe(token_window_s=86_400)


def test_a_look_refuses_a_limit_where_tasks_are_known() -> None:
    """A limit cuts the last batch otherwise than its task."""
    world = World()
    world.sent_elsewhere("smd-1", "smd-2")
    with pytest.raises(CheckpointError, match="already has tasks of run bench"):
        world.probe(token_window_s=86_400, limit=1)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.ACCEPTED])
def test_a_look_that_fails_is_harmless(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever answers: two calls at most, no error; a missing permission is told once."""
    world = World(fate=lambda _operation, _call: Answer(kind=kind, code="No"))
    world.task("smd-1")
    is_passing = kind in (Kind.THROTTLED, Kind.BARE_THROTTLE, Kind.NO_REPLY)
    assert world.probe(rate_per_s=10.0) == pytest.approx(RETRY_S if is_passing else 0.0)
    assert len(world.reads) == (2 if is_passing else 1)
    assert len(caplog.records) == (kind in (Kind.DENIED, Kind.EXPIRED))


def test_a_look_that_is_throttled_once_still_finds_the_tasks() -> None:
    """A single throttle must not let a device be commanded twice."""
    once = Answer(kind=Kind.THROTTLED)
    world = World(fate=lambda _operation, call: once if call == 1 else None)
    world.task("smd-1")
    with pytest.raises(CheckpointError, match="no record"):
        world.probe()


def test_a_look_is_bounded_in_pages_and_time() -> None:
    """Five pages, or two seconds; the first call waits for nothing."""
    world = World(page_size=1)
    for number in range(20):
        world.task(f"smd-{number}", run="other")
    assert world.probe(rate_per_s=10.0) <= 0.5
    assert len(world.reads) == 5
    world.reads.clear()
    assert world.probe(rate_per_s=0.5, burst=1) == pytest.approx(2.0)
    assert len(world.reads) <= 2


def test_a_look_that_saw_a_task_does_not_run_out_of_time() -> None:
    """At a slow rate its age is told after the deadline only; that must not pass for no task."""
    world = World()
    world.sent_elsewhere("smd-1", "smd-2")
    with pytest.raises(CheckpointError, match="already has tasks of run bench"):
        world.probe(rate_per_s=0.1, burst=1)
    world.probe(rate_per_s=0.1, burst=1, token_window_s=86_400)
    assert world.known_since == SENT_AT


def test_a_look_at_the_newest_of_many_tasks_tells_no_age() -> None:
    """Newest first, and more pages follow: the oldest may be outside of the window."""
    world = World(page_size=2)
    batches = [tuple(ids(30)[at : at + 10]) for at in (0, 10, 20)]
    world.planned(ids(30))
    for batch in batches:
        world.task(*batch)
    is_newest_first = True

    def made_at(task_id: str) -> float:
        number = int(task_id[-4:])
        return EPOCH - (number + 1 if is_newest_first else 9 - number)

    world.made_at = made_at
    with pytest.raises(CheckpointError, match="already has tasks of run bench"):
        world.probe()
    is_newest_first = False
    world.probe()
    assert world.known_since == EPOCH - 9
    world.page_size, is_newest_first = 3, True
    world.probe()
    assert world.known_since == EPOCH - 3, "the list was read whole"


def test_a_look_takes_the_age_from_the_service() -> None:
    """A service whose clock is ahead must not make its tasks look younger, and so its tokens last longer."""
    world = World(service_now=EPOCH + 240)
    world.sent_elsewhere("smd-1", "smd-2")
    world.made_at = lambda _task_id: EPOCH - 200
    world.probe()
    assert world.known_since == pytest.approx(EPOCH - 441, abs=0.2)


def test_a_look_at_a_bug_is_harmless() -> None:
    """An exception that nobody foresaw is not the run's business."""
    world = World()
    world._pages = lambda _token, _limit: 1 / 0  # type: ignore[assignment,method-assign,return-value]
    assert world.probe() == 0.0
