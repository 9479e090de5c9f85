"""A service that quotes our secrets back, between control characters: nothing of it is written or shown."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import DEADLINE_S

if TYPE_CHECKING:
    from tests.e2e.conftest import Done, Site

KEY, SECRET, SESSION = "AKIACANARYKEY0123456", "wJalrCANARYsecretKEY012/45+7", "FwoGCANARYsession/TOKEN+98=="
CANARY = b"CANARY"
FORGED = "FORGED"
NASTY = f"\r\n\x1b[2J\x1b]0;x\x07\x9b31m\u202e\u2028{FORGED} error: {FORGED}\nerror: {FORGED}"
"""Line ends of all kinds, a screen cleared, a title set, a C1 code, text turned round, and a forged line."""


class Hostile(BaseHTTPRequestHandler):
    """Accepts devices but for those with `bad` in their id, and repeats every request's headers."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Answer CreateTask."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        lines = "\n".join(f"{name.lower()}:{value}" for name, value in self.headers.items())
        headers = json.dumps(dict(self.headers)) + lines
        said = f"{NASTY} aws_secret_access_key={SECRET} {headers}{NASTY}"
        if "denied" in body:
            self.reply(403, {"message": said}, "AccessDeniedException")
        elif "bad" in body:
            self.reply(400, {"message": said}, "ValidationException")
        else:
            self.reply(200, {"taskId": "0123456789abcdef0123", "taskArn": f"arn{NASTY}"})

    def reply(self, status: int, content: dict[str, str], code: str = "") -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        if code:
            self.send_header("x-amzn-errortype", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hostile(site: Site) -> Iterator[str]:
    """The address of such a service; the operator's credentials are canaries."""
    site.env |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SESSION}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def everything(site: Site, url: str) -> dict[str, Done]:
    """Let every verb speak of a run that met refusals, and of runs that were stopped or refused."""
    ids = [*site.ids(15), "smd-bad", "smd-\u202ebad"]
    manifest = site.manifest(ids, endpoint_url=url)
    ended = {
        "run": site.do("run", manifest, "-vv", "--log-file", site.folder / "log.jsonl"),
        "again": site.do("run", manifest, "-vv", "--json"),
        "other region": site.do("resume", "fleet", "--region", "eu-west-1", "-vv", "--json"),
        "status": site.do("status", "fleet", "-vv"),
        "status json": site.do("status", "fleet", "-vv", "--json"),
        "runs": site.do("runs", "-vv"),
        "runs json": site.do("runs", "-vv", "--json"),
        "plan": site.do("plan", manifest, "-vv"),
        "plan json": site.do("plan", manifest, "-vv", "--json"),
        "config show": site.do("config", "show", "--manifest", manifest, "-vv"),
        "config show json": site.do("config", "show", "--manifest", manifest, "-vv", "--json"),
        "backup": site.do("backup", "fleet", site.folder / "copy.db", "-vv"),
    }
    for form in ("text", "json", "jsonl", "csv"):
        ended[f"report {form}"] = site.do("report", "fleet", "--format", form)
        assert not site.do("report", "fleet", "--format", form, "-o", site.folder / f"report.{form}").code
    denied = site.manifest([f"{one}-denied" for one in site.ids(12)], endpoint_url=url, name="denied")
    ended["denied"] = site.do("run", denied, "-vv", "--log-file", site.folder / "log.jsonl")
    ended["denied json"] = site.do("run", denied, "-vv", "--json")
    ended["denied status"] = site.do("status", "denied", "-vv", "--json")
    (site.state / "registry" / "fleet.json").write_text(f'{{"aws_session_token": "{SESSION}"}}')
    ended["damaged"] = site.do("status", "fleet", "-vv")
    (site.state / "registry" / "fleet.json").unlink()
    return ended


def texts(site: Site, said: dict[str, Done]) -> Iterator[tuple[str, bytes]]:
    """Everything that was written or said."""
    for verb, done in said.items():
        yield f"stdout of {verb}", done.out.encode()
        yield f"stderr of {verb}", done.err.encode()
    for path in site.folder.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()


def test_nothing_secret_and_nothing_that_acts(site: Site, hostile: str) -> None:
    """In no file and on no stream, whatever the verb, form and exit code."""
    said = everything(site, hostile)
    codes = {verb: done.code for verb, done in said.items()}
    assert (codes.pop("run"), codes.pop("again"), codes.pop("other region")) == (1, 1, 4), codes
    assert (codes.pop("denied"), codes.pop("denied json"), codes.pop("damaged")) == (3, 3, 4), codes
    assert set(codes.values()) == {0}, codes
    found = dict(texts(site, said))
    assert str(site.folder / "log.jsonl") in found
    assert str(site.checkpoint) in found
    assert "redacted" in said["report json"].out, "the service quoted nothing"
    assert not [name for name, text in found.items() if CANARY in text]
    for name, text in found.items():
        if "report" in name or "std" in name or name.endswith(".jsonl"):
            harmful = {c for c in text.decode() if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")}
            assert harmful <= {"\n"}, f"{name}: {harmful}"
            assert not [line for line in text.decode().splitlines() if line.startswith(FORGED)], name
    check_lines(site, said)


def check_lines(site: Site, said: dict[str, Done]) -> None:
    """A row a device, an object an event, one line an error: none was slipped in."""
    assert len(said["report text"].out.splitlines()) == 18
    assert len(json.loads(said["report json"].out)) == 17
    assert len([json.loads(line) for line in said["report jsonl"].out.splitlines()]) == 17
    assert len(list(csv.reader(io.StringIO(said["report csv"].out)))) == 18
    events = [json.loads(line) for line in (site.folder / "log.jsonl").read_text().splitlines()]
    assert {event["run"] for event in events} == {"fleet", "denied"}
    for verb in ("denied", "damaged", "other region"):
        assert [FORGED in line for line in said[verb].errors] in ([True], [False]), said[verb].errors
    for verb, done in said.items():
        if verb.endswith("json") and verb != "report json":
            assert len(done.out.splitlines()) == 1
            json.loads(done.out)
    everywhere = [line for done in said.values() for line in done.err.splitlines()]
    assert not [line for line in everywhere if line.startswith(f"error: {FORGED}")]


def test_a_terminal_gets_none_of_it_either(site: Site, hostile: str) -> None:
    """The bar, the summary and the error, on a terminal."""
    manifest = site.manifest([f"{one}-denied" for one in site.ids(12)], endpoint_url=hostile)
    main, side = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "dispatcher", "run", manifest, "-v"],
        env=site.env | {"TERM": "xterm", "COLUMNS": "80"}, stdin=side, stdout=side, stderr=side,
    )  # fmt: skip
    os.close(side)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal is gone once nobody has it open
        while more := os.read(main, 4_096):
            shown += more
    assert running.wait(DEADLINE_S) == 3
    os.close(main)
    assert CANARY not in shown
    for harmful in (b"\x1b[2J", b"\x1b]0;", b"\xc2\x9b", "\u202e".encode()):
        assert harmful not in shown
    lines = shown.decode().splitlines()
    assert not [line for line in lines if line.startswith((FORGED, f"error: {FORGED}"))]
