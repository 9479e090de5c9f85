"""The real engine in virtual time: a scripted service, no threads, no sockets."""

from __future__ import annotations

import asyncio
import random
import selectors
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dispatcher.checkpoint.base import Plan
from dispatcher.checkpoint.lease import Locks
from dispatcher.checkpoint.memory import MemoryCheckpoint
from dispatcher.checkpoint.registry import Marker, Record, Registry
from dispatcher.checkpoint.writer import InlineOffload
from dispatcher.errors import DispatcherError
from dispatcher.model import Answer, Kind, Lane, Summary
from dispatcher.observe import Event, Hooks
from dispatcher.plan import cut
from dispatcher.prepared import Prepared
from dispatcher.run import Run
from dispatcher.settings import Settings
from dispatcher.transport.base import TaskView
from dispatcher.transport.scripted import ScriptedTransport

EPOCH = 1_700_000_000.0


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer whenever nothing is ready."""

    def __init__(self) -> None:
        self.virtual_s = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.virtual_s


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError("every task is blocked and no timer is pending")
        self._loop.virtual_s += timeout
        return []


class VirtualClock:
    """Both clocks by the loop's time; `skew_s` moves the wall clock."""

    skew_s = 0.0

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        try:
            return EPOCH + self.skew_s + asyncio.get_running_loop().time()
        except RuntimeError:
            return EPOCH + self.skew_s


@dataclass
class Service:
    """A service that remembers tokens; `fate` may answer a call in its stead."""

    bad: frozenset[str] = frozenset()
    latency_s: float = 0.02
    fate: Callable[[int, Sequence[str], str, float], Any] | None = None
    """Called with (call number, targets, token, now): None is to be served honestly, an Answer is given as
    it is, ("made", Answer) makes the task first."""
    calls: list[tuple[float, tuple[str, ...], str]] = field(default_factory=list)
    tasks: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    arrivals: list[float] = field(default_factory=list)

    async def __call__(self, targets: Sequence[str], token: str) -> Answer:
        now = asyncio.get_running_loop().time()
        self.calls.append((now, tuple(targets), token))
        number = len(self.calls)
        await asyncio.sleep(self.latency_s)
        fate = self.fate(number, targets, token, now) if self.fate else None
        if isinstance(fate, Answer):
            return fate
        honest = self._serve(targets, token)
        return fate[1] if fate is not None else honest

    def _serve(self, targets: Sequence[str], token: str) -> Answer:
        if token not in self.tasks:
            if self.bad.intersection(targets):
                return Answer(kind=Kind.POISON, code="ResourceNotFoundException", message="not found")
            self.tasks[token] = (f"st-{len(self.tasks):016d}", tuple(targets))
        task_id = self.tasks[token][0]
        arn = f"arn:aws:snow-device-management:us-west-2:123456789012:task/{task_id}"
        return Answer(kind=Kind.ACCEPTED, task_id=task_id, task_arn=arn)

    def commanded(self) -> list[str]:
        """Every device of every task, repetitions included."""
        return [device for _, targets in self.tasks.values() for device in targets]


@dataclass
class Bench:
    """A planned run that can be sent, crashed and resumed."""

    folder: Path
    service: Service
    checkpoint: Any
    clock: VirtualClock = field(default_factory=VirtualClock)
    events: list[Event] = field(default_factory=list)
    transport: ScriptedTransport | None = None
    run: Run | None = None
    pulse_s: float | None = None
    """Off, so that a run in which nothing can happen any more is found out."""
    transport_type: Callable[..., ScriptedTransport] = ScriptedTransport

    def plan(self, devices: Sequence[str], *, system_tags: bool = True) -> None:
        plan = Plan(
            plan_id=uuid.uuid4().hex, run="bench", command="reboot", region="us-west-2",
            system_tags=system_tags, intent_digest="i", selection_digest="s", inventory_digest="d",
            planned_at=EPOCH,
        )  # fmt: skip
        self.checkpoint.write_plan(plan, [Lane(index=0, region="us-west-2")], cut([sorted(devices)]))

    def go(
        self,
        *,
        during: Callable[[Run], Awaitable[None]] | None = None,
        describe: Callable[[str], TaskView | None] | None = None,
        **limits: Any,
    ) -> tuple[Summary, DispatcherError | None]:
        """Send what is pending; return the summary and what stopped it."""
        self.checkpoint.acquire("test", now=self.clock.wall())
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            try:
                return runner.run(self._go(during, describe, limits))
            finally:
                self.clock.skew_s += runner.get_loop().time()  # the next process begins later

    async def _go(self, during: Any, describe: Any, limits: dict[str, Any]) -> Any:
        limits = {"rate_per_s": 1_000.0, "burst": 10, "max_in_flight": 16, "rate_control": "fixed"} | limits
        settings = Settings(state_dir=self.folder, **limits).resolve()
        self.run = Run(
            self._prepared(), settings, Hooks((self.events.append,)), self.clock,
            offload=InlineOffload(), rng=random.Random(1), pulse_s=self.pulse_s,
        )  # fmt: skip
        self.transport = self.transport_type(self.service, describe=describe)
        side = asyncio.ensure_future(during(self.run)) if during else None
        try:
            return await self.run.go(self.transport), None
        except DispatcherError as error:
            return error.summary, error
        finally:
            if side is not None:
                side.cancel()

    def _prepared(self) -> Prepared:
        plan, standing = self.checkpoint.plan(), self.checkpoint.standing()
        registry = Registry(self.folder)
        record = registry.get("bench") or Record(
            run="bench", checkpoint="-", plan_id=plan.plan_id, intent_digest="i", selection_digest="s",
            inventory_digest="d", token_version=1, endpoint_url=None, region="us-west-2", planned_at=EPOCH,
            commits=standing.commits,
        )  # fmt: skip
        return Prepared(
            checkpoint=self.checkpoint, plan=plan, marker=Marker(registry, record), locks=Locks(()),
            counts=self.checkpoint.counts(),
        )  # fmt: skip

    def states(self) -> dict[str, str]:
        """Every device's state."""
        return {device: row.state for row in self.checkpoint.rows() for device in row.targets}

    def check(self, summary: Summary) -> None:
        """What must hold after any run: classes sum, no device twice, accepted means a task exists."""
        counts = summary.counts
        assert counts.devices == (
            counts.accepted + counts.rejected + counts.in_doubt + counts.pending + counts.cancelled
        )
        commanded = self.service.commanded()
        assert len(commanded) == len(set(commanded)), "a device got two tasks"
        accepted = {device for device, state in self.states().items() if state == "accepted"}
        assert accepted <= set(commanded), "accepted without a task"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Make a bench over a memory checkpoint, planned for `devices`."""

    def make(devices: int | Sequence[str] = 100, **service: Any) -> Bench:
        made = Bench(tmp_path, Service(**service), MemoryCheckpoint())
        made.plan([f"smd-{i:05d}" for i in range(devices)] if isinstance(devices, int) else devices)
        return made

    return make
