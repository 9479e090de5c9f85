"""The laboratory of rate control measures what it says."""

from __future__ import annotations

import pytest

from bench.rate.cells import contender, fairness, hold, jain, scene_of, settled_after, warm_up
from bench.rate.plots import plot
from bench.rate.world import Client, Scene, play


def test_an_oracle_holds_what_it_knows() -> None:
    """99 % of the rate and no throttle: the world admits what a token bucket admits."""
    held = hold("oracle", scene_of(100.0, 1.0, 0.05), seed=1)
    assert held.used == pytest.approx(0.99, abs=0.002)
    assert held.throttled == 0.0


def test_backoff_alone_wastes_calls() -> None:
    """It uses the whole rate, and is throttled for it."""
    held = hold("backoff", scene_of(100.0, 1.0, 0.05), seed=1)
    assert held.used >= 0.99
    assert held.throttled >= 0.2


def test_botocore_is_driven_by_the_clock_of_the_world() -> None:
    """Its limiter is off until the first throttle, and has a rate from then on."""
    scene = scene_of(40.0, 1.0, 0.05, seconds=30.0)
    client = play(scene, [(0.0, contender("botocore", scene, 1))], 1)[0]
    assert client.rates[0] == float("inf") or sum(client.throttled[:1])
    assert client.rates[-1] < 400.0
    assert sum(client.accepted) <= 40.0 * 30.0 + 40.0 + 1.0


def test_no_service_accepts_more_than_it_refills() -> None:
    """Burst and refill bound what all contenders together get, at every instant."""
    scene = scene_of(20.0, 2.0, 0.05, seconds=30.0)
    for name in ("learn", "aimd", "botocore", "backoff"):
        clients = play(scene, [(0.0, contender(name, scene, 1)), (5.0, contender(name, scene, 2, 5.0))], 1)
        for until in range(1, 30):
            got = sum(sum(client.accepted[:until]) for client in clients)
            assert got <= scene.burst + scene.rate_per_s * until + 1.0


def test_a_world_is_the_same_again() -> None:
    """One seed, one history."""
    scene = scene_of(40.0, 1.0, 0.05, seconds=20.0, noise=0.03)
    first, second = (play(scene, [(0.0, contender("learn", scene, 3))], 3)[0] for _ in range(2))
    assert (first.accepted, first.throttled) == (second.accepted, second.throttled)


def test_jain() -> None:
    """1 where all get the same, 1 / n where one gets all."""
    assert jain([5, 5]) == 1.0
    assert jain([10, 0]) == 0.5
    assert 0.5 < fairness(scene_of(40.0, 3.0, 0.05), 0.0, 1) <= 1.0


def test_settled_and_warm() -> None:
    """The first good window, and the last bad one; a warm-up lasts until the twentieth throttle."""
    client = Client(None, 8)  # type: ignore[arg-type]  (nobody calls)
    client.accepted = [0] * 10 + [100] * 10 + [0] * 10 + [100] * 30
    client.throttled = [0] * 60
    assert settled_after(client, 100.0, 0, 60, latency_s=0.1, last=False) == 10.0
    assert settled_after(client, 100.0, 0, 60, latency_s=0.1, last=True) == pytest.approx(31.0, abs=1.0)
    scene = Scene(rate_per_s=100.0, burst=1.0, latency_s=1.0)
    assert warm_up(client, scene) == 30
    client.throttles = [40.0] * 20
    assert warm_up(client, scene) == 43


def test_a_plot_is_an_image() -> None:
    """SVG with one line per contender and one for the service."""
    drawn = plot("a title", scene_of(40.0, 1.0, 0.05, seconds=12.0))
    assert drawn.startswith("<svg ")
    assert drawn.count("<polyline") == 4
