"""Before the first call of a fresh run: does the service know this run already?

A host without a record cannot know what another one sent. Inside the token window that is harmless as long
as batches are cut alike, since the service answers the same client tokens with the tasks it has; then all of
the plan counts as in doubt, so that nothing is cut otherwise. Outside it, or where a task has a token of no
batch, devices would get a second task. So the first pages of ListTasks are searched for the run's tag. It is
a look, not a proof: a list too long for it, a service that does not list, or a missing permission leaves the
run as it was, and never fails it. But a task that was seen is never passed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from typing import TYPE_CHECKING, NamedTuple

from dispatcher.errors import CheckpointError, DispatcherError
from dispatcher.hints import reconcile
from dispatcher.lookup import PAGE
from dispatcher.model import Answer, Kind
from dispatcher.plan import SYSTEM_TAG_TOKEN, ClientTokens
from dispatcher.policy.token_bucket import TokenBucket
from dispatcher.policy.token_window import TokenWindow
from dispatcher.tasks_of_run import is_of_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatcher.checkpoint.base import Plan, Stored
    from dispatcher.clock import Clock
    from dispatcher.settings import Resolved
    from dispatcher.transport.base import TaskSummary, TaskView, Transport

PAGES = 5
DEADLINE_S = 2.0
"""For the list: the start of a run that nobody has sent waits no longer."""
RETRY_S = 0.3
_ASKED_ANYWAY = (Kind.DENIED, Kind.EXPIRED)
_PASSING = (Kind.THROTTLED, Kind.BARE_THROTTLE, Kind.NO_REPLY)
"""Once, one of these is asked again: it says nothing of the next call, and may hide a second command."""

log = logging.getLogger("dispatcher")


class _Age(NamedTuple):
    """When a task was made; for ever ago where the service does not tell."""

    created_at: float
    """By the service's clock."""
    since: float
    """By ours."""


class Probe:
    """One look for tasks of a run that has no record here."""

    def __init__(
        self, transport: Transport, plan: Plan, settings: Resolved, clock: Clock, *, stored: Stored
    ) -> None:
        self._transport = transport
        self._stored = stored
        self._plan = plan
        self._settings = settings
        self._clock = clock
        # The first read may leave at once: the run's own bucket starts empty after it, and its burst has one.
        now_s = clock.monotonic()
        self._bucket = TokenBucket(settings.rate_per_s, settings.burst, now_s=now_s, level=1.0)
        self._is_whole = False
        """Whether the list ends with the page that was read last."""

    async def look(self) -> float | None:
        """Return since when the service has tasks of this very plan, in Unix seconds; None without any.

        Raises `CheckpointError` where they are older than the token window, may be, or are not this plan's.
        """
        found: list[TaskSummary] = []
        with self._harmless():
            async with asyncio.timeout(DEADLINE_S):
                found = await self._found()
        # From here on time is no excuse: what is known of the run must be weighed before it is sent again.
        return await self._judged(found) if found else None

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Whoever answers may not be the service: what goes wrong must not fail a run."""
        try:
            yield
        except DispatcherError:
            raise
        except Exception:
            log.debug("the look for earlier tasks failed", exc_info=True)

    async def _judged(self, found: list[TaskSummary]) -> float:
        ends = [await self._age(task_id) for task_id in dict.fromkeys((found[0].task_id, found[-1].task_id))]
        # The oldest is at one end of the list, so where more pages follow it must be on this one: the first.
        is_oldest_known = self._is_whole or ends[0].created_at < ends[-1].created_at
        window, now = TokenWindow(self._settings.resend_window_s), self._clock.wall()
        is_young = is_oldest_known and all(window.is_open(end.since, now, None) for end in ends)
        is_whole = self._settings.limit is None  # it would cut a batch that has its task
        if is_young and is_whole and await asyncio.to_thread(self._are_ours, found):
            log.info("the service has tasks of run %s inside the token window", self._plan.run)
            return min(end.since for end in ends)
        raise CheckpointError(
            f"the service already has tasks of run {self._plan.run} ({found[0].task_id}), and this host has"
            " no record of them",
            hint=f"take them up with: {reconcile()}; or give another --run-key to command the devices again",
        )

    def _are_ours(self, found: list[TaskSummary]) -> bool:
        """Whether every task has the client token of a batch as it is cut here."""
        tokens, left = ClientTokens(self._plan), {task.tags.get(SYSTEM_TAG_TOKEN) for task in found}
        for row in self._stored.rows():
            left.discard(tokens.of(row.targets))
            if not left:
                return True
        return False

    async def _found(self) -> list[TaskSummary]:
        token: str | None = None
        is_second = False
        for _ in range(PAGES):
            await self._permit()
            page = await self._transport.list_tasks(token, PAGE)
            if isinstance(page, Answer):
                if page.kind in _PASSING and not is_second:
                    is_second = True
                    await asyncio.sleep(RETRY_S)
                    continue
                if page.kind in _ASKED_ANYWAY:
                    log.warning(
                        "ListTasks is not allowed (%s): whether another host has sent run %s is not known",
                        page.code,
                        self._plan.run,
                    )
                return []
            found = [task for task in page.tasks if is_of_run(task, self._plan)]
            token = page.next_token
            self._is_whole = token is None
            if found or token is None:
                return found
        return []

    async def _age(self, task_id: str) -> _Age:
        view: TaskView | Answer | None = None
        await self._permit()
        with self._harmless():
            view = await self._transport.describe_task(task_id)
        if view is None or isinstance(view, Answer):
            return _Age(-math.inf, -math.inf)
        wall = self._clock.wall()
        # HTTP dates have no fractions: the second that they leave out counts against the token.
        now = wall if view.service_now is None else view.service_now + 1.0
        return _Age(view.created_at, wall - (now - view.created_at))

    async def _permit(self) -> None:
        delay_s = self._bucket.reserve(self._clock.monotonic())
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        self._bucket.departed(self._clock.monotonic())
