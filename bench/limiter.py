"""Admission with 10,000 callers in line at 100 calls per second: cost, order, and letting them go.

They stand in line as the engine's workers do: one gate, whose holder waits for a slot and then for its
permit. The engine itself never has more callers than its window; this is the limiter's own limit.
"""

from __future__ import annotations

import asyncio
import itertools
import time

import uvloop

from bench.harness import Figure, Figures, Options
from dispatcher.admission import Admission
from dispatcher.clock import SystemClock
from dispatcher.gate import Gate
from dispatcher.policy.lane import LanePolicy
from dispatcher.policy.token_bucket import TokenBucket

WAITERS = 10_000
RATE_PER_S = 100.0
BURST = 10


def measure(options: Options) -> Figures:
    """Let them wait for a while, then cancel all of them."""
    span_s = 1.0 if options.quick else 5.0
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        share, inversions, excess, cancel_s = runner.run(_queue(span_s))
    return {
        f"{WAITERS:,} waiters at {RATE_PER_S:g}/s": Figure((100 * share,), "% core", 5),
        "order inversions": Figure((float(inversions),), "", 0),
        "calls beyond rate x time + burst": Figure((float(excess),), "", 0),
        "all cancelled in": Figure((cancel_s,), "s", 1),
    }


async def _queue(span_s: float) -> tuple[float, int, int, float]:
    """Return the share of a core, calls out of order, calls too many, and the seconds to cancel all."""
    clock = SystemClock()
    now_s = clock.monotonic()
    lane = LanePolicy(patience_s=3600, max_in_flight=WAITERS, now_s=now_s, proven=True)
    bucket = TokenBucket(RATE_PER_S, BURST, now_s=now_s, level=BURST)
    admission = Admission(bucket=bucket, lane=lane, clock=clock)
    gate = Gate()
    departed: list[int] = []

    async def caller(number: int) -> None:
        async with gate:
            if await admission.slot() and await admission.permit():
                admission.depart()
                departed.append(number)
        admission.arrive()

    began_s = clock.monotonic()
    callers = [asyncio.create_task(caller(number)) for number in range(WAITERS)]
    await asyncio.sleep(0.1)  # all are in line
    cpu_s, since_s = time.process_time(), time.monotonic()
    await asyncio.sleep(span_s)
    share = (time.process_time() - cpu_s) / (time.monotonic() - since_s)
    excess = max(0, len(departed) - int(RATE_PER_S * (clock.monotonic() - began_s) + BURST))
    if len(departed) < 0.9 * RATE_PER_S * span_s:
        raise RuntimeError(f"only {len(departed)} calls left in {span_s:g} s: nothing was measured")
    inversions = sum(later < sooner for sooner, later in itertools.pairwise(departed))
    since_s = time.monotonic()
    for task in set(callers):  # in no order, as a task group cancels
        task.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    return share, inversions, excess, time.monotonic() - since_s
