"""`--tracing`: spans go where `OTEL_*` variables say, and cost neither stdout nor the exit code."""

from __future__ import annotations

import http.server
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Emulators, Site


@pytest.fixture
def collected() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Collect what is posted: the address, and each path with its body."""
    posts: list[tuple[str, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", posts
        finally:
            server.shutdown()
            thread.join()


def test_spans_reach_a_collector_before_the_command_ends(
    site: Site, emulate: Emulators, collected: tuple[str, list[tuple[str, bytes]]]
) -> None:
    """OTLP over HTTP unless told otherwise, under our name: one of the run, one a call."""
    url, posts = collected
    site.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
    done = site.run(site.manifest(site.ids(30)), emulate(30), "--tracing")
    assert (done.code, done.summary["calls"]) == (0, 3), done.err
    assert {path for path, _ in posts} == {"/v1/traces"}
    requests = [ExportTraceServiceRequest.FromString(body) for _, body in posts]
    told = [resource for request in requests for resource in request.resource_spans]
    names = Counter(span.name for one in told for scope in one.scope_spans for span in scope.spans)
    assert names == {"dispatcher.run": 1, "CreateTask": 3}
    assert all('"snow-dispatcher"' in str(one.resource) for one in told)


@pytest.mark.parametrize(("exporter", "runs", "calls"), [("console", 1, 3), (" none", 0, 0)])
def test_spans_on_stderr_or_nowhere(
    site: Site, emulate: Emulators, exporter: str, runs: int, calls: int
) -> None:
    """`console` writes beside the notes: stdout is one JSON object still."""
    site.env |= {"OTEL_TRACES_EXPORTER": exporter, "OTEL_SERVICE_NAME": "fleet-ops"}
    done = site.run(site.manifest(site.ids(30)), emulate(30), "--tracing")
    assert done.code == 0, done.err
    assert done.err.count('"name": "dispatcher.run"') == runs
    assert done.err.count('"name": "CreateTask"') == calls
    assert ("fleet-ops" in done.err) is bool(runs)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "zipkin"},
            "OTEL_TRACES_EXPORTER: no exporter called 'zipkin' is installed",
        ),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "no exporter called 'otlp_proto_grpc' is installed"),
        (
            {"OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER": "x"},
            "the exporter 'otlp_proto_http' cannot be set up: ",
        ),
    ],
)
def test_an_exporter_that_cannot_be_had_is_one_line(
    site: Site, emulate: Emulators, variables: dict[str, str], says: str
) -> None:
    """Exit 2 before anything is planned."""
    service = emulate(30)
    site.env |= variables
    done = site.run(site.manifest(site.ids(30)), service, "--tracing")
    assert (done.code, len(done.errors), service.calls) == (2, 1, []), done.err
    assert says in done.errors[0]
    assert not site.checkpoint.exists()
