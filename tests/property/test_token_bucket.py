"""The bound over every window: at most rate · T + burst departures, whatever happens at the gate."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.policy.token_bucket import TokenBucket

SLACK = 1e-5


@dataclass(slots=True)
class Gate:
    """A FIFO gate in virtual time: only the head holds a reservation, and it may leave late."""

    bucket: TokenBucket
    changes: list[tuple[float, float]] = field(default_factory=list)
    """Rate changes to come, in order: (instant, rate)."""
    asks_anew: bool = False
    """Whether the head refunds and reserves again when the rate changes."""
    tells: bool = False
    """Whether the bucket is told of each departure."""
    departures: list[float] = field(default_factory=list)
    free_at_s: float = 0.0

    def pass_through(self, arrival_s: float, late_s: float, cancel_after: float | None) -> None:
        """Let one caller arrive, wait and leave `late_s` late, or give up part of the way."""
        now_s = max(arrival_s, self.free_at_s)
        self._change_rates(now_s)
        delay_s = self.bucket.reserve(now_s)
        assert delay_s >= 0.0
        due_s = now_s + delay_s
        if cancel_after is not None:
            given_up_s = now_s + cancel_after * delay_s
            self._change_rates(given_up_s)
            self.bucket.refund()
            self.free_at_s = given_up_s
            return
        while self.asks_anew and self.changes and self.changes[0][0] < due_s:
            changed_s = max(now_s, self.changes[0][0])
            self._change_rates(changed_s)
            self.bucket.refund()
            delay_s = self.bucket.reserve(changed_s)
            due_s = changed_s + delay_s
        self.free_at_s = due_s + (late_s if delay_s > 0.0 else 0.0)  # no wait: it leaves in the same step
        self._change_rates(self.free_at_s)
        self.departures.append(self.free_at_s)
        if self.tells:
            self.bucket.departed(self.free_at_s)

    def _change_rates(self, until_s: float) -> None:
        while self.changes and self.changes[0][0] <= until_s:
            self.bucket.set_rate(*self.changes.pop(0))


def worst_excess(departures: list[float], rates: list[tuple[float, float]], burst: float) -> float:
    """Return the largest count − (rate · T + burst) over all pairs of departures.

    `rates` are (since, rate) in order; a window is measured by the highest rate in it.
    """
    worst = 0.0
    for first, start_s in enumerate(departures):
        for last in range(first, len(departures)):
            end_s = departures[last]
            highest = max(
                rate
                for (since_s, rate), (until_s, _) in pairwise([*rates, (float("inf"), 0.0)])
                if since_s <= end_s and until_s >= start_s
            )
            worst = max(worst, last - first + 1 - highest * (end_s - start_s) - burst)
    return worst


RATES = st.floats(0.1, 200.0)
BURSTS = st.one_of(st.just(1.0), st.floats(1.0, 20.0))
CALLERS = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(0.0, 3.0)),  # gap to the caller before
        st.one_of(st.just(0.0), st.floats(0.0, 5.0)),  # how late the loop lets it go
        st.one_of(st.none(), st.none(), st.floats(0.0, 1.0)),  # gives up after this share of its wait
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    rate=RATES,
    burst=BURSTS,
    share=st.floats(0.0, 1.0),
    start_s=st.floats(0.0, 1e6),
    callers=CALLERS,
    tells=st.booleans(),
)
def test_bound_over_every_window(
    rate: float,
    burst: float,
    share: float,
    start_s: float,
    callers: list[tuple[float, float, float | None]],
    tells: bool,
) -> None:
    """Bursts, pauses, stalls and cancellations never let more than rate · T + burst leave."""
    gate = Gate(TokenBucket(rate, burst, now_s=start_s, level=share * burst), free_at_s=start_s, tells=tells)
    arrival_s = start_s
    for gap_s, late_s, cancel_after in callers:
        arrival_s += gap_s
        gate.pass_through(arrival_s, late_s, cancel_after)
    assert gate.departures == sorted(gate.departures)
    assert worst_excess(gate.departures, [(start_s, rate)], burst) <= SLACK


@settings(max_examples=150, deadline=None)
@given(
    rate=RATES,
    burst=BURSTS,
    changes=st.lists(st.tuples(st.floats(0.0, 2.0), RATES), max_size=8),
    asks_anew=st.booleans(),
    callers=CALLERS,
)
def test_bound_through_rate_changes(
    rate: float,
    burst: float,
    changes: list[tuple[float, float]],
    asks_anew: bool,
    callers: list[tuple[float, float, float | None]],
) -> None:
    """With the highest rate of a window the bound holds, whether or not a waiting head asks anew."""
    instants: list[tuple[float, float]] = []
    for gap_s, new_rate in changes:
        instants.append((gap_s + (instants[-1][0] if instants else 0.0), new_rate))
    gate = Gate(
        TokenBucket(rate, burst, now_s=0.0, level=burst), changes=instants.copy(), asks_anew=asks_anew
    )
    arrival_s = 0.0
    for gap_s, late_s, cancel_after in callers:
        arrival_s += gap_s
        gate.pass_through(arrival_s, late_s, cancel_after)
    assert worst_excess(gate.departures, [(0.0, rate), *instants], burst) <= SLACK


@settings(max_examples=100, deadline=None)
@given(rate=RATES, burst=BURSTS, runs=st.lists(CALLERS, min_size=2, max_size=4), gap_s=st.floats(0.0, 1.0))
def test_bound_holds_across_restarts(
    rate: float, burst: float, runs: list[list[tuple[float, float, float | None]]], gap_s: float
) -> None:
    """A restarted bucket starts empty, so all runs together keep the bound of one."""
    now_s = 0.0
    departures: list[float] = []
    for callers in runs:
        gate = Gate(TokenBucket(rate, burst, now_s=now_s), free_at_s=now_s)
        arrival_s = now_s
        for arrival_gap_s, late_s, cancel_after in callers:
            arrival_s += arrival_gap_s
            gate.pass_through(arrival_s, late_s, cancel_after)
        departures += gate.departures
        now_s = gate.free_at_s + gap_s
    assert worst_excess(departures, [(0.0, rate)], burst) <= SLACK


@settings(max_examples=100, deadline=None)
@given(
    rate=RATES,
    burst=BURSTS,
    instants=st.lists(st.floats(0.0, 50.0), min_size=1, max_size=60),
)
def test_reserving_ahead_is_fifo_and_bounded(rate: float, burst: float, instants: list[float]) -> None:
    """Callers that depart exactly on time leave in the order they came, even if the clock jumps back."""
    bucket = TokenBucket(rate, burst, now_s=0.0, level=burst)
    departures = []
    for now_s in instants:  # unsorted: a clock that steps back
        delay_s = bucket.reserve(now_s)
        assert delay_s >= 0.0
        departures.append(now_s + delay_s)
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(departures))
    assert worst_excess(departures, [(0.0, rate)], burst) <= SLACK


def test_bound_does_not_drift_over_a_long_run() -> None:
    """200,000 departures with stalls and odd rates: every window from the start keeps the bound."""
    rng = random.Random(3)
    rate, burst, now_s = 333.3333, 7.0, 12_345.678
    bucket = TokenBucket(rate, burst, now_s=now_s)
    credit = worst = 0.0  # the classic one-pass check: the largest sum of (1 − rate · gap)
    last_s = now_s
    for _ in range(200_000):
        delay_s = bucket.reserve(now_s)
        now_s += delay_s
        if delay_s > 0.0 and rng.random() < 0.01:
            now_s += rng.random() * 0.1
        credit = max(0.0, credit - rate * (now_s - last_s)) + 1.0
        last_s = now_s
        worst = max(worst, credit)
    assert worst <= burst + SLACK
