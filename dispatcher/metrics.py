"""What Prometheus scrapes: the counters of the runs of one dispatcher, read when somebody asks.

Nothing of it costs a run anything but the duration of each call, which goes into a histogram. Labels are
run ids, states and kinds of answers, all from closed sets or the operator: never a device, a task, a client
token or a sentence of the service. docs/metrics.md lists every name.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from dispatcher.errors import UsageError
from dispatcher.forking import disown_in_children
from dispatcher.policy.lane import LaneState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from dispatcher.checkpoint.base import Plan
    from dispatcher.observe import Call, Progress
    from dispatcher.settings import Resolved

KEPT_RUNS = 16
"""Runs of one dispatcher that are shown; of more, those that ended first are dropped."""
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histogram; the default deadline of a call is 10 s."""
PREFIX = "snow_dispatcher"


class Live(Protocol):
    """What is read of a run."""

    @property
    def plan(self) -> Plan: ...
    @property
    def progress(self) -> Progress: ...
    @property
    def settings(self) -> Resolved: ...


class _Shown:
    """One run as it is shown; the run itself, with all that it held, need not stay in memory."""

    def __init__(self, run: Live) -> None:
        self.plan = run.plan
        self.progress = run.progress
        self.settings = run.settings
        self.began_at = time.time()
        self.exit: int | None = None
        self.is_live = True
        self.durations: dict[str, Any] = {}


class Metrics:
    """The metrics of one dispatcher."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Report to `registry`, or to one of our own.

        Raises `UsageError` where the extra is not installed, or the registry has such metrics already.
        """
        try:
            import prometheus_client
            from prometheus_client import metrics_core
        except ImportError as error:
            raise UsageError(
                f"metrics need the extra `prometheus`, which is not installed ({error})",
                hint="python3 -m pip install 'snow-dispatcher[prometheus]'",
            ) from error
        self._core = metrics_core
        self._client = prometheus_client
        self._registry = prometheus_client.CollectorRegistry() if registry is None else registry
        self._durations = prometheus_client.Histogram(
            f"{PREFIX}_call_duration_seconds", "Calls that came back, by what they brought.",
            ("run", "answer"), buckets=BUCKETS_S, registry=None,
        )  # fmt: skip
        self._shown: dict[str, _Shown] = {}
        self._server: Any = None
        self._thread: Any = None
        self.url: str | None = None
        """Where the endpoint listens, if it does."""
        try:
            self._registry.register(self)
        except ValueError as error:
            hint = "give each dispatcher a registry of its own"
            raise UsageError("another dispatcher reports to this registry", hint=hint) from error

    def serve(self, address: str) -> None:
        """Answer scrapes at `address`, `HOST:PORT`, from threads of their own; port 0 is any that is free.

        Raises `UsageError` where that cannot be.
        """
        host, _, port = address.rpartition(":")
        try:
            started = self._client.start_http_server(int(port), host.strip("[]"), self._registry)
        except (OSError, UnicodeError) as error:  # the latter of a host that is no name at all
            why = getattr(error, "strerror", None) or str(error)
            raise UsageError(
                f"metrics cannot be served at {address}: {why}", hint="name another port"
            ) from error
        self._server, self._thread = started
        disown_in_children(self)
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Stop answering, and leave the registry."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None
        self._registry.unregister(self)

    def disown(self) -> None:
        """In a forked child: let go of the port, which nobody answers there."""
        if self._server is not None:
            self._server.socket.close()
            self._server = None

    def follow(self, run: Live) -> Callable[[Call], None]:
        """Show `run` from now on; returns what is to be told of its calls."""
        name = run.plan.run
        self._forget(name)
        ended = [other for other, shown in self._shown.items() if not shown.is_live]
        for other in ended[: max(0, len(self._shown) + 1 - KEPT_RUNS)]:
            self._forget(other)
        shown = self._shown[name] = _Shown(run)

        def hear(call: Call) -> None:
            duration = shown.durations.get(call.answer)
            if duration is None:
                duration = shown.durations[call.answer] = self._durations.labels(name, call.answer)
            duration.observe(call.elapsed_s)

        return hear

    def ended(self, run: Live, exit_code: int | None) -> None:
        """Note that this process is done with `run`."""
        shown = self._shown.get(run.plan.run)
        if shown is not None and shown.progress is run.progress:
            shown.is_live, shown.exit = False, exit_code

    def _forget(self, name: str) -> None:
        shown = self._shown.pop(name, None)
        for answer in shown.durations if shown is not None else ():
            self._durations.remove(name, answer)

    def describe(self) -> Iterator[Metric]:
        """Name the families, for the registry to find clashes."""
        return self._families(())

    def collect(self) -> Iterator[Metric]:
        """Read everything, on the scraper's thread."""
        return self._families(tuple(self._shown.items()))

    def _families(self, shown: tuple[tuple[str, _Shown], ...]) -> Iterator[Metric]:
        for name, help_text, read in _COUNTERS:
            counter = self._core.CounterMetricFamily(f"{PREFIX}_{name}", help_text, labels=("run",))
            for run, one in shown:
                counter.add_metric((run,), read(one))
            yield counter
        for name, help_text, label, read_all in _GAUGES:
            labels = ("run",) if label is None else ("run", label)
            gauge = self._core.GaugeMetricFamily(f"{PREFIX}_{name}", help_text, labels=labels)
            for run, one in shown:
                for value, number in read_all(one).items():
                    gauge.add_metric((run,) if label is None else (run, value), number)
            yield gauge
        info = self._core.InfoMetricFamily(f"{PREFIX}_run", "What a run is.", labels=("run",))
        for run, one in shown:
            info.add_metric((run,), {"command": one.plan.command, "region": one.plan.region})
        yield info
        yield from self._durations.collect()


def _one(number: float | None) -> dict[str, float]:
    return {} if number is None else {"": number}


_COUNTERS: tuple[tuple[str, str, Callable[[_Shown], float]], ...] = (
    ("calls", "Calls that left.", lambda one: one.progress.calls),
    ("throttled_calls", "Calls that the service throttled.", lambda one: one.progress.throttled),
    ("retried_calls", "Calls that were not a batch's first.", lambda one: one.progress.retried),
    ("faulted_calls", "Calls that met a fault.", lambda one: one.progress.faults),
)
_GAUGES: tuple[tuple[str, str, str | None, Callable[[_Shown], dict[str, float]]], ...] = (
    ("devices", "Devices by class, of the whole run.", "state", lambda one: dict(one.progress.classes())),
    (
        "replayed_devices", "Devices whose first task is older than the plan.", None,
        lambda one: _one(one.progress.replayed),
    ),
    ("calls_in_flight", "Calls on the wire.", None, lambda one: _one(one.progress.in_flight)),
    (
        "allowed_calls_per_second", "What the service is believed to allow.", None,
        lambda one: _one(one.progress.rate_per_s),
    ),
    (
        "ceiling_calls_per_second", "The ceiling that was set.", None,
        lambda one: _one(one.settings.rate_per_s),
    ),
    (
        "lane_state", "1 for the state that the lane is in.", "state",
        lambda one: {state.value: float(state.value == one.progress.lane_state) for state in LaneState},
    ),
    ("run_live", "1 while this process is at the run.", None, lambda one: _one(float(one.is_live))),
    ("run_began_timestamp_seconds", "When this process began it.", None, lambda one: _one(one.began_at)),
    ("run_exit_code", "What this process ended the run with.", None, lambda one: _one(one.exit)),
)  # fmt: skip
