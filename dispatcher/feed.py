"""What is left to send: doubts of an earlier process first, then planned batches by the claim block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.flight import Flight

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatcher.checkpoint.writer import Writer
    from dispatcher.clock import Clock
    from dispatcher.model import Batch, Doubt
    from dispatcher.plan import ClientTokens

CLAIM_AHEAD_S = 0.1
"""A claim covers this much of the current rate: what a kill can leave in doubt without having been sent."""
MAX_CLAIM = 1_024
DOUBT_PAGE = 256


class Feed:
    """Reads a run's unsettled batches as flights, claiming planned ones before it hands them out."""

    def __init__(
        self,
        *,
        writer: Writer,
        tokens: ClientTokens,
        clock: Clock,
        max_attempts: int,
        max_devices: int | None,
    ) -> None:
        """Read through `writer`; `max_devices` is `--limit`: devices that were never on the wire."""
        self._writer = writer
        self._tokens = tokens
        self._clock = clock
        self._max_attempts = max_attempts
        self._max_devices = max_devices
        self._doubts_after: int | None = 0
        self._may_claim = True
        self._is_final = False
        self._taken = 0
        self._taken_since_s = clock.monotonic()

    async def fetch(self, limit: int) -> list[Flight]:
        """Return the next flights, at most `limit`; none when nothing is left in this pass."""
        while self._doubts_after is not None:
            at = self.instant()
            doubts = await self._writer.doubts(after=self._doubts_after, limit=min(limit, DOUBT_PAGE))
            if doubts:
                self._doubts_after = doubts[-1].batch.number
                return [self._in_doubt(doubt, at) for doubt in doubts]
            self._doubts_after = None
        if not self._may_claim:
            return []
        at = self.instant()
        batches = await self._writer.claim(limit=limit, max_devices=self._max_devices)
        if self._max_devices is not None:
            self._max_devices -= _fresh_devices(batches)
        self._may_claim = bool(batches)
        self._taken += len(batches)
        return self.flights(batches, at)

    def block(self, rate_per_s: float) -> int:
        """Return how many batches to claim: 0.1 s of the rate, and no more than are really sent.

        Where the rate is not what limits (a ceiling nobody reaches), twice what was taken since the last
        block bounds it, so that a kill never parks a thousand batches of a slow run.
        """
        now_s = self._clock.monotonic()
        elapsed_s = max(now_s - self._taken_since_s, 1e-3)
        used_per_s = 2.0 * self._taken / elapsed_s + 1.0 / CLAIM_AHEAD_S
        self._taken, self._taken_since_s = 0, now_s
        return max(1, min(MAX_CLAIM, round(CLAIM_AHEAD_S * min(rate_per_s, used_per_s))))

    def instant(self) -> tuple[float, float]:
        """Read both clocks: before a claim is asked for, since the process may sleep before it is told."""
        return self._clock.monotonic(), self._clock.wall()

    def flights(self, batches: Sequence[Batch], at: tuple[float, float]) -> list[Flight]:
        """Make flights of batches that were claimed at the `instant` `at`, or later."""
        return [Flight(batch, self._tokens.of(batch.targets), *at) for batch in batches]

    def _in_doubt(self, doubt: Doubt, at: tuple[float, float]) -> Flight:
        (flight,) = self.flights([doubt.batch], at)
        flight.first_sent_at = flight.doubt_at = doubt.first_sent_at
        if self._is_final:
            flight.unknown = self._max_attempts - 1  # one more try, not eight
        return flight

    async def give_back(self, flights: Iterable[Flight]) -> None:
        """Return claimed flights that nothing can have come of to planned, durably."""
        returned = list(flights)
        if not returned:
            return
        sent = [flight.batch.number for flight in returned if flight.attempts]
        await self._writer.give_back([flight.batch.number for flight in returned], sent=sent)
        self._may_claim = True
        if self._max_devices is not None:
            self._max_devices += _fresh_devices(flight.batch for flight in returned if not flight.attempts)

    def begin_final_pass(self) -> bool:
        """Go once more over what is in doubt; False where that was done already."""
        if self._is_final:
            return False
        self._is_final, self._doubts_after = True, 0
        return True


def _fresh_devices(batches: Iterable[Batch]) -> int:
    return sum(len(batch.targets) for batch in batches if batch.fresh)
