"""A discrete-event world of virtual time: one throttling service, and clients that call it.

No event loop and no sleeping: a heap of instants. A call departs when its client's contender lets it,
arrives after part of its latency, is admitted by the service's token bucket or not, and is answered after
the rest. Demand never ends, so that what is accepted is what the contender found to be allowed.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from dispatcher.model import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.policy.rate_control import Departure

BIN_S = 1.0
"""What is accepted and throttled is counted by so many seconds."""
FORWARD = 0.4
"""The share of a call's latency that passes before the service decides."""
_ASK, _ARRIVE, _ANSWER, _RISE = range(4)
_NONE = (0.0, 0)
_FIRST_THROTTLES = 1_000


class Contender(Protocol):
    """How one client decides when a call may leave."""

    def ask(self, now_s: float) -> float:
        """Return 0 where a call may leave now, and take its permit; else the seconds to ask again in."""

    def departed(self, now_s: float) -> Departure:
        """Note that a call leaves now; what is returned comes back with its answer."""

    def answered(self, now_s: float, pace: Pace, departure: Departure, attempt: int) -> float:
        """Learn from an answer; return the seconds that the worker rests before it sends again."""

    @property
    def rate_per_s(self) -> float:
        """The rate allowed now, for the plots; infinite where nothing limits it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What the service and the way to it are like."""

    rate_per_s: float
    burst: float
    latency_s: float
    """The median."""
    jitter: float = 0.5
    """Sigma of the lognormal latency: 0.5 makes the 99th percentile 3.2 times the median."""
    window: int = 64
    """Calls on the wire at once, per client."""
    noise: float = 0.0
    """The share of calls that a proxy throttles by chance."""
    rate_at: Callable[[float], float] | None = None
    """The service's rate at an instant, where it changes."""
    storm: tuple[float, float] | None = None
    """From and until when everything is answered 503."""
    quota: tuple[float, float] | None = None
    """From and until when the quota is used up: the engine pauses its lane, so nothing is sent."""
    seconds: float = 60.0


@dataclass(slots=True)
class Client:
    """One client, and what became of its calls."""

    contender: Contender
    window: int
    joins_s: float = 0.0
    ready: deque[int] = field(default_factory=deque)
    """Workers that want to send, as the number of the attempt they are at."""
    is_waiting: bool = False
    accepted: list[int] = field(default_factory=list)
    """By bins of `BIN_S`."""
    throttled: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    """The rate allowed at the end of each bin."""
    throttles: list[float] = field(default_factory=list)
    """Instants of the first throttles, as the service saw them."""


def play(scene: Scene, contenders: list[tuple[float, Contender]], seed: int) -> list[Client]:
    """Let contenders (joining at an instant each) call the service of a scene; return their counts."""
    return _World(scene, contenders, seed).run()


class _World:
    """The heap of what will happen, and the service's bucket."""

    def __init__(self, scene: Scene, contenders: list[tuple[float, Contender]], seed: int) -> None:
        self._scene = scene
        self._rng = random.Random(seed)
        self._level, self._filled_at_s = scene.burst, 0.0
        self._order = 0
        self._heap: list[tuple[float, int, int, Client, Departure, int]] = []
        self._clients = [Client(contender, scene.window, joins_s) for joins_s, contender in contenders]
        bins = int(scene.seconds / BIN_S) + 2
        for client in self._clients:
            client.ready.extend([1] * client.window)
            client.accepted, client.throttled = [0] * bins, [0] * bins
            client.is_waiting = True
            self._push(client.joins_s, _ASK, client)

    def run(self) -> list[Client]:
        heap, scene = self._heap, self._scene
        next_bin_s, end_s = BIN_S, scene.seconds
        while heap:
            now_s, _, kind, client, departure, attempt = heapq.heappop(heap)
            while now_s >= next_bin_s:
                for each in self._clients:
                    each.rates.append(each.contender.rate_per_s)
                next_bin_s += BIN_S
            if now_s >= end_s:
                break
            if kind == _ARRIVE:
                is_accepted = self._decide(client, now_s)
                back_s = scene.latency_s * (1.0 - FORWARD) * self._stretch()
                self._push(now_s + back_s, _ANSWER, client, departure, attempt if is_accepted else -attempt)
                continue
            if kind == _ANSWER:
                self._answer(client, now_s, departure, attempt)
            elif kind == _RISE:
                client.ready.append(attempt)
            else:
                client.is_waiting = False
            if not client.is_waiting:
                self._gate(client, now_s)
        return self._clients

    def _push(
        self, at_s: float, kind: int, client: Client, departure: Departure = _NONE, attempt: int = 0
    ) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at_s, self._order, kind, client, departure, attempt))

    def _stretch(self) -> float:
        return self._rng.lognormvariate(0.0, self._scene.jitter) if self._scene.jitter else 1.0

    def _decide(self, client: Client, now_s: float) -> bool:
        """Admit a call that arrives, or throttle it, which costs no permit."""
        scene = self._scene
        rate = scene.rate_per_s if scene.rate_at is None else scene.rate_at(now_s)
        self._level = min(scene.burst, self._level + (now_s - self._filled_at_s) * rate)
        self._filled_at_s = now_s
        is_stormy = scene.storm is not None and scene.storm[0] <= now_s < scene.storm[1]
        is_chance = scene.noise > 0.0 and self._rng.random() < scene.noise
        if is_stormy or is_chance or self._level < 1.0 - 1e-9:
            client.throttled[int(now_s)] += 1
            if len(client.throttles) < _FIRST_THROTTLES:
                client.throttles.append(now_s)
            return False
        self._level -= 1.0
        client.accepted[int(now_s)] += 1
        return True

    def _answer(self, client: Client, now_s: float, departure: Departure, attempt: int) -> None:
        pace = Pace.OK if attempt > 0 else Pace.THROTTLE
        rest_s = client.contender.answered(now_s, pace, departure, abs(attempt))
        again = 1 if attempt > 0 else 1 - attempt
        if rest_s > 0.0:
            self._push(now_s + rest_s, _RISE, client, attempt=again)
        else:
            client.ready.append(again)

    def _gate(self, client: Client, now_s: float) -> None:
        """One worker asks for a permit at the head of the gate, the others wait behind it."""
        scene, contender = self._scene, client.contender
        quota = scene.quota
        while client.ready:
            is_paused = quota is not None and quota[0] <= now_s < quota[1]
            delay_s = quota[1] - now_s if quota is not None and is_paused else contender.ask(now_s)
            if delay_s > 0.0:
                client.is_waiting = True
                self._push(now_s + delay_s, _ASK, client)
                return
            forward_s = scene.latency_s * FORWARD * self._stretch()
            departure = contender.departed(now_s)
            self._push(now_s + forward_s, _ARRIVE, client, departure, client.ready.popleft())
