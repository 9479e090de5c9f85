"""What was seen on the wire and told by events, held against the promises while it happens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dispatcher.model import Created, Kind

if TYPE_CHECKING:
    from dispatcher.emulator.reply import Reply
    from dispatcher.model import Answer
    from tests.simulation.world import Process, World

UNPROVEN_WINDOW = 8
LEASE_AGE_S = 10.0
CREATED = {kind: kind.created for kind in Kind}
"""A copy of its own: what the code believes may be wrong."""


@dataclass(slots=True, eq=False)
class Departure:
    """One attempt that left a process."""

    process: Process
    token: str
    targets: tuple[str, ...]
    at_s: float
    """By the clock that paces: it stands still while a machine sleeps."""
    true_s: float
    wall_s: float
    """By the clock of the host."""
    answer: Answer | None = None
    """None while it flies, and for ever where its process died meanwhile."""
    is_ruled_out: bool = False
    """Whether a reconcile has found that nothing came of it."""

    @property
    def may_have_created(self) -> bool:
        if self.is_ruled_out:
            return False
        return self.answer is None or CREATED[self.answer.kind] is not Created.NO


@dataclass(slots=True)
class Witness:
    """The record of a scenario, and what was broken."""

    world: World
    broken: list[str] = field(default_factory=list)
    departures: list[Departure] = field(default_factory=list)
    by_token: dict[str, list[Departure]] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    """Client token → task id, of what events called accepted and nobody has lost since."""
    allowed: set[str] = field(default_factory=set)
    """Devices that the manifest names as far as the run has been told."""
    has_accepted: bool = False
    mismatched: set[str] = field(default_factory=set)
    """Client tokens of which the service said that they were used otherwise."""

    def breaks(self, promise: int, what: str) -> None:
        """Note a broken promise, by its number in docs/invariants.md."""
        text = f"promise {promise}: {what}"
        if text not in self.broken:
            self.broken.append(text)
            self.world.log(f"BROKEN {text}")

    def departed(self, process: Process, token: str, targets: tuple[str, ...]) -> Departure:
        world = self.world
        found = Departure(process, token, targets, world.loop.virtual_s, world.true_s(), process.host.wall())
        self._check_departure(found)
        process.in_flight += 1
        process.departures.append(found.at_s)
        process.permits.append(found.at_s)
        self.departures.append(found)
        self.by_token.setdefault(token, []).append(found)
        if process.in_flight > process.max_in_flight:
            self.breaks(5, f"{process.in_flight} calls fly, the window is {process.max_in_flight}")
        if not process.has_accepted and process.in_flight > UNPROVEN_WINDOW:
            self.breaks(5, f"{process.in_flight} calls fly before anything was accepted")
        return found

    def looked(self, process: Process) -> None:
        """A DescribeTask left: it takes a permit too."""
        process.in_flight += 1
        process.departures.append(self.world.loop.virtual_s)
        process.permits.append(self.world.loop.virtual_s)

    def _check_departure(self, found: Departure) -> None:
        world, process, token = self.world, found.process, found.token
        removed = [device for device in found.targets if device not in self.allowed]
        if removed:
            self.breaks(8, f"{removed[0]} was sent after it was taken out of the manifest")
        knows = process.overtaken_s is None  # who was overtaken does not yet know what the other one learnt
        if token in self.told and knows:
            self.breaks(8, f"batch {token[:8]} was sent again after it was told as accepted")
        if token in self.mismatched and knows and not world.is_amnesiac and not world.operators.has_lost:
            self.breaks(1, f"batch {token[:8]} was sent again, which only a reconcile may settle")
        doubtful = [old.true_s for old in self.by_token.get(token, ()) if old.may_have_created]
        if doubtful and not world.has_turned_back:
            age_s = found.true_s - min(doubtful)
            window_s = process.token_window_s if not world.is_amnesiac else world.service_window_s
            if age_s >= window_s:
                self.breaks(1, f"batch {token[:8]} was sent again {age_s:.1f} s after a call that may count")
        if process.overtaken_s is not None and found.true_s - process.overtaken_s > LEASE_AGE_S + 0.5:
            age_s = found.true_s - process.overtaken_s
            self.breaks(4, f"{process.name} was taken over {age_s:.1f} s ago and sends")
        if process.reader is not None and process.overtaken_s is None:
            state = process.state_of(found.targets)
            if state not in ("sent", "in_doubt"):
                self.breaks(4, f"batch {token[:8]} was sent while the checkpoint calls it {state}")

    def arrived(self, process: Process, token: str) -> None:
        """A call reached the service: it may be late, but not later than the service remembers."""
        world = self.world
        doubtful = [old.true_s for old in self.by_token[token][:-1] if old.may_have_created]
        if not doubtful or world.has_turned_back or world.is_amnesiac:
            return
        age_s = world.true_s() - min(doubtful)
        if age_s >= process.token_window_s:
            self.breaks(1, f"batch {token[:8]} arrived again {age_s:.1f} s after a call that may count")

    def served(self, token: str, reply: Reply) -> None:
        if reply.status == 400 and "token" in str(reply.body):
            self.breaks(1, f"two requests under one client token: {reply.body}")
        self.world.count("served", reply.code or ("replayed" if reply.replayed else "created"))

    def answered(self, departure: Departure, answer: Answer) -> None:
        departure.answer = answer
        if CREATED[answer.kind] is Created.YES:
            departure.process.has_accepted = True
            if self.world.service.tasks.get(answer.task_id or "") is None:
                self.breaks(3, f"{departure.token[:8]} counts as accepted, and there is no such task")

    def doubted(self, devices: tuple[str, ...]) -> None:
        """A doubt is durable: a batch whose token was used otherwise must not be asked about any more."""
        for old in self.departures:
            if old.targets == devices and old.answer is not None and old.answer.kind is Kind.MISMATCH:
                self.mismatched.add(old.token)

    def check_rate(self) -> None:
        """In any time T at most rate·T + burst calls leave: of one process, and of all that took turns."""
        processes = self.world.processes
        for process in processes:
            self._check_bound(process.name, process.departures, process.rate_per_s, process.burst)
        in_turn = [process for process in processes if not process.is_beside]
        if len(in_turn) == len(processes) and processes:
            merged = sorted(at_s for process in in_turn for at_s in process.departures)
            rate_per_s = max(process.rate_per_s for process in in_turn)
            self._check_bound("all", merged, rate_per_s, max(process.burst for process in in_turn))

    def _check_bound(self, who: str, departures: list[float], rate_per_s: float, burst: int) -> None:
        lowest = float("inf")
        for n, at_s in enumerate(departures):
            lowest = min(lowest, n - rate_per_s * at_s)
            if n - rate_per_s * at_s - lowest > burst - 1 + 1e-6 * max(1.0, rate_per_s):
                self.breaks(5, f"{who}: more than {rate_per_s:g}/s and {burst} left by {at_s:.3f}")
                return

    def check_bucket(self, process: Process, bucket: Any) -> None:
        """Every permit that was taken left or was given back: the bucket agrees with the departures."""
        if process.limits["rate_control"] != "fixed" or not process.permits:
            return
        level, as_of_s, is_capped = 0.0, process.began_s, False
        for at_s in [*process.permits, bucket._as_of_s]:
            level += (at_s - as_of_s) * process.rate_per_s
            if level > process.burst - 1.0:
                is_capped, level = True, min(level, float(process.burst))
            level, as_of_s = level - 1.0, max(as_of_s, at_s)
        level += 1.0  # the last instant is no departure
        if not is_capped and bucket.level < level - 0.5:
            self.breaks(5, f"{process.name}: the bucket holds {bucket.level:.2f} permits, not {level:.2f}")

    def _is_held(self, devices: tuple[str, ...], rows: dict[str, tuple[str, Any]]) -> bool:
        """Whether an old copy, which knows nothing of a batch, sends its devices under no other token."""
        now = {device: row.held for _, row in rows.values() for device in row.targets}
        return self.world.operators.has_lost and all(now.get(device) == 0 for device in devices)

    def check_stored(self, rows: dict[str, tuple[str, Any]], *, when: str) -> None:
        """Hold a checkpoint, by client token, against the wire: after a crash and before a process sends."""
        for token, departures in self.by_token.items():
            doubtful = [old for old in departures if old.may_have_created]
            if not doubtful:
                continue
            state, row = rows.get(token, ("nowhere", None))
            if row is None and (self.world.is_replanned or self._is_held(doubtful[0].targets, rows)):
                devices = set(doubtful[0].targets)
                for other, held in rows.values():
                    if other == "planned" and devices & set(held.targets):
                        self.breaks(4, f"{when}: a device of {token[:8]} may have its task and is planned")
                continue
            if state not in ("sent", "in_doubt", "accepted"):
                self.breaks(4, f"{when}: batch {token[:8]} may exist and is {state}")
            elif state == "in_doubt" and not self.world.has_turned_back:
                since_s = min(old.wall_s for old in doubtful)
                if row.first_sent_at > since_s + 0.001:
                    self.breaks(1, f"{when}: the doubt of {token[:8]} is dated after its first call")
        for token, task_id in self.told.items():
            state, row = rows.get(token, ("nowhere", None))
            if state != "accepted" or row.task_id != task_id:
                self.breaks(3, f"{when}: {token[:8]} was told as accepted and is {state}")
