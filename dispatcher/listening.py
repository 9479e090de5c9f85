"""Whatever listens to one run in this process: the caller's hook, the metrics, the spans."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Self

from dispatcher.delivery import Delivery
from dispatcher.errors import UsageError
from dispatcher.observe import Hooks, RunEnded

if TYPE_CHECKING:
    from types import TracebackType

    from dispatcher.metrics import Metrics
    from dispatcher.observe import Hook
    from dispatcher.run import Run
    from dispatcher.tracing import RunTrace

log = logging.getLogger("dispatcher")


class Listeners:
    """Entered around a run; at its end they have heard everything, or are given up."""

    def __init__(self, run: str, *, on_event: Hook | None, metrics: Metrics | None, tracing: bool) -> None:
        """Listen to the run called `run`; needs a running loop."""
        self._name = run
        self._metrics = metrics
        self._tracing = tracing
        self._deliveries: list[Delivery] = []
        self._run: Run | None = None
        self._trace: RunTrace | None = None
        hooks = () if on_event is None else (self._deliver(on_event),)
        self.hooks = Hooks(hooks)

    def _deliver(self, hook: Hook) -> Hook:
        delivery = Delivery(hook, run=self._name)
        self._deliveries.append(delivery)
        return delivery.take

    def follow(self, run: Run) -> Run:
        """Tell metrics and spans of `run`, which was made with our hooks and was not sent yet."""
        self._run = run
        if self._metrics is not None:
            self.hooks.hear_calls(self._metrics.follow(run))
        if self._tracing:
            self._trace = _begun(run)
        if self._trace is not None:
            # An exporter may do its work in the very call that ends a span: not on the run's loop.
            delivery = Delivery(self._trace.call, run=self._name)
            self._deliveries.append(delivery)
            self.hooks.hear_calls(delivery.take)
        return run

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        last = self._end(error)
        heard_out = error is None or isinstance(error, Exception)  # a cancellation waits for no hook
        try:
            await asyncio.gather(*(one.finish() for one in (*(self._deliveries if heard_out else ()), *last)))
        finally:
            for delivery in (*self._deliveries, *last):
                delivery.stop()

    def _end(self, error: BaseException | None) -> tuple[Delivery, ...]:
        """Tell metrics and spans of the end; returns what is still to be waited for."""
        run = self._run
        if run is None:
            return ()
        summary = run.summary()
        code = summary.exit if error is None else getattr(error, "exit_code", None)
        if self._metrics is not None:
            self._metrics.ended(run, code)
        trace = self._trace
        if trace is None:
            return ()
        counts, calls = summary.counts, summary.calls
        last = Delivery(lambda _: trace.end(counts, calls=calls, exit_code=code), run=self._name)
        last.take(RunEnded(run=self._name, exit=summary.exit))
        return (last,)


def _begun(run: Run) -> RunTrace | None:
    """Begin the spans of `run`; what a program's own processors raise costs the spans alone."""
    from dispatcher.tracing import RunTrace

    try:
        return RunTrace(run.plan)
    except UsageError:
        raise
    except Exception:
        log.exception("spans cannot be made; the run goes on without")
        return None
