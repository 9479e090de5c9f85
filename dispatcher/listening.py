"""Whatever listens to one run in this process: the caller's hook, the metrics, the spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from dispatcher.delivery import Delivery
from dispatcher.errors import DispatcherError
from dispatcher.observe import Hooks

if TYPE_CHECKING:
    from types import TracebackType

    from dispatcher.metrics import Metrics
    from dispatcher.observe import Hook
    from dispatcher.run import Run
    from dispatcher.tracing import RunTrace


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
            from dispatcher.tracing import RunTrace

            self._trace = RunTrace(run.plan)
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
        try:
            for delivery in self._deliveries:
                if error is None or isinstance(error, DispatcherError):
                    await delivery.finish()
        finally:
            for delivery in self._deliveries:
                delivery.stop()
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        run = self._run
        if run is None:
            return
        summary = run.summary()
        code = summary.exit if error is None else getattr(error, "exit_code", None)
        if self._metrics is not None:
            self._metrics.ended(run, code)
        if self._trace is not None:
            self._trace.end(summary.counts, calls=summary.calls, exit_code=code)
