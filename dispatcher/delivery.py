"""From the run to a hook that may be slow, may raise or may never return (ADR 16).

Events wait in a queue that costs the run nothing but memory, and the queue has an end. A plain function
works it off on a thread of its own, a coroutine function on the run's loop; order is kept and one event is
heard at a time. The thread is a daemon: a hook that never returns cannot keep the process alive either.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from dispatcher.observe import BatchSettled, Call, EventsMissed, RunProgressed

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.observe import Event

log = logging.getLogger("dispatcher")

MAX_WAITING = 50_000
"""Events that may wait for a hook, about 30 MB of them; then those of batches, calls and progress are left
out and counted. The others are few."""
STUCK_S = 10.0
"""At the end of a run: how long a hook may stay at one event."""
BEHIND_S = 60.0
"""At the end of a run: how long a hook may work off what is waiting."""
LOOK_S = 0.5
"""How often it is looked whether the hook got on."""
_MANY = (BatchSettled, RunProgressed, Call)


class Delivery:
    """Brings the events of one run to one hook. Its methods belong to the run's loop."""

    def __init__(self, hook: Callable[[Any], object], *, run: str) -> None:
        """Begin to listen; needs a running loop."""
        self._hook = hook
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._gathered: list[Event | Call] = []
        self._taken = 0
        self._heard = 0
        self._missed = 0
        self._is_over = False
        self._complained = False
        self._done = asyncio.Event()
        self._box: SimpleQueue[list[Event | Call] | None] | asyncio.Queue[list[Event | Call] | None]
        self._task: asyncio.Task[None] | None = None
        if _is_async(hook):
            self._box = asyncio.Queue()
            self._task = self._loop.create_task(self._await_all(self._box), name="event-hook")
        else:
            self._box = SimpleQueue()
            work = contextvars.copy_context().run
            thread = threading.Thread(target=work, args=(self._call_all, self._box), daemon=True)
            thread.name = "event-hook"
            thread.start()

    def take(self, event: Event | Call) -> None:
        """Take one more event; never waits."""
        if self._is_over:
            return
        if self._taken - self._heard >= MAX_WAITING and isinstance(event, _MANY):
            self._missed += 1
            return
        if self._missed:
            self._gather(self._gap())
        self._gather(event)

    def _gather(self, event: Event | Call) -> None:
        self._taken += 1
        self._gathered.append(event)
        if len(self._gathered) == 1:
            self._loop.call_soon(self._hand_over)  # what one commit settles wakes the thread once

    def _gap(self) -> EventsMissed:
        missed, self._missed = self._missed, 0
        return EventsMissed(run=self._run, count=missed)

    def _hand_over(self) -> None:
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            self._box.put_nowait(gathered)

    async def finish(self) -> None:
        """Wait until everything was heard, but not for ever, and stop listening."""
        if self._missed:
            self._gather(self._gap())
        self._hand_over()
        self._box.put_nowait(None)
        now_s = self._loop.time()
        heard, stuck_s, until_s = self._heard, now_s + STUCK_S, now_s + BEHIND_S
        try:
            while not self._done.is_set() and (left_s := min(stuck_s, until_s) - self._loop.time()) > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._done.wait(), min(left_s, LOOK_S))
                if heard != self._heard:
                    heard, stuck_s = self._heard, self._loop.time() + STUCK_S
        finally:
            self.stop()
        if not self._done.is_set():
            log.warning("an event hook is stuck or far behind: %d events of run %s were not heard",
                        self._taken - self._heard, self._run)  # fmt: skip

    def stop(self) -> None:
        """Stop listening now; what waits is dropped."""
        self._is_over = True
        self._box.put_nowait(None)
        if self._task is not None:
            self._task.cancel()

    def _call_all(self, box: SimpleQueue[list[Event | Call] | None]) -> None:
        """On the hook's thread: hear block after block."""
        while (block := box.get()) is not None:
            for event in block:
                if self._is_over:
                    return
                try:
                    result = self._hook(event)
                    if inspect.iscoroutine(result):  # a plain function that returns one
                        asyncio.run_coroutine_threadsafe(result, self._loop).result()
                except BaseException as error:  # noqa: BLE001 - sys.exit() in a hook ends nothing either
                    self._complain(error)
                self._heard += 1
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._done.set)

    async def _await_all(self, box: asyncio.Queue[list[Event | Call] | None]) -> None:
        while (block := await box.get()) is not None:
            for event in block:
                try:
                    result: Any = self._hook(event)
                    await result
                except asyncio.CancelledError as error:
                    if self._is_over:
                        raise
                    self._complain(error)
                except (Exception, SystemExit) as error:  # noqa: BLE001 - but Ctrl-C is the operator's
                    self._complain(error)
                self._heard += 1
        self._done.set()

    def _complain(self, error: BaseException) -> None:
        if not self._complained:
            self._complained = True
            log.error("an event hook raised; it is called on, and the run goes on", exc_info=error)


def _is_async(hook: Callable[[Any], object]) -> bool:
    return inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(getattr(hook, "__call__", None))  # noqa: B004
