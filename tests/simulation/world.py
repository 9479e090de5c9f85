"""The world of one scenario: a service, hosts, processes on them, and operators who do things.

Every process is the real library over a simulated transport, disk and clock: `open_dispatcher`, `run` and
`resume`, as the command line calls them. The world starts one process after the other, lets the scenario's
items befall them, and at last runs the manifest with nothing going wrong any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

from dispatcher import prepare
from dispatcher.checkpoint import lease
from dispatcher.checkpoint.lease import Holder
from dispatcher.emulator.config import Config
from dispatcher.emulator.service import Service
from dispatcher.errors import CheckpointError, DispatcherError
from dispatcher.library import open_dispatcher
from dispatcher.observe import BatchSettled, LaneChanged, RunEnded, RunStarted, TaskReplayed
from dispatcher.plan import ClientTokens
from dispatcher.settings import Settings
from tests.simulation import verdict
from tests.simulation.disk import Disk, Failure, Killed
from tests.simulation.guard import sealed
from tests.simulation.loop import PROCESS, Stuck, VirtualTimeLoop
from tests.simulation.operators import Operators
from tests.simulation.scenario import FAULTS_OF_IO, SLEEP_IO, Item, Scenario
from tests.simulation.wire_network import WireNetwork, installed
from tests.simulation.wire_transport import open_transport
from tests.simulation.witness import Witness

if TYPE_CHECKING:
    from dispatcher.manifest import Manifest
    from dispatcher.model import Summary
    from dispatcher.observe import Event
    from dispatcher.run import Run

EPOCH = 1_800_000_000.0
RUN = "sim"
REGION = "us-west-2"
MAX_STEPS = 400_000
CALM_LIVES = 10
"""Processes without faults after which a run must have come to its end."""
LOOKED_UP = ("never listed to the end", "already has tasks of run", "than was sent last")
"""What a run says that asks for a reconcile of its manifest."""
_STATE_OF = """SELECT coalesce((SELECT state FROM outcome o WHERE o.batch = b.number),
    CASE WHEN EXISTS (SELECT 1 FROM claim c WHERE b.number BETWEEN c.first AND c.last)
    THEN 'sent' ELSE 'planned' END) FROM batch b WHERE targets = ? ORDER BY number DESC LIMIT 1"""


@dataclass(eq=False)
class Host:
    """A machine with its own clock and state folder."""

    world: World
    name: str
    state: Path
    skew_s: float = 0.0

    def wall(self) -> float:
        return self.world.true_s() + self.skew_s


@dataclass(eq=False)
class Process:
    """One `dispatcher run` or `resume`."""

    world: World
    name: str
    host: Host
    limits: dict[str, Any]
    is_beside: bool = False
    """Whether it runs beside another one, or after one that still lives."""
    in_flight: int = 0
    has_accepted: bool = False
    overtaken_s: float | None = None
    departures: list[float] = field(default_factory=list)
    permits: list[float] = field(default_factory=list)
    """When permits were used: by departures, and by calls that found no credentials."""
    began_s: float = 0.0
    run: Any = None
    lane: str = "open"
    reader: apsw.Connection | None = None
    connections: list[apsw.Connection] = field(default_factory=list)
    dispatcher: Any = None
    ended: asyncio.Future[None] | None = None
    summary: Summary | None = None
    error: BaseException | None = None
    is_killed: bool = False
    on_prepared: Callable[[], None] = lambda: None

    @property
    def rate_per_s(self) -> float:
        return float(self.limits["rate_per_s"])

    @property
    def burst(self) -> int:
        return int(self.limits["burst"])

    @property
    def max_in_flight(self) -> int:
        return int(self.limits["max_in_flight"])

    @property
    def token_window_s(self) -> float:
        return float(self.limits["token_window_s"])

    @property
    def is_over(self) -> bool:
        return self.is_killed or self.summary is not None or self.error is not None

    def state_of(self, targets: tuple[str, ...]) -> str:
        assert self.reader is not None
        with self.world.looking():
            found = self.reader.execute(_STATE_OF, (" ".join(targets),)).get
        return "nowhere" if found is None else str(found)


class World:
    """One scenario, run to its end; `broken` says what did not hold."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.folder = folder
        self.lines: list[str] = []
        self.reached: Counter[str] = Counter()
        self.rng = random.Random(f"world-{scenario.seed}")
        shuffle = random.Random(f"order-{scenario.seed}") if scenario.is_shuffled else None
        self.loop = VirtualTimeLoop(shuffle, max_steps=MAX_STEPS)
        self.loop.on_step = self._on_step
        self.loop.set_exception_handler(self._on_loop_error)
        commit = random.Random(f"commit-{scenario.seed}")
        self.loop.commit_s = lambda: commit.choice((0.0001, 0.001, 0.001, 0.02, 0.2))
        self.slept_s = 0.0
        self.calls = 0
        self.life = 0
        self.is_calm = False
        self.is_amnesiac = False
        """Whether a process goes on from less than is known: inside what the service remembers."""
        self.has_turned_back = False
        """Whether a clock was ever set back: then ages measured by it may be too small."""
        self.is_late = False
        """Whether the next call takes long to arrive: a token's window is about to end."""
        self.is_recut = False
        self.is_stale = False
        """Whether a host goes on from an old copy alone: then nothing may be cut anew before a reconcile."""
        self.is_replanned = False
        """Whether a reconcile planned anew what was lost: then tokens of old batches may be nobody's."""
        self.is_shared = False
        """Whether the checkpoint lies on a file system of no host here: no power loss reaches it."""
        self.vanished: set[str] = set()
        self._arrivals: dict[Callable[[], None], bool] = {}
        self._must_bury = False
        self.processes: list[Process] = []
        self.current: Process | None = None
        self.disk = Disk(folder / "disk", owner=PROCESS.get, on_kill=self._killed_by_disk)
        self.disk.on_failure = lambda failure: self.count("io", failure.value)
        self.disk.root.mkdir(parents=True, exist_ok=True)
        self.devices = [f"smd-{n:05d}" for n in range(scenario.devices)]
        self.bad = frozenset(f"smd-{n:05d}" for n in scenario.bad)
        self.service_window_s = scenario.service_window_s
        self.service = Service(
            Config(
                bad_ids=self.bad,
                region="eu-west-1" if scenario.is_wrong_region else REGION,
                rate_per_s=scenario.service_rate_per_s,
                token_window_s=scenario.service_window_s,
                seed=scenario.seed,
            )
        )
        self.witness = Witness(self)
        self.wire = WireNetwork(self) if scenario.is_wire else None
        """The network of a seed that sends through the real wire transport."""
        self.host = self.new_host()
        self.checkpoint = self.host.state / f"{RUN}.db"
        self.operators = Operators(self)
        self._faults = {int(item.at): item.what for item in scenario.items if item.kind == "call"}
        self._windows = [item for item in scenario.items if item.kind == "window"]
        self._step_moments: list[tuple[int, Item]] = []

    # What the rest asks

    def true_s(self) -> float:
        """Unix seconds by no clock of any host."""
        return EPOCH + self.loop.virtual_s + self.slept_s

    def wall_s(self) -> float:
        process = PROCESS.get()
        return process.host.wall() if process is not None else self.true_s()

    def log(self, text: str) -> None:
        text = text.replace(str(self.folder), "~")
        self.lines.append(f"{self.true_s() - EPOCH:12.6f} {text}")

    def count(self, kind: str, what: str) -> None:
        self.reached[f"{kind}: {what}"] += 1

    def later(self, delay_s: float, work: Callable[[], None]) -> None:
        """Do something of the world's own after a while, whoever asks for it."""
        context = copy_context()
        context.run(PROCESS.set, None)
        self.loop.call_later(delay_s, work, context=context)

    @property
    def has_broken_off(self) -> bool:
        """Whether a process ever ended in the middle: then what it had claimed may be in doubt."""
        return self.operators.has_lost or any(
            process.is_killed or isinstance(process.error, CheckpointError) for process in self.processes
        )

    def on_its_way(self, delay_s: float, serve: Callable[[], None]) -> None:
        """Let a call reach the service after a while."""
        arrivals = self._arrivals

        def arrive() -> None:
            if arrivals.pop(arrive, None):
                serve()

        arrivals[arrive] = True
        self.later(delay_s, arrive)

    def arrive(self) -> None:
        """Let all that is on its way reach the service now."""
        for arrive in list(self._arrivals):
            arrive()

    def mode(self) -> str | None:
        """What befalls every call now."""
        if self.is_calm:
            return None
        now_s = self.true_s() - EPOCH
        for item in self._windows:
            if item.at <= now_s < item.at + item.value:
                return item.what
        return None

    def next_fault(self) -> tuple[int, str | None]:
        """Number a call, and say what befalls it."""
        self.calls += 1
        if self.is_calm:
            return self.calls, None
        mode = self.mode()
        fault = self._faults.get(self.calls) if mode is None else mode
        if self.is_late:
            self.is_late, fault = False, "late_arrival"
        if fault is not None:
            self.count("window" if mode else "fault", fault)
        return self.calls, fault

    @contextlib.contextmanager
    def looking(self) -> Any:
        """Let whoever checks read files without being counted or failed."""
        was_paused, self.disk.is_paused = self.disk.is_paused, True
        try:
            yield
        finally:
            self.disk.is_paused = was_paused

    def new_host(self) -> Host:
        """A machine whose clock is right: it may be behind the one before."""
        name = "ABCDEFGHIJ"[len({process.host for process in self.processes})]
        state = self.disk.root / name
        state.mkdir(mode=0o700, exist_ok=True)
        if self.processes:
            self.has_turned_back |= self.host.skew_s > 0.0
        return Host(self, name, state)

    # Running it

    def run(self) -> World:
        """Run the scenario; whatever breaks is in `witness.broken`."""
        rng = random.Random(f"chance-{self.scenario.seed}")
        holder, network = prepare.this_holder, lease.network_file_system
        hooks = apsw.connection_hooks[:]
        apsw.connection_hooks.append(self._on_connection)
        prepare.this_holder = self._holder
        lease.network_file_system = lambda _path: None
        try:
            with (
                self.disk.installed(),
                installed(self),
                sealed(wall=self.wall_s, monotonic=self.loop.time, rng=rng) as leaks,
            ):
                self._drive()
                with self.looking():
                    verdict.check_end(self)
                for leak in leaks:
                    self.witness.breaks(0, f"the code under test reached for {leak}")
        finally:
            prepare.this_holder, lease.network_file_system = holder, network
            apsw.connection_hooks[:] = hooks
            self.loop.close()
            shutil.rmtree(self.folder, ignore_errors=True)
        return self

    def _drive(self) -> None:
        main = self.loop.create_task(self._main())
        while not main.done():
            try:
                self.loop.run_until_complete(main)
            except Killed:
                self._bury()
            except Stuck as error:
                self.witness.breaks(6, f"liveness: {error}")
                for process in self.processes:
                    if not process.is_over:
                        self.kill(process, "stuck")
                return
            except Exception as error:
                self.witness.breaks(0, f"{type(error).__name__}: {error}")
                raise
            self._bury()

    async def _main(self) -> None:
        for life in range(self.scenario.lives):
            self.life = life
            await self.operators.before(self.life)
            if life and random.Random(f"reconcile-{self.scenario.seed}-{life}").random() < 0.2:
                await self.operators.reconcile()
            await self._live(self.scenario.of_life("moment", self.life))
        self.is_calm = True
        self.life = self.scenario.lives
        await self.operators.before(self.life)
        self.witness.has_accepted = False
        for _ in range(CALM_LIVES):
            self.operators.settle_down()
            process = await self._live([])
            self.life += 1
            if verdict.is_final(self, process) and not await self.reconcile(str(self.checkpoint)):
                return
            if any(text in str(process.error) for text in LOOKED_UP):
                await self.reconcile(self.operators.manifest())
        self.witness.breaks(6, f"liveness: no end after {CALM_LIVES} processes without faults")

    async def _live(self, moments: list[Item]) -> Process:
        """Run one process to its end, whatever that is."""
        process = self.start(self.host, self.operators.limits())
        began = self.loop.steps, len(self.disk.trace)
        self._step_moments = []
        for item in moments:
            if item.what.endswith("_step"):
                self._step_moments.append((began[0] + int(item.at), item))
            elif item.what in FAULTS_OF_IO:
                self.count("moment", item.what)
                failure = Failure(FAULTS_OF_IO[item.what])
                self.disk.fail(int(item.at), failure, lasting=item.what == "disk_full")
            elif item.what == SLEEP_IO:
                self.disk.at(int(item.at), lambda item=item: self.operators.moment(item, process))
            elif item.what.endswith("_io"):
                self.count("moment", item.what)
                self._power_at_kill = item if item.what == "power_io" else None
                self.disk.fail(int(item.at), Failure.KILL)
            else:
                self.later(item.at, lambda item=item: self.operators.moment(item, process))
        self.current = process
        for each in self.processes:
            if each.ended is not None and not each.is_over:
                await each.ended
        self._step_moments = []
        self.disk.heal()
        self.current = None
        for each in [each for each in self.processes if each.is_beside and not each.is_over]:
            assert each.ended is not None
            await each.ended
        verdict.check_process(self, process)
        return process

    _power_at_kill: Item | None = None

    def start(self, host: Host, limits: dict[str, Any], *, beside: bool = False) -> Process:
        """Begin a process of the library's on a host."""
        process = Process(self, f"p{len(self.processes) + 1}{host.name}", host, limits, is_beside=beside)
        self.processes.append(process)
        process.ended = self.loop.create_future()
        verb, manifest = self.operators.verb, self.operators.manifest()
        self.count("verb", verb)
        settings = Settings(
            state_dir=host.state, checkpoint=self.checkpoint, take_over=self.operators.must_take_over,
            allow_network_fs=True, accept_removals=1_000_000, region=REGION, yes=True,
            reconcile=self.is_amnesiac, **limits,
        )  # fmt: skip
        context = copy_context()
        context.run(PROCESS.set, process)
        self.log(f"{process.name} starts: {verb} {limits}")
        task = context.run(self.loop.create_task, self._process(process, verb, manifest, settings))
        task.add_done_callback(lambda done: self._ended(process, done), context=copy_context())
        return process

    async def _process(self, process: Process, verb: str, manifest: Manifest, settings: Settings) -> None:
        async def connect(plan: Any, resolved: Any) -> Any:
            return await open_transport(self, process, plan, resolved)

        if verb == "run":
            self.operators.offers(manifest)
        async with open_dispatcher(settings, open_transport=connect) as dispatcher:
            process.dispatcher = dispatcher
            hook, before = self._hook(process), self._before(process, verb)
            if verb == "run":
                summary = await dispatcher.run(manifest, on_event=hook, before=before)
            else:
                summary = await dispatcher.resume(str(self.checkpoint), on_event=hook, before=before)
        if verb == "run":
            self.operators.applied()
        process.summary = summary

    async def reconcile(self, run: str | Manifest) -> bool:
        """Look up what is in doubt, as `dispatcher reconcile` does; tell whether it plans anything again."""
        name = f"r{self.life}{self.host.name}"
        process = Process(self, name, self.host, self.operators.limits(), is_beside=True)
        settings = Settings(
            state_dir=self.host.state, checkpoint=self.checkpoint, take_over=True, allow_network_fs=True,
            region=REGION, **process.limits,
        )  # fmt: skip

        async def connect(plan: Any, resolved: Any) -> Any:
            return await open_transport(self, process, plan, resolved)

        async def work() -> None:
            async with open_dispatcher(settings, open_transport=connect) as dispatcher:
                found = await dispatcher.reconcile(run)
            self.log(f"{name} reconciled: {found.as_json()}")
            for what in ("adopted", "released", "history", "contradicted", "twice"):
                self.reached[f"reconcile: {what}"] += bool(getattr(found, what))
            self.is_recut |= bool(found.released or found.history)
            if found.complete:
                verdict.rule_out(self)
            released.append(found.released)

        context, released = copy_context(), [0]
        self.is_replanned |= not isinstance(run, str)
        context.run(PROCESS.set, process)
        try:
            await context.run(self.loop.create_task, work())
        except DispatcherError as error:
            self.log(f"{name} fails: {error.one_line()}")
            self.count("reconcile", f"exit {error.exit_code}")
            if self.is_calm:
                self.witness.breaks(6, f"reconcile: {error.one_line()}")
        finally:
            self.disk.close_all(process)
        if released[-1]:
            verdict.check_released(self)
        return bool(released[-1])

    def _check_bucket(self, process: Process) -> None:
        engine = None if process.run is None else process.run._engine
        if engine is not None:
            process.began_s = engine._admission._bucket._anchor_s
            self.witness.check_bucket(process, engine._admission._bucket)

    def _before(self, process: Process, verb: str) -> Callable[[Run], None]:
        def look(run: Run) -> None:
            process.reader = process.connections[-1]
            if verb == "run":
                self.operators.applied()
            for what, count in (run._prepared.diff or {}).items():
                if count:
                    self.count("edit", what)
            for note in run.notes:
                self.count("note", verdict.kind_of_note(note))
                self.log(f"{process.name} note: {note}")
            if any("go back to the plan" in note for note in run.notes):
                verdict.check_released(self)
            self.is_replanned |= any("looked up at the service" in note for note in run.notes)
            if any("rebuilt" in note for note in run.notes):
                self.witness.told.clear()  # what the lost file said is asked of the service again
            process.run = run
            process.on_prepared()
            process.has_accepted = run.counts.accepted > 0
            if not self.is_amnesiac:
                rows = verdict.rows_by_token(run._prepared.checkpoint, ClientTokens(run.plan))
                self.witness.check_stored(rows, when=f"{process.name} prepared")

        def looked(run: Run) -> None:
            with self.looking():
                look(run)

        return looked

    def _hook(self, process: Process) -> Callable[[Event], Awaitable[None]]:
        async def hear(event: Event) -> None:
            if isinstance(event, BatchSettled):
                self.count("settled", str(event.state))
                self.log(f"{process.name} batch {event.batch} {event.state} {event.error_code}")
                if event.state == "accepted" and process.overtaken_s is None:
                    self._tell(event)
                elif event.state == "in_doubt":
                    self.witness.doubted(event.device_ids)
            elif isinstance(event, LaneChanged):
                self.count("lane state", event.state)
                self.count("lane", f"{process.lane} → {event.state}")
                process.lane = event.state
                self.log(f"{process.name} lane {event.state}: {event.reason}")
            elif isinstance(event, (RunStarted, RunEnded)):
                self.log(f"{process.name} {event.text()}")
            elif isinstance(event, TaskReplayed):
                self.count("event", "replayed")

        return hear

    def _tell(self, event: BatchSettled) -> None:
        task = self.service.tasks.get(event.task_id or "")
        if task is None or task.client_token is None:
            self.witness.breaks(3, f"batch {event.batch} is told as accepted with no task of the service's")
            return
        self.witness.told[task.client_token] = task.task_id
        self.witness.has_accepted = True

    # Ends

    def _ended(self, process: Process, task: asyncio.Task[None]) -> None:
        if process.is_killed:
            return
        self._check_bucket(process)
        error = None if task.cancelled() else task.exception()
        process.error = error
        if isinstance(error, DispatcherError):
            self.count("exit", f"{error.exit_code} {type(error).__name__}")
            self.log(f"{process.name} ends: {type(error).__name__} {error.one_line()}")
        elif error is not None:
            self.log(f"{process.name} fails: {type(error).__name__} {error}")
        elif process.summary is not None:
            self.count("exit", str(process.summary.exit))
            self.log(f"{process.name} ends: {process.summary.as_json()}")
        else:
            process.is_killed = True
        self.disk.close_all(process)
        if process.ended is not None and not process.ended.done():
            process.ended.set_result(None)

    def kill(self, process: Process, how: str) -> None:
        """End a process at once; its files stay as they are."""
        self.log(f"{process.name} is killed ({how})")
        self.count("killed", how)
        process.is_killed = True
        process.reader = None
        self.disk.kill(process)
        context = copy_context()
        context.run(PROCESS.set, process)
        context.run(self.loop.end, process)
        for connection in process.connections:
            with contextlib.suppress(BaseException):
                context.run(connection.close, True)
        self.disk.close_all(process)
        self.disk.heal()

    def _killed_by_disk(self, owner: Any) -> None:
        owner.is_killed = self._must_bury = True

    def _bury(self) -> None:
        """After a step in which a process was killed: take it away, and look at what it left."""
        self._must_bury = False
        for process in self.processes:
            if process.is_killed and process.ended is not None and not process.ended.done():
                power, self._power_at_kill = self._power_at_kill, None
                self.kill(process, "io")
                self.after_death(process, self.rng if power is not None else None)

    def after_death(self, process: Process, power: random.Random | None) -> None:
        """Lose power, if that is it, and hold what is left on the disk against the wire."""
        if power is not None and not self.is_shared:
            self.count("power", "lost")
            self.disk.power_loss(power if power.random() < 0.7 else None, under=process.host.state)
        with self.looking():
            verdict.check_after_crash(self, process)
        if process.ended is not None and not process.ended.done():
            process.ended.set_result(None)

    def _on_step(self) -> None:
        if self._must_bury:  # SQLite kept what was raised to itself
            self._bury()
        if self._step_moments and self.current is not None:
            for at, item in self._step_moments:
                if self.loop.steps == at and not self.current.is_over:
                    self.count("moment", item.what)
                    self.kill(self.current, "step")
                    self.after_death(self.current, self.rng if item.what == "power_step" else None)

    def _on_loop_error(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        is_of_the_dead = any(process.is_killed for process in self.processes)
        if "never retrieved" in context["message"] and (is_of_the_dead or "task" not in context):
            return
        if error is not None and not isinstance(error, (Killed, Stuck)):
            self.witness.breaks(
                0, f"{context.get('message')}: {type(error).__name__}: {error} {context.get('future')}"
            )

    def _on_connection(self, connection: apsw.Connection) -> None:
        process = PROCESS.get()
        if process is not None:
            process.connections.append(connection)

    def _holder(self) -> Holder:
        process = PROCESS.get()
        name = process.host.name
        return Holder(host=name, machine=name, boot=name, pid=len(self.processes), since=process.host.wall())
