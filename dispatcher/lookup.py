"""Reads of the service under the run's ceiling: pages of ListTasks, and DescribeTask.

Every read takes a permit of a token bucket that starts empty, as a run's does, so reads and the calls of
the run after them keep one ceiling together. Throttles slow it as they slow a run. What fails is tried again
until nothing good has come for the patience; what cannot get better by waiting ends it at once.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, TypeVar

from dispatcher.errors import RunStopped
from dispatcher.model import Answer, Kind, Pace
from dispatcher.policy.backoff import full_jitter
from dispatcher.policy.rate_control import FixedRate, RateController
from dispatcher.policy.rate_learner import RateLearner
from dispatcher.policy.token_bucket import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dispatcher.clock import Clock
    from dispatcher.settings import Resolved
    from dispatcher.transport.base import TaskPage, TaskView, Transport

PAGE = 100
"""Tasks a page: the most that shape MaxResults allows."""
LEAST_PAGE = 10
"""Large tags can make a full page larger than what is read of an answer: then pages are halved, to this."""
ODD_IN_A_ROW = 3
"""Answers that are not the service's own before it is taken to be something else."""
_REFUSED = (Kind.DENIED, Kind.EXPIRED, Kind.MISMATCH, Kind.QUOTA)
_SHRINKS = (Kind.NO_REPLY, Kind.UNREADABLE)
_BACKOFF = (0.2, 10.0)  # (base_s, cap_s)

T = TypeVar("T")


class Lookup:
    """Paced reads of one lane."""

    def __init__(
        self,
        transport: Transport,
        settings: Resolved,
        clock: Clock,
        *,
        patience_s: float | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Read through `transport`; `patience_s` shortens the patience of `settings`."""
        self._transport = transport
        self._clock = clock
        self._rng = rng or random.Random()
        self._patience_s = settings.patience_s if patience_s is None else patience_s
        now_s = clock.monotonic()
        is_fixed = settings.rate_control == "fixed"
        self._rate: RateController = (
            FixedRate(settings.rate_per_s)
            if is_fixed
            else RateLearner(settings.rate_per_s, share=settings.share, now_s=now_s)
        )
        self._bucket = TokenBucket(self._rate.rate_per_s, settings.burst, now_s=now_s)
        self._gate = asyncio.Lock()
        self._good_s = now_s
        self._page = PAGE
        self.calls = 0
        self.throttled = 0

    def wall(self) -> float:
        """Return Unix seconds by our clock."""
        return self._clock.wall()

    async def page(self, next_token: str | None) -> TaskPage:
        """Return one page of the service's tasks. Raises `RunStopped` where it cannot be had."""
        found = await self._persist("ListTasks", lambda: self._transport.list_tasks(next_token, self._page))
        if isinstance(found, Answer):
            raise _refused("ListTasks", found)
        return found

    async def task(self, task_id: str) -> TaskView | None:
        """Return what the service says of a task, None where it knows none of that id."""
        found = await self._persist("DescribeTask", lambda: self._transport.describe_task(task_id))
        return None if isinstance(found, Answer) else found

    async def _persist(self, operation: str, ask: Callable[[], Awaitable[T | Answer]]) -> T | Answer:
        """Ask until it succeeds or is refused for good (POISON is returned)."""
        failures = odd = 0
        has_renewed = False
        while True:
            answer = await self._paced(ask)
            now_s = self._clock.monotonic()
            if not isinstance(answer, Answer) or answer.kind is Kind.POISON:
                self._good_s = now_s
                return answer
            if self._transport.refusal is not None:
                raise self._transport.refusal
            failures += 1
            odd = odd + 1 if answer.kind in (Kind.ODD, Kind.UNREADABLE) else 0
            if answer.kind in _REFUSED:
                if has_renewed or (answer.kind is Kind.MISMATCH):
                    raise _refused(operation, answer)
                has_renewed = True
                await self._transport.renew()
                continue
            if odd >= ODD_IN_A_ROW or now_s - self._good_s >= self._patience_s:
                raise _refused(operation, answer)
            if answer.kind in _SHRINKS and self._page > LEAST_PAGE:
                self._page = max(LEAST_PAGE, self._page // 2)
            base_s, cap_s = _BACKOFF
            await asyncio.sleep(full_jitter(failures, base_s=base_s, cap_s=cap_s, rng=self._rng))

    async def _paced(self, ask: Callable[[], Awaitable[T | Answer]]) -> T | Answer:
        async with self._gate:
            delay_s = self._bucket.reserve(self._clock.monotonic())
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            sent_s = self._clock.monotonic()
            self._bucket.departed(sent_s)
            departure = self._rate.departed(sent_s)
        self.calls += 1
        answer = await ask()
        now_s = self._clock.monotonic()
        pace = answer.pace if isinstance(answer, Answer) else Pace.OK
        self.throttled += pace is Pace.THROTTLE
        rate = self._rate.observe(now_s, pace, departure)
        if rate != self._bucket.rate_per_s:
            self._bucket.set_rate(now_s, rate)
        return answer


def _refused(operation: str, answer: Answer) -> RunStopped:
    detail = ": ".join(part for part in (answer.code, answer.message) if part)
    if answer.kind in (Kind.DENIED, Kind.EXPIRED, Kind.NO_CREDENTIALS):
        hint = f"allow snow-device-management:{operation} and use valid credentials; what was found is kept"
    else:
        hint = "try again when the service answers; what was found is kept"
    return RunStopped(f"{operation} cannot be had ({detail})", hint=hint)
