"""The tasks of one run among all that the service lists.

With system tags a task names its run and its client token, and the list alone tells whose it is. Without
them the list tells the operator's tags only: then every task that has exactly the run's is described, and
taken for a batch's where devices and description are the same and it was made after the batch was first sent.
Another run of the same manifest at the same time looks no different; that is what the tags are for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dispatcher.model import BatchState, FoundTask
from dispatcher.plan import SYSTEM_TAG_RUN, SYSTEM_TAG_TOKEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.checkpoint.base import Plan, Row, Stored
    from dispatcher.checkpoint.writer import Offload
    from dispatcher.lookup import Lookup
    from dispatcher.plan import ClientTokens
    from dispatcher.transport.base import TaskSummary, TaskView

AT_ONCE = 16
"""Tasks described at once; the ceiling decides how fast."""
MAX_DESCRIBED = 10_000
"""Tasks that are described where there are no system tags; beyond, the list counts as not read to its end."""
SLACK_S = 2.0
"""HTTP dates resolve one second, and so does what is learnt of the service's clock."""


class TasksOfRun:
    """What was listed of one run; a task that nobody has taken at the end belongs to no batch."""

    def __init__(self, *, has_tags: bool) -> None:
        self._has_tags = has_tags
        self._by_token: dict[str, list[FoundTask]] = {}
        self._by_targets: dict[tuple[str, ...], list[FoundTask]] = {}
        self._left: set[str] = set()
        self.by_id: dict[str, FoundTask] = {}
        self.pages = 0
        self.listed = 0
        self.is_complete = False

    def add(self, task: FoundTask) -> None:
        """Note a task of the run."""
        if task.task_id in self.by_id:
            return  # pages may overlap where tasks are made meanwhile
        self.by_id[task.task_id] = task
        if self._has_tags:
            self._left.add(task.task_id)
        if task.token is not None:
            self._by_token.setdefault(task.token, []).append(task)

    def settle(self, task: FoundTask) -> None:
        """Note what a task without system tags was found to hold."""
        self.by_id[task.task_id] = task
        self._by_targets.setdefault(task.targets, []).append(task)

    def take(self, task_id: str) -> bool:
        """Note that a batch has this task; tell whether it is listed."""
        self._left.discard(task_id)
        return task_id in self.by_id

    def of_batch(self, row: Row, tokens: ClientTokens) -> list[FoundTask]:
        """Return the tasks of a batch, and take them."""
        if not self._has_tags:
            found = self._by_targets.get(row.targets, []) if row.state == BatchState.IN_DOUBT else []
            since = (row.first_sent_at or 0.0) - SLACK_S
            return [task for task in found if task.created_at is not None and task.created_at >= since]
        if not self._by_token:
            return []
        found = self._by_token.get(tokens.of(row.targets), [])
        self._left.difference_update(task.task_id for task in found)
        return found

    async def described(self, lookup: Lookup) -> list[FoundTask]:
        """Look up the tasks that nobody has taken.

        One that is listed and cannot be described may have any device, so then nothing is proven absent: the
        list counts as not read to its end.
        """
        left = [self.by_id[task_id] for task_id in sorted(self._left)]
        found: list[FoundTask] = []
        for start in range(0, len(left), AT_ONCE):
            chunk = left[start : start + AT_ONCE]
            views = await _views(lookup, [task.task_id for task in chunk])
            found += [_joined(task, view, lookup) for task, view in zip(chunk, views, strict=True) if view]
        self.is_complete &= len(found) == len(left)
        return found


async def gather(
    lookup: Lookup, plan: Plan, *, max_pages: int, offload: Offload, stored: Stored
) -> TasksOfRun:
    """Read the list, at most `max_pages` of it, and keep what is of the run."""
    found = TasksOfRun(has_tags=plan.system_tags)
    token: str | None = None
    seen: set[str] = set()
    while found.pages < max_pages:
        page = await lookup.page(token)
        found.pages += 1
        found.listed += len(page.tasks)
        for task in page.tasks:
            if is_of_run(task, plan):
                found.add(FoundTask(task.task_id, task.task_arn, task.tags.get(SYSTEM_TAG_TOKEN)))
        token = page.next_token
        if token is None:
            found.is_complete = True
            break
        if token in seen:
            break  # a list that turns in circles has no end that could be read
        seen.add(token)
    if not plan.system_tags:
        doubtful = await offload.run(lambda: _doubtful(stored))
        await _describe_untagged(lookup, plan, found, doubtful)
    return found


def is_of_run(task: TaskSummary, plan: Plan) -> bool:
    """Tell whether a listed task is this run's; without system tags, whether it may be."""
    if plan.system_tags:
        return task.tags.get(SYSTEM_TAG_RUN) == plan.run
    return dict(task.tags) == plan.tags


def _doubtful(stored: Stored) -> set[tuple[str, ...]]:
    states = (BatchState.IN_DOUBT, BatchState.SENT)
    return {row.targets for row in stored.rows() if row.state in states}


async def _describe_untagged(
    lookup: Lookup, plan: Plan, found: TasksOfRun, doubtful: set[tuple[str, ...]]
) -> None:
    if not doubtful:
        return
    candidates = list(found.by_id.values())
    found.is_complete &= len(candidates) <= MAX_DESCRIBED
    for start in range(0, min(len(candidates), MAX_DESCRIBED), AT_ONCE):
        chunk = candidates[start : start + AT_ONCE]
        views = await _views(lookup, [task.task_id for task in chunk])
        for task, view in zip(chunk, views, strict=True):
            if view is not None and view.description == plan.description:
                described = _joined(task, view, lookup)
                if described.targets in doubtful:
                    found.settle(described)


async def _views(lookup: Lookup, task_ids: Sequence[str]) -> Sequence[TaskView | None]:
    return await asyncio.gather(*(lookup.task(task_id) for task_id in task_ids))


def _joined(task: FoundTask, view: TaskView, lookup: Lookup) -> FoundTask:
    skew_s = 0.0 if view.service_now is None else view.service_now - lookup.wall()
    targets = tuple(sorted(set(view.targets)))
    return FoundTask(task.task_id, task.task_arn, task.token, targets, view.created_at - skew_s)
