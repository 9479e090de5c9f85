"""The grid: services, ways to them, and what is measured of each contender."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.rate.contenders import CEILING, Backoff, Botocore, Paced
from bench.rate.world import Scene, play
from dispatcher.policy.rate_control import Aimd, FixedRate
from dispatcher.policy.rate_learner import RateLearner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.rate.world import Client, Contender

WARM_UP_S = 30.0
WARM_UP_THROTTLES = 20
LATEST_WARM_UP_S = 60.0
SLOW_PER_S = 10.0
"""Rates up to this may throttle 2 % instead of 1 %, and are given calls instead of seconds."""
NAMES = ("learn", "aimd", "botocore", "backoff", "oracle")


def contender(name: str, scene: Scene, seed: int, now_s: float = 0.0) -> Contender:
    """Make a contender; all but the oracle know a ceiling of ten times the rate and nothing else."""
    ceiling = CEILING * scene.rate_per_s
    made: dict[str, Callable[[], Contender]] = {
        "learn": lambda: Paced(RateLearner(ceiling, now_s=now_s), now_s),
        "aimd": lambda: Paced(Aimd(ceiling), now_s),
        "botocore": lambda: Botocore(seed, now_s),
        "backoff": lambda: Backoff(seed),
        "oracle": lambda: Paced(FixedRate(0.99 * scene.rate_per_s), now_s),
    }
    return made[name]()


def scene_of(rate: float, burst_s: float, latency_s: float, **more: Any) -> Scene:
    """Return a service whose burst is `burst_s` of its rate, with a window of 2 x rate x latency."""
    window = max(8, int(2.0 * rate * latency_s) + 1)
    scene = Scene(rate_per_s=rate, burst=max(1.0, burst_s * rate), latency_s=latency_s, window=window)
    return replace(scene, **more)


@dataclass(frozen=True, slots=True)
class Held:
    """How one contender held one constant rate."""

    used: float
    """Accepted calls over what the service would have accepted, after the warm-up."""
    throttled: float
    """The share of calls throttled after the warm-up."""
    search_s: float
    """Seconds until, after the first throttle, a window used 95 % with 5 % throttled at most."""
    search_throttled: int
    """Calls throttled until then."""


def warm_up(client: Client, scene: Scene) -> int:
    """Return the seconds after which holding counts: 30, or until two latencies after the 20th throttle.

    A twentieth throttle that comes late, or never, ends nothing: what throttles after a minute is no search.
    """
    early = client.throttles[WARM_UP_THROTTLES - 1 : WARM_UP_THROTTLES]
    if early and early[0] <= LATEST_WARM_UP_S:
        return int(max(WARM_UP_S, early[0] + 2.0 * scene.latency_s)) + 1
    return int(WARM_UP_S)


def hold(name: str, scene: Scene, seed: int) -> Held:
    """Let a contender run alone, for at least 5,000 calls and 60 s after the warm-up."""
    measured_s = max(60.0, 5_000.0 / scene.rate_per_s)
    scene = replace(scene, seconds=LATEST_WARM_UP_S + 6.0 + measured_s)
    client = play(scene, [(0.0, contender(name, scene, seed))], seed)[0]
    since = warm_up(client, scene)
    until = since + int(measured_s)
    accepted, throttled = sum(client.accepted[since:until]), sum(client.throttled[since:until])
    first = int(client.throttles[0]) if client.throttles else 0
    search_s = first + settled_after(
        client, scene.rate_per_s, first, until, latency_s=scene.latency_s, last=False
    )
    return Held(
        used=accepted / (scene.rate_per_s * (until - since)),
        throttled=throttled / max(1, accepted + throttled),
        search_s=search_s,
        search_throttled=sum(client.throttled[: int(search_s)]),
    )


def settled_after(
    client: Client, rate: float, since: int, until: int, *, latency_s: float, last: bool
) -> float:
    """Return seconds until a window uses 95 % with at most 5 % throttled: the first, or for good.

    A window is 5 s, at least 60 calls, and at least three latencies.
    """
    width = int(max(5.0, 60.0 / rate, 3.0 * latency_s))
    bad_until = since
    for start in range(since, until - width):
        accepted = sum(client.accepted[start : start + width])
        throttled = sum(client.throttled[start : start + width])
        is_good = accepted >= 0.95 * rate * width - 1.0 and throttled <= 0.05 * (accepted + throttled) + 1.0
        if is_good and not last:
            return float(start - since)
        if not is_good:
            bad_until = start + width // 2
    return float(bad_until - since) if last else float(until - since)


def change(name: str, scene: Scene, factor: float, seed: int) -> float:
    """Return seconds from a change of the service's rate until its use is right again for good."""
    rate, moved = scene.rate_per_s, scene.rate_per_s * factor
    at_s = max(90.0, 600.0 / rate)
    end_s = at_s + max(90.0, 900.0 / moved)
    window = max(8, int(2.0 * max(rate, moved) * scene.latency_s) + 1)
    scene = replace(
        scene, window=window, seconds=end_s, rate_at=lambda now_s: rate if now_s < at_s else moved
    )
    client = play(scene, [(0.0, contender(name, scene, seed))], seed)[0]
    return settled_after(client, moved, int(at_s), int(end_s), latency_s=scene.latency_s, last=True)


def fairness(scene: Scene, join_s: float, seed: int, names: Sequence[str] = ("learn", "learn")) -> float:
    """Return Jain's index of what two runs get in five minutes, the second of which joins at `join_s`."""
    scene = replace(scene, seconds=join_s + 300.0)
    pair = [
        (at_s, contender(name, scene, seed + 7 * number, at_s))
        for number, (name, at_s) in enumerate(zip(names, (0.0, join_s), strict=True))
    ]
    got = [sum(client.accepted[int(join_s) :]) for client in play(scene, pair, seed)]
    return jain(got)


def jain(got: Sequence[float]) -> float:
    """Return Jain's fairness index: 1 where all get the same, 1 / n where one gets all."""
    return sum(got) ** 2 / (len(got) * sum(one * one for one in got))


def disturbed(name: str, scene: Scene, seed: int, since: int = 30) -> tuple[float, float]:
    """Return use and throttled share of a scene with noise, a storm or a pause."""
    client = play(scene, [(0.0, contender(name, scene, seed))], seed)[0]
    until = int(scene.seconds)
    accepted, throttled = sum(client.accepted[since:until]), sum(client.throttled[since:until])
    return accepted / (scene.rate_per_s * (until - since)), throttled / max(1, accepted + throttled)


def median_of(found: Sequence[float]) -> float:
    return float(statistics.median(found))
