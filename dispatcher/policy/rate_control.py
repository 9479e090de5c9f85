"""How fast a lane may go: what every rate controller can be asked, and the two simple ones.

`rate_learner` finds the service's rate and holds it, and is the default. `Aimd` is the plain alternative
that everybody knows, and `FixedRate` holds the ceiling.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Protocol

from dispatcher.model import Pace

FLOOR_PER_S = 0.5
"""The slowest rate: even in a throttle storm a lane asks once in two seconds (botocore's floor)."""

Departure = tuple[float, int]
"""When a call left, in monotonic seconds, and its number in the order of departure."""


class RateState(enum.Enum):
    """What a controller is at."""

    AT_CEILING = "at_ceiling"
    """It may send at the ceiling: nothing has throttled there."""
    SEARCHING = "searching"
    HOLDING = "holding"
    PROBING = "probing"
    RECOVERING = "recovering"
    """Everything was throttled for a while; it goes back to where it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSnapshot:
    """What a rate controller believes, for status and for the next run's warm start."""

    rate_per_s: float
    """The rate allowed now."""
    ceiling_per_s: float
    state: RateState
    service_per_s: float | None = None
    """What the service was found to allow; None where it has never been found to throttle."""
    share: float = 1.0
    """The part of it that is used."""
    noise: float = 0.0
    """The share of calls that is throttled whatever the rate."""
    cuts: int = 0
    """How often throttles lowered the rate by much."""

    def why(self) -> str:
        """Say in a few words why it goes as fast as it does, and no faster."""
        at, ceiling = _short(self.rate_per_s), f"ceiling {_short(self.ceiling_per_s)}/s"
        if self.service_per_s is None:
            verb = "at the ceiling" if self.state is RateState.AT_CEILING else "searching"
            return f"{verb}, {at}/s; no throttle yet; {ceiling}"
        verb = {RateState.AT_CEILING: "holding", RateState.RECOVERING: "recovering"}.get(
            self.state, self.state.value
        )
        part = "" if self.share == 1.0 else f", {100 * self.share:g} % of it"
        chance = f"; {100 * self.noise:.0f} % throttled at any rate" if self.noise else ""
        service = _short(self.service_per_s)
        return f"service throttled at {service}/s; {verb} {at}/s{part}{chance}; {ceiling}"


class RateController(Protocol):
    """Decides how fast a lane may go; one per lane."""

    @property
    def rate_per_s(self) -> float:
        """The rate allowed now, in calls per second."""

    def departed(self, now_s: float) -> Departure:
        """Note that a call leaves now; what is returned must come back with its answer."""

    def observe(self, now_s: float, pace: Pace, departure: Departure) -> float:
        """Learn from the answer to a call; return the rate allowed now."""

    def snapshot(self) -> RateSnapshot:
        """Return what is believed now, as a value."""


class FixedRate:
    """Always the ceiling: for tests, benchmarks and services with a known limit."""

    __slots__ = ("_ceiling_per_s",)

    def __init__(self, ceiling_per_s: float) -> None:
        self._ceiling_per_s = checked(ceiling_per_s)

    @property
    def rate_per_s(self) -> float:
        """The ceiling."""
        return self._ceiling_per_s

    def departed(self, now_s: float) -> Departure:
        """Note nothing."""
        return now_s, 0

    def observe(self, now_s: float, pace: Pace, departure: Departure) -> float:  # noqa: ARG002
        """Learn nothing."""
        return self._ceiling_per_s

    def snapshot(self) -> RateSnapshot:
        """Return the ceiling as a value."""
        rate = self._ceiling_per_s
        return RateSnapshot(rate_per_s=rate, ceiling_per_s=rate, state=RateState.AT_CEILING)


class Aimd:
    """Additive increase, multiplicative decrease, as TCP has it (RFC 5681), with its slow start.

    Every accepted call adds 2 calls/s until the first throttle, and 2 / rate from then on, which is 2 calls/s
    each second; a throttle takes a seventh off, once a round. Simple, and known for what it does: it fits
    rates of some 10 to 200/s, goes on throttling, and random throttles have no bottom but the floor.
    `rate_learner` has none of this.
    """

    __slots__ = ("_ceiling_per_s", "_cut_at_s", "_cuts", "_floor_per_s", "_is_searching", "_rate_per_s")

    STEP_PER_S = 2.0
    KEEP = 0.85
    START_PER_S = 10.0

    def __init__(self, ceiling_per_s: float, start_per_s: float | None = None) -> None:
        """Start at `start_per_s`, learnt earlier, or search from 10/s; the ceiling holds in any case.

        Raises:
            ValueError: a rate that is not positive and finite.
        """
        self._ceiling_per_s = checked(ceiling_per_s)
        self._floor_per_s = min(FLOOR_PER_S, ceiling_per_s)
        self._is_searching = start_per_s is None
        self._rate_per_s = self._clamp(self.START_PER_S if start_per_s is None else checked(start_per_s))
        self._cut_at_s = -math.inf
        self._cuts = 0

    @property
    def rate_per_s(self) -> float:
        """The rate allowed now, in calls per second."""
        return self._rate_per_s

    def departed(self, now_s: float) -> Departure:
        """Note when it left."""
        return now_s, 0

    def observe(self, now_s: float, pace: Pace, departure: Departure) -> float:
        """Add a little for an accepted call; cut for a throttled one that left after the last cut."""
        if pace is Pace.OK:
            step = self.STEP_PER_S if self._is_searching else self.STEP_PER_S / self._rate_per_s
            self._rate_per_s = self._clamp(self._rate_per_s + step)
        elif pace is Pace.THROTTLE and departure[0] > self._cut_at_s:
            self._rate_per_s = self._clamp(self.KEEP * self._rate_per_s)
            self._is_searching = False
            self._cut_at_s = now_s
            self._cuts += 1
        return self._rate_per_s

    def snapshot(self) -> RateSnapshot:
        """Return what is believed now; the service's rate is taken to be its own."""
        return RateSnapshot(
            rate_per_s=self._rate_per_s,
            ceiling_per_s=self._ceiling_per_s,
            state=RateState.SEARCHING if self._is_searching else RateState.HOLDING,
            service_per_s=None if self._is_searching else self._rate_per_s,
            cuts=self._cuts,
        )

    def _clamp(self, rate_per_s: float) -> float:
        return max(self._floor_per_s, min(self._ceiling_per_s, rate_per_s))


def checked(rate_per_s: float) -> float:
    """Return a rate that is positive and finite, or raise `ValueError`."""
    if not (math.isfinite(rate_per_s) and rate_per_s > 0.0):
        raise ValueError(f"rate must be positive and finite, got {rate_per_s!r} per second")
    return rate_per_s


def _short(rate_per_s: float) -> str:
    return f"{rate_per_s:.0f}" if rate_per_s >= 20.0 else f"{rate_per_s:.3g}"
