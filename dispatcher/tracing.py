"""OpenTelemetry spans: one for what a process does of a run, and one for each call (ADR 17).

Spans go to whatever tracer provider the program has; `export_by_environment` makes one for the command
line, by the variables that OpenTelemetry defines. They carry batch numbers and task ids: never a device, a
client token or a sentence of the service. docs/metrics.md lists every attribute.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Any

from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatcher.checkpoint.base import Plan
    from dispatcher.model import Counts
    from dispatcher.observe import Call

_NS = 1_000_000_000
_MISSING = "python3 -m pip install 'snow-dispatcher[otel]'"


class RunTrace:
    """The spans of one run in this process."""

    def __init__(self, plan: Plan) -> None:
        """Begin the run's span. Raises `UsageError` where the extra is not installed."""
        trace = _api()
        self._trace = trace
        self._tracer = trace.get_tracer("dispatcher", version("snow-dispatcher"))
        self._shared = {"dispatcher.run": plan.run, "cloud.region": plan.region}
        attributes = {**self._shared, "dispatcher.command": plan.command}
        self._span = self._tracer.start_span("dispatcher.run", attributes=attributes)
        self._links = [trace.Link(self._span.get_span_context())]
        self._root = trace.set_span_in_context(trace.INVALID_SPAN)

    def call(self, call: Call) -> None:
        """Tell of one call that came back; may be called from another thread."""
        trace = self._trace
        began_ns = int(call.sent_at * _NS)
        span = self._tracer.start_span(
            "CreateTask", context=self._root, kind=trace.SpanKind.CLIENT, links=self._links,
            start_time=began_ns,
            attributes={
                **self._shared, "rpc.system": "aws-api", "rpc.service": "SnowDeviceManagement",
                "rpc.method": "CreateTask",
                "dispatcher.batch": call.batch, "dispatcher.devices": call.devices,
                "dispatcher.attempt": call.attempt, "dispatcher.answer": call.answer,
            },
        )  # fmt: skip
        if call.task_id is not None:
            span.set_attribute("dispatcher.task_id", call.task_id)
        else:
            span.set_status(trace.StatusCode.ERROR, call.answer)
        span.end(end_time=began_ns + int(call.elapsed_s * _NS))

    def end(self, counts: Counts, *, calls: int, exit_code: int | None) -> None:
        """End the run's span; without an exit code the run was cancelled."""
        for name in ("devices", "accepted", "rejected", "in_doubt", "pending", "cancelled"):
            self._span.set_attribute(f"dispatcher.{name}", getattr(counts, name))
        self._span.set_attribute("dispatcher.calls", calls)
        if exit_code is not None:
            self._span.set_attribute("dispatcher.exit", exit_code)
        if exit_code in (3, 4):
            self._span.set_status(self._trace.StatusCode.ERROR, f"exit {exit_code}")
        self._span.end()


def _api() -> Any:
    try:
        from opentelemetry import trace
    except ImportError as error:
        message = f"tracing needs the extra `otel`, which is not installed ({error})"
        raise UsageError(message, hint=_MISSING) from error
    return trace


def check_installed() -> None:
    """Raise `UsageError` where the extra is not installed."""
    _api()


def export_by_environment(environment: Mapping[str, str] = os.environ) -> Any:
    """Set up a tracer provider as `OTEL_*` variables say, unless the program has one; return it.

    `OTEL_TRACES_EXPORTER` names exporters by their entry point, `otlp` if it is not set and nothing with
    `none`; each reads its own variables (OpenTelemetry, "Environment Variable Specification"). The provider
    is shut down by its maker, so that the last spans leave. Raises `UsageError`.
    """
    trace = _api()
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        message = f"tracing needs the extra `otel`, which is not installed ({error})"
        raise UsageError(message, hint=_MISSING) from error
    named = [word.strip() for word in environment.get("OTEL_TRACES_EXPORTER", "").split(",")]
    exporters = [_exporter(name, environment) for name in named if name != "none"]
    provider = TracerProvider(
        resource=Resource.create(
            {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": "snow-dispatcher"}
        )
    )
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider


def _exporter(name: str, environment: Mapping[str, str]) -> Any:
    name = name or "otlp"
    if name == "otlp":
        key = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
        protocol = environment.get(key) or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
        name = f"otlp_proto_{protocol.removesuffix('/protobuf')}"
    found = tuple(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not found:
        raise UsageError(
            f"OTEL_TRACES_EXPORTER: no exporter called {name!r} is installed",
            hint="`otlp`, `console` and `none` come with snow-dispatcher[otel]",
        )
    try:
        exporter = found[0].load()
        return exporter(out=sys.stderr) if name == "console" else exporter()  # stdout is for results
    except Exception as error:  # whatever an exporter makes of its variables
        raise UsageError(
            f"the exporter {name!r} cannot be set up: {error}", hint="see its OTEL_* variables"
        ) from error
