"""A deadline that does not take a stalled event loop for a silent service.

When the loop stands still for seconds (a page fault storm, a debugger, a machine that was suspended), answers
wait in the sockets and every deadline is overdue at once. asyncio runs what is due before a task can take up
what has just been read, so all calls in flight would be given up together, and each leave its batch in doubt.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STALLED_S = 0.5
"""A timer that comes so late says that the loop stood still, and nothing of the service."""
GRACE_S = 1.0
"""What a call then gets to take up an answer that is here already."""


@contextlib.asynccontextmanager
async def deadline(total_s: float) -> AsyncIterator[None]:
    """Raise `TimeoutError` where the block takes longer than `total_s`; once a grace after a stall."""
    loop = asyncio.get_running_loop()
    scope = asyncio.timeout(None)
    due_s = loop.time() + total_s
    timer: asyncio.TimerHandle

    def ring() -> None:
        nonlocal due_s, timer
        if loop.time() - due_s < STALLED_S:
            scope.reschedule(due_s)
            return
        due_s = loop.time() + GRACE_S
        timer = loop.call_at(due_s, ring)

    timer = loop.call_at(due_s, ring)
    try:
        async with scope:
            yield
    finally:
        timer.cancel()
