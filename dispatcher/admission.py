"""Who may send, and when: the in-flight window and the token bucket, in that order.

Order matters. A permit is taken at the moment of departure, with a slot already in hand, by one caller at
a time: the engine lets only the head of its queue in here. So a stalled loop, a slow commit or a laptop
that slept cannot bunch calls that hold old permits, a lowered rate takes effect on the very next call, and
exactly one batch waits for its permit while the others are not even taken from the plan.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dispatcher.clock import Clock
    from dispatcher.policy.lane import LanePolicy
    from dispatcher.policy.token_bucket import TokenBucket

_NAP_S = 0.001
"""What a loop's timers resolve."""


class Admission:
    """The shell over one lane's bucket and window."""

    def __init__(self, *, bucket: TokenBucket, lane: LanePolicy, clock: Clock) -> None:
        self._bucket = bucket
        self._lane = lane
        self._clock = clock
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self.in_flight = 0

    def __repr__(self) -> str:
        return f"<Admission in_flight={self.in_flight}/{self._lane.window} level={self._bucket.level:.2f}>"

    def open(self) -> None:
        """Let callers wait again after `interrupt`."""
        self._closed = False

    def interrupt(self) -> None:
        """Send whoever waits here away, now; nobody waits again until `open`."""
        self._closed = True
        self._wake()

    async def slot(self) -> bool:
        """Wait until fewer calls fly than the lane's window; False when interrupted."""
        while self.in_flight >= self._lane.window and not self._closed:
            await self._wait(None)
        return not self._closed

    async def permit(self) -> bool:
        """Wait for the bucket; False when interrupted, and then nothing was taken."""
        wait_s = self.reserve()
        return wait_s <= 0.0 or await self.wait(wait_s)

    def reserve(self) -> float:
        """Take the next permit, and return the seconds to `wait` for it: none where the rate is no limit."""
        return self._bucket.reserve(self._clock.monotonic())

    async def wait(self, wait_s: float) -> bool:
        """Wait for the permit that was reserved; False when interrupted, and then it was given back."""
        due_s = self._clock.monotonic() + wait_s
        try:
            # A loop may fire its timers a little early (uvloop rounds to milliseconds): ask the clock.
            while (left_s := due_s - self._clock.monotonic()) > 0:
                if self._closed:
                    self._bucket.refund()
                    return False
                await self._wait(max(left_s, self._nap_s()))
        except asyncio.CancelledError:
            self._bucket.refund()
            raise
        return True

    def _nap_s(self) -> float:
        """Return the shortest sleep that costs no permits.

        uvloop takes less than half a millisecond for none at all: above 2,000/s a bucket would spin through
        the loop for every permit. A call that leaves a millisecond late lets the next ones leave at once.
        """
        return min(_NAP_S, self._bucket.burst / self._bucket.rate_per_s / 4.0)

    def depart(self) -> None:
        """Count a call that leaves now."""
        self.in_flight += 1

    def arrive(self) -> None:
        """Count a call that is back, or was given up."""
        self.in_flight -= 1
        self._wake()

    def refund(self) -> None:
        """Return a permit that was not used after all."""
        self._bucket.refund()

    def set_rate(self, rate_per_s: float) -> None:
        """Let the bucket fill at `rate_per_s` from now on."""
        self._bucket.set_rate(self._clock.monotonic(), rate_per_s)

    async def _wait(self, timeout_s: float | None) -> None:
        """Sleep until woken, or until `timeout_s` have passed: one future and one timer, no task."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(timeout_s, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
