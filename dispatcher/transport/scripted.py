"""A transport that answers from a function: for tests, and for measuring the engine without a network."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from dispatcher.model import Answer, Kind

if TYPE_CHECKING:
    from dispatcher.errors import DispatcherError
    from dispatcher.transport.base import TaskPage, TaskView

Script = Callable[[Sequence[str], str], Answer | Awaitable[Answer]]


class ScriptedTransport:
    """Answers every call by `script(targets, client_token)`, which may be a coroutine function."""

    def __init__(
        self,
        script: Script,
        *,
        describe: Callable[[str], TaskView | Answer | None] | None = None,
        pages: Callable[[str | None, int], TaskPage | Answer] | None = None,
    ) -> None:
        """`describe` and `pages` answer the reads; without them there is no such task, and no list."""
        self._script = script
        self._describe = describe
        self._pages = pages
        self.renewals = 0
        self.refusal: DispatcherError | None = None
        self.in_flight = 0
        self.max_in_flight = 0

    async def create_task(self, targets: Sequence[str], client_token: str) -> Answer:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            answer = self._script(targets, client_token)
            return await answer if inspect.isawaitable(answer) else answer
        finally:
            self.in_flight -= 1

    async def describe_task(self, task_id: str) -> TaskView | Answer:
        found = self._describe(task_id) if self._describe else None
        return found or Answer(kind=Kind.POISON, code="ResourceNotFoundException", message="no such task")

    async def list_tasks(self, next_token: str | None, limit: int) -> TaskPage | Answer:
        if self._pages is None:
            return Answer(kind=Kind.ODD, code="HTTP 501", message="ListTasks is not scripted")
        return self._pages(next_token, limit)

    async def renew(self) -> Answer | None:
        self.renewals += 1
        return None

    async def close(self) -> None:
        """Nothing to close."""
