"""Before the first call of a fresh run: does the service know this run already?

A host without a record cannot know what another one sent. Inside the token window that is harmless, since
the service answers the same client tokens with the tasks it has. Outside it devices would get a second task,
so the first pages of ListTasks are searched for the run's tag. It is a look, not a proof: a list too long for
it, a service that does not list, or a missing permission leaves the run as it was, and never fails it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from dispatcher.errors import CheckpointError, DispatcherError
from dispatcher.hints import reconcile
from dispatcher.lookup import PAGE
from dispatcher.model import Answer, Kind
from dispatcher.policy.token_bucket import TokenBucket
from dispatcher.policy.token_window import TokenWindow
from dispatcher.tasks_of_run import is_of_run

if TYPE_CHECKING:
    from dispatcher.checkpoint.base import Plan
    from dispatcher.clock import Clock
    from dispatcher.settings import Resolved
    from dispatcher.transport.base import TaskSummary, TaskView, Transport

PAGES = 5
DEADLINE_S = 2.0
"""All of it together: the start of a run waits no longer."""
_ASKED_ANYWAY = (Kind.DENIED, Kind.EXPIRED)

log = logging.getLogger("dispatcher")


class Probe:
    """One look for tasks of a run that has no record here."""

    def __init__(self, transport: Transport, plan: Plan, settings: Resolved, clock: Clock) -> None:
        self._transport = transport
        self._plan = plan
        self._settings = settings
        self._clock = clock
        # The first read may leave at once: the run's own bucket starts empty after it, and its burst has one.
        now_s = clock.monotonic()
        self._bucket = TokenBucket(settings.rate_per_s, settings.burst, now_s=now_s, level=1.0)

    async def look(self) -> None:
        """Raise `CheckpointError` where tasks of the run are older than the token window."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._look()
        except TimeoutError:
            return
        except DispatcherError:
            raise
        except Exception:  # whoever answers may not be the service: a look must not fail a run
            log.debug("the look for earlier tasks failed", exc_info=True)

    async def _look(self) -> None:
        found = await self._found()
        if not found:
            return
        views = [await self._described(one) for one in dict.fromkeys((found[0].task_id, found[-1].task_id))]
        if all(view is not None and self._is_young(view) for view in views):
            log.info("the service has tasks of run %s inside the token window", self._plan.run)
            return
        raise CheckpointError(
            f"the service already has tasks of run {self._plan.run} ({found[0].task_id}), and this host has"
            " no record of them",
            hint=f"take them up with: {reconcile()}; or give another --run-key to command the devices again",
        )

    async def _found(self) -> list[TaskSummary]:
        token: str | None = None
        for _ in range(PAGES):
            await self._permit()
            page = await self._transport.list_tasks(token, PAGE)
            if isinstance(page, Answer):
                if page.kind in _ASKED_ANYWAY:
                    log.warning(
                        "ListTasks is not allowed (%s): whether another host has sent run %s is not known",
                        page.code,
                        self._plan.run,
                    )
                return []
            found = [task for task in page.tasks if is_of_run(task, self._plan)]
            token = page.next_token
            if found or token is None:
                return found
        return []

    async def _described(self, task_id: str) -> TaskView | None:
        await self._permit()
        view = await self._transport.describe_task(task_id)
        return None if isinstance(view, Answer) else view

    async def _permit(self) -> None:
        delay_s = self._bucket.reserve(self._clock.monotonic())
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        self._bucket.departed(self._clock.monotonic())

    def _is_young(self, view: TaskView) -> bool:
        now = self._clock.wall() if view.service_now is None else view.service_now
        # HTTP dates have no fractions, so a task of this second may seem to be of the next one.
        created_at = min(view.created_at, now) if view.created_at < now + 2.0 else view.created_at
        return TokenWindow(self._settings.resend_window_s).is_open(created_at, now, None)
