"""Who takes part: ours, the plain AIMD, botocore's adaptive mode, backoff alone, and an oracle."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from botocore.exceptions import CapacityNotAvailableError
from botocore.retries.adaptive import ClientRateLimiter, RateClocker
from botocore.retries.bucket import TokenBucket as BotocoreBucket
from botocore.retries.throttling import CubicCalculator

from dispatcher.model import Pace
from dispatcher.policy.backoff import full_jitter
from dispatcher.policy.rate_control import Departure, FixedRate, RateController
from dispatcher.policy.token_bucket import TokenBucket

if TYPE_CHECKING:
    from bench.rate.world import Contender, Scene

CLIENT_BURST = 10.0
"""The default of the setting `burst`."""
CEILING = 10.0
"""The operator's ceiling, in multiples of the service's rate, which nobody knows."""


class Paced:
    """A rate controller behind our own bucket, as the engine uses it: a batch in backoff holds no slot."""

    def __init__(self, control: RateController, now_s: float = 0.0) -> None:
        self.control = control
        self._bucket = TokenBucket(control.rate_per_s, CLIENT_BURST, now_s=now_s)
        self._rate_per_s = control.rate_per_s
        self._is_promised = False

    @property
    def rate_per_s(self) -> float:
        return self._rate_per_s

    def ask(self, now_s: float) -> float:
        if self._is_promised:
            self._is_promised = False
            self._bucket.departed(now_s)
            return 0.0
        delay_s = self._bucket.reserve(now_s)
        self._is_promised = delay_s > 0.0
        return delay_s

    def departed(self, now_s: float) -> Departure:
        return self.control.departed(now_s)

    def answered(self, now_s: float, pace: Pace, departure: Departure, attempt: int) -> float:  # noqa: ARG002
        rate = self.control.observe(now_s, pace, departure)
        if rate != self._rate_per_s:
            self._rate_per_s = rate
            self._bucket.set_rate(now_s, rate)
        return 0.0


class Backoff:
    """Full jitter and nothing else: 0.1 s, doubling to 20 s; every worker sends as soon as it may."""

    rate_per_s = float("inf")

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def ask(self, now_s: float) -> float:  # noqa: ARG002
        return 0.0

    def departed(self, now_s: float) -> Departure:
        return now_s, 0

    def answered(self, now_s: float, pace: Pace, departure: Departure, attempt: int) -> float:  # noqa: ARG002
        if pace is Pace.OK:
            return 0.0
        return full_jitter(attempt, base_s=0.1, cap_s=20.0, rng=self._rng)


class _FakeClock:
    """botocore's clock, told what time it is."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def current_time(self) -> float:
        return self.now_s


class _Told:
    """botocore's detector of throttles, told the answer."""

    def __init__(self) -> None:
        self.is_throttle = False

    def is_throttling_error(self, **_: object) -> bool:
        return self.is_throttle


class Botocore:
    """botocore's adaptive mode, made of its own classes, with the backoff of its standard mode.

    Its retry quota is left out: it would give calls up, and here everything must be accepted.
    """

    def __init__(self, seed: int, now_s: float = 0.0) -> None:
        self._rng = random.Random(seed)
        self._clock = _FakeClock(now_s)
        self._told = _Told()
        self._bucket = BotocoreBucket(max_rate=1, clock=self._clock)
        self._limiter = ClientRateLimiter(
            rate_adjustor=CubicCalculator(starting_max_rate=0, start_time=now_s),
            rate_clocker=RateClocker(self._clock),
            token_bucket=self._bucket,
            throttling_detector=self._told,
            clock=self._clock,
        )

    @property
    def rate_per_s(self) -> float:
        return float(self._bucket.max_rate) if self._limiter._enabled else float("inf")

    def ask(self, now_s: float) -> float:
        if not self._limiter._enabled:
            return 0.0
        self._clock.now_s = now_s
        try:
            self._bucket.acquire(block=False)
        except CapacityNotAvailableError:
            return min(0.05, max(1e-6, float(self._bucket._sleep_amount(1))))  # a raised rate wakes it
        return 0.0

    def departed(self, now_s: float) -> Departure:
        return now_s, 0

    def answered(self, now_s: float, pace: Pace, departure: Departure, attempt: int) -> float:  # noqa: ARG002
        self._clock.now_s = now_s
        self._told.is_throttle = pace is Pace.THROTTLE
        self._limiter.on_receiving_response()
        if pace is Pace.OK:
            return 0.0
        return self._rng.random() * min(20.0, 2.0 ** (attempt - 1))  # botocore.retries.standard


def oracle(scene: Scene, seed: int) -> Contender:  # noqa: ARG001
    """Pace at 99 % of the rate that only it knows."""
    return Paced(FixedRate(0.99 * scene.rate_per_s))
