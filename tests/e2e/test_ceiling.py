"""The ceiling, from arrival times in the ledger: rate·T + burst in any window, restarts included."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from dispatcher.emulator.faults import Fault, FaultPlan

if TYPE_CHECKING:
    from tests.e2e.conftest import Emulators, Service, Site

JITTER_CALLS = 2
"""Calls that a busy machine may let arrive closer together than they left."""


def worst_excess(service: Service, rate_per_s: float, burst: int) -> float:
    """Return by how many calls the worst of all windows exceeds rate·T + burst."""
    arrivals = sorted(call.at for call in service.running.ledger.calls)
    # A window from call i to call j holds j - i + 1 calls; the worst i for a j has the least slack.
    excess, least = float("-inf"), float("inf")
    for index, at in enumerate(arrivals):
        least = min(least, index - rate_per_s * at)
        excess = max(excess, index + 1 - rate_per_s * at - least - burst)
    return excess


def test_the_ceiling_holds_through_restarts(site: Site, emulate: Emulators) -> None:
    """Killed, stopped and resumed at once, with retries: never more than rate·T + burst calls arrive."""
    rate_per_s, burst = 60, 10
    faults = FaultPlan(shares={Fault.ERROR_500: 0.1, Fault.LOST_REPLY: 0.05})
    service = emulate(1_800, faults=faults, latency_s=0.02)
    manifest = site.manifest(site.ids(1_800), limits={"rate_per_s": rate_per_s, "burst": burst})
    for calls, number in ((40, signal.SIGKILL), (90, signal.SIGTERM)):
        process = site.start_run(manifest, service)
        site.signal_after(process, service, calls, number)
        process.communicate(timeout=10)
        site.live.remove(process)
    done = site.run(manifest, service)
    assert done.code == 0, done.err
    assert worst_excess(service, rate_per_s, burst) <= JITTER_CALLS
    arrivals = [call.at for call in service.calls]
    assert len(arrivals) / (arrivals[-1] - arrivals[0]) > 0.2 * rate_per_s, (
        "it hardly used its rate"
    )  # each search begins at 10/s
    site.judge(service, done.summary)


@pytest.mark.parametrize("window", [1, 6])
def test_the_window_bounds_calls_in_flight(site: Site, emulate: Emulators, window: int) -> None:
    """However slow the service, never more than `max_in_flight` calls are on the wire."""
    service = emulate(900, latency_s=0.08, latency_jitter=0.8)
    done = site.run(site.manifest(site.ids(900), limits={"max_in_flight": window}), service)
    assert done.code == 0, done.err
    assert service.max_in_flight == window


def test_a_flag_lowers_the_ceiling(site: Site, emulate: Emulators) -> None:
    """`--rate` and `--burst` hold over the manifest's limits."""
    service = emulate(200)
    done = site.run(site.manifest(site.ids(200)), service, "--rate", 20, "--burst", 1)
    assert done.code == 0, done.err
    assert worst_excess(service, 20, 1) <= JITTER_CALLS
