"""A service that makes tasks and does not list them as the real one does: a fresh run must not care."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Site

READS = {
    "not found": (404, b"<html>no such page</html>"),
    "no list": (200, b"{}"),
    "an array": (200, b"[]"),
    "tasks without ids": (200, b'{"tasks":[{}]}'),
    "a list without end": (200, b'{"tasks":[],"nextToken":"again"}'),
    "nothing at all": (0, b""),
    "silence": (-1, b""),
}


class Stranger(BaseHTTPRequestHandler):
    """Makes a task for every POST; what a GET gets is the server's `read`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        size = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(size))
        made = self.server.made  # type: ignore[attr-defined]
        made += body["targets"]
        self._answer(200, json.dumps({"taskId": f"st-{len(made)}", "taskArn": "arn"}).encode())

    def do_GET(self) -> None:
        status, body = self.server.read  # type: ignore[attr-defined]
        if status == -1:
            self.server.over.wait(30)  # type: ignore[attr-defined]
        if status <= 0:
            self.close_connection = True
            return
        self._answer(status, body)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def stranger(read: tuple[int, bytes]) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    server.daemon_threads = True
    server.read, server.made, server.over = read, [], threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.mark.parametrize("read", READS)
def test_a_fresh_run_does_not_need_the_list(site: Site, read: str) -> None:
    """Whatever the look before it meets, every device gets its task, and nothing is said."""
    with stranger(READS[read]) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        done = site.do("run", site.manifest(site.ids(30)), "--endpoint-url", url, "--json")
        assert (done.code, done.summary["accepted"], done.errors) == (0, 30, []), done.err
        assert sorted(server.made) == site.ids(30)  # type: ignore[attr-defined]
        assert "warning" not in done.err.lower()


@pytest.mark.parametrize("read", ["not found", "no list", "nothing at all"])
def test_a_reconcile_does(site: Site, read: str) -> None:
    """An answer that is no list proves nothing: exit 3, one line, nothing changed."""
    with stranger(READS[read]) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        done = site.do("run", site.manifest(site.ids(30)), "--endpoint-url", url, "--json")
        assert done.code == 0, done.err
        asked = site.do("reconcile", "fleet", "--json", "--patience", 1)
        assert (asked.code, len(asked.errors)) == (3, 1), asked.err
        assert "ListTasks cannot be had" in asked.errors[0]
        assert (asked.summary["run"], asked.summary["devices"], asked.summary["accepted"]) == (
            "fleet",
            30,
            30,
        )


def test_a_run_with_nothing_to_send_says_what_it_could_not_look_up(site: Site) -> None:
    """All that is left is in doubt and may not be sent again: that the service did not tell is told."""
    with stranger((500, b"")) as server:
        server.made = None  # type: ignore[attr-defined]  # every POST fails after it was read
        url = f"http://127.0.0.1:{server.server_port}"
        options = ("--endpoint-url", url, "--json", "--max-attempts", 1, "--patience", 1, "--token-window", 0)
        done = site.do("run", site.manifest(site.ids(10)), *options)
        assert (done.code, done.summary["in_doubt"]) == (1, 10), done.err
        again = site.do("resume", "fleet", "--json", "--patience", 1, "--token-window", 0)
        assert (again.code, again.summary["already_complete"]) == (1, True), again.err
        assert "what is in doubt could not be looked up" in again.err
