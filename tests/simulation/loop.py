"""An event loop in virtual time: its clock jumps to the next timer, and a seed may order what is ready.

It has no selector, no socket and no thread. What `run_in_executor` is given runs here, by default at once;
a thread that calls in fails. Handles belong to the simulated process that made them (`PROCESS`, which
contexts inherit), so that a process can be stopped, or can cease to exist, between any two of its steps.
"""

from __future__ import annotations

import asyncio
import heapq
import warnings
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

PROCESS: ContextVar[Any] = ContextVar("PROCESS", default=None)
"""The simulated process that the running code belongs to; None is the world outside of all of them."""


class Stuck(RuntimeError):
    """Nothing is ready and no timer is pending: what is awaited will never come."""


class Leak(RuntimeError):
    """The code under test reached for something real: a socket, a thread, a clock."""


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """Runs one handle at a time: the oldest, or with `rng` any that is ready."""

    def __init__(self, rng: random.Random | None = None, *, max_steps: int | None = None) -> None:
        super().__init__()
        self.virtual_s = 0.0
        self.steps = 0
        self.max_steps = max_steps
        """Steps after which the loop gives up: what spins for ever must fail and not hang."""
        self.on_step: Callable[[], None] = lambda: None
        self.commit_s: Callable[[], float] | None = None
        """How long a call that was put off the loop takes, if it is to take any time."""
        self.network: Any = None
        """What connections are asked of (`wire_network`), where there is one."""
        self._rng = rng
        self._frozen: dict[Any, list[asyncio.Handle]] = {}
        self._ended: set[Any] = set()
        self._made: list[tuple[Any, asyncio.Task[Any]]] = []
        self._busy_until_s: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    def time(self) -> float:
        return self.virtual_s

    def _run_once(self) -> None:
        self._wake_due()
        while not self._ready and not self._stopping:
            if not self._scheduled:
                raise Stuck("every task is blocked and no timer is pending")
            self.virtual_s = max(self.virtual_s, self._scheduled[0]._when)
            self._wake_due()
        if not self._ready:
            return
        if self._rng is not None and len(self._ready) > 1:
            self._ready.rotate(-self._rng.randrange(len(self._ready)))
        handle = self._ready.popleft()
        if handle._cancelled:
            return
        if self._frozen or self._ended:
            process = handle._context.get(PROCESS)
            if process in self._ended:
                return
            if process in self._frozen:
                self._frozen[process].append(handle)
                return
        self.steps += 1
        if self.max_steps is not None and self.steps > self.max_steps:
            raise Stuck(f"no end after {self.max_steps} steps")
        self.on_step()
        if not handle._cancelled and handle._context.get(PROCESS) not in self._ended:
            handle._run()

    def _wake_due(self) -> None:
        scheduled = self._scheduled
        while scheduled and (scheduled[0]._cancelled or scheduled[0]._when <= self.virtual_s):
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if not handle._cancelled:
                self._ready.append(handle)

    # Processes

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = super().create_task(coro, **options)
        if (process := PROCESS.get()) is not None:
            self._made.append((process, task))
        return task

    def freeze(self, process: Any) -> None:
        """Let a process make no step until `thaw`, while time goes on."""
        self._frozen.setdefault(process, [])

    def thaw(self, process: Any) -> None:
        """Let it go on: what came due meanwhile is due now."""
        self._ready.extend(self._frozen.pop(process, ()))

    def end(self, process: Any) -> None:
        """Drop all that a process would still have done, and unwind its tasks."""
        self._frozen.pop(process, None)
        self._ended.add(process)
        for handle in [*self._ready, *self._scheduled]:
            if handle._context.get(PROCESS) is process:
                handle.cancel()
        running = asyncio._get_running_loop()
        asyncio._set_running_loop(self)  # what it would still start is started here, and dropped
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                while mine := [task for owner, task in self._made if owner is process]:
                    self._made = [(owner, task) for owner, task in self._made if owner is not process]
                    for task in mine:
                        task._log_destroy_pending = False
                        if not task.done():
                            _unwind(task.get_coro())
        finally:
            asyncio._set_running_loop(running)

    # The network

    async def sock_connect(self, sock: Any, address: Any) -> None:
        if self.network is None:
            raise Leak("a socket in a simulation without a network")
        await self.network.connect(address)

    async def create_connection(self, protocol_factory: Any, *_: Any, **options: Any) -> Any:  # type: ignore[override]
        if self.network is None or options.get("ssl") is not None:
            raise Leak("a connection in a simulation without a network")
        return await self.network.connection(protocol_factory)

    # What must not be

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Run `func` here, as the one thread of `executor` would: in order, and after a while."""
        future = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001  (the awaiting side gets it, as of a thread)
                finish = _set_exception, error
            else:
                finish = _set_result, result
            if self.commit_s is None:
                finish[0](future, finish[1])
            else:
                self.call_later(self.commit_s(), finish[0], future, finish[1])

        if self.commit_s is None:
            work()
            return future
        begins_s = self.virtual_s + self.commit_s()
        if executor is not None:  # it has one thread; the default one has many
            begins_s = max(begins_s, self._busy_until_s.get(executor, 0.0))
            self._busy_until_s[executor] = begins_s
        self.call_at(begins_s, work)
        return future

    def _write_to_self(self) -> None:
        raise Leak("a thread called into the loop")

    def _process_events(self, event_list: Any) -> None:
        raise Leak("there is no selector")


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _unwind(coroutine: Any) -> None:
    """Close a coroutine whose process is gone; what it awaits in its `finally` is refused."""
    for _ in range(8):
        try:
            coroutine.close()
        except BaseException:  # noqa: BLE001  (it is dead: whatever it says, nobody hears it)
            continue
        return
