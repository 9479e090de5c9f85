"""What answers say about a service's rate, kept in constant memory: see `rate_learner` for the whole."""

from __future__ import annotations

import math

PLAIN_SHARE = 0.15
"""A run of throttles is one where more than this share is throttled, and what chance brings on top."""
SURE = 3.0
"""So many throttles close together end a hold; more of them where throttles also come by chance."""
LEAST_NOISE = 0.005
"""Below this, throttles by chance are none: single ones are what a held rate meets now and then."""
MOST_NOISE = 0.15
"""What exceeds this is taken for a limit, never for chance."""
_NOISE_CALLS = 400.0
_UNDERRATE = 0.9  # an error of the noise heals: it is always taken a little lower than it was heard


class Drained:
    """The last instant at which the service's bucket was seen empty, and what left since.

    From then on it can have accepted no more than it refilled: accepted calls over time are a lower
    bound of its rate, and exact at the next throttle if the bucket did not overflow between. Calls are
    counted as they left, not as they were answered, so that latency does not blur the count.
    """

    __slots__ = ("at_s", "lost", "number")

    def __init__(self) -> None:
        self.at_s = -math.inf
        self.number = 0
        self.lost = 0
        """Calls since that were not accepted."""

    @property
    def is_known(self) -> bool:
        """Whether it was ever seen empty."""
        return self.at_s > -math.inf

    def forget(self) -> None:
        """Note that it may have filled up, or changed, unseen."""
        self.at_s = -math.inf

    def seen(self, departure: tuple[float, int]) -> None:
        """Note that it was empty when a call arrived which was throttled."""
        self.at_s, self.number = departure
        self.lost = 0

    def average(self, departure: tuple[float, int]) -> float:
        """Return calls accepted per second between then and a call that left later."""
        span_s = departure[0] - self.at_s
        return (departure[1] - self.number - self.lost) / span_s if span_s > 0.0 else 0.0


class Noise:
    """The share of calls that is throttled by chance, by a proxy or a rival, whatever our rate."""

    __slots__ = ("_heard", "share", "trust")

    def __init__(self) -> None:
        self.hear(0.0)

    def hear(self, share: float) -> None:
        """Take `share` for what chance throttles."""
        self._heard = min(MOST_NOISE, share)
        self.share = self._heard if self._heard >= LEAST_NOISE else 0.0
        line = PLAIN_SHARE + 1.5 * self.share
        self.trust = line / (1.0 - line)
        """What an accepted call takes off the suspicion."""

    def listen(self, throttled: int, calls: int) -> None:
        """Learn from a rate that was held without a doubt of it."""
        heard = _UNDERRATE * throttled / calls
        self.hear(self._heard + (heard - self._heard) * min(1.0, calls / _NOISE_CALLS))

    def confirm(self, share: float) -> None:
        """Note that a lower rate did not lower the share of throttles."""
        self.hear(max(self._heard, share))

    def allowance(self, calls: int) -> float:
        """Return how many throttles among `calls` chance explains: two standard deviations."""
        expected = self.share * calls
        return expected + 2.0 * math.sqrt(expected)

    @property
    def sure(self) -> float:
        """How much suspicion is evidence."""
        return SURE * (1.0 + 10.0 * self.share)


class Suspicion:
    """Throttles close together: each adds one, each accepted call takes a little off."""

    __slots__ = ("accepted", "average", "level", "throttled")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.level = 0.0
        self.accepted = 0
        self.throttled = 0
        self.average = 0.0
        """What the service had delivered, up to the first suspect, since it was seen empty."""

    def accept(self, trust: float) -> None:
        """Count an accepted call."""
        self.accepted += 1
        self.level = max(0.0, self.level - trust)

    def throttle(self, average: float) -> None:
        """Count a throttled call; `average` is what the service had delivered before it."""
        if self.level == 0.0:
            self.accepted = self.throttled = 0
            self.average = average
        self.throttled += 1
        self.level += 1.0
