"""Credentials that expire, come back late or never, and never leak: the real command, standard sources."""

from __future__ import annotations

import hashlib
import http.server
import json
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Done, Emulators, Site

SECRET, SESSION = "wJalrCANARYsecretKEY0123456789", "FwoGCANARYsessionTOKEN9876543210"
PROGRAM = """\
import datetime, json, os, pathlib, sys
folder = pathlib.Path(os.path.dirname(os.path.abspath(__file__)))
with open(folder / "asked", "a") as log:
    log.write("x")
if (folder / "broken").exists():
    sys.exit("cannot log in with " + {secret!r} + " and token " + {session!r})
expiry = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds={life_s})
account = (folder / "account").read_text() if (folder / "account").exists() else None
found = dict(Version=1, AccessKeyId="ASIACANARYKEY0000000", SecretAccessKey={secret!r},
    SessionToken={session!r}, Expiration=expiry.isoformat())
print(json.dumps(found | (dict(AccountId=account) if account else {{}})))
"""


def with_program(site: Site, *, life_s: float) -> None:
    """Let credentials come from a program whose runs are counted, and that fails while `broken` exists."""
    program = site.folder / "program.py"
    program.write_text(PROGRAM.format(secret=SECRET, session=SESSION, life_s=life_s))
    config = site.folder / "aws-config"
    config.write_text(f"[default]\ncredential_process = {sys.executable} -S {program}\n")
    without_keys(site)
    site.env["AWS_CONFIG_FILE"] = str(config)


def without_keys(site: Site) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        site.env.pop(name)


def asked(site: Site) -> int:
    path = site.folder / "asked"
    return len(path.read_text()) if path.exists() else 0


def check_no_secret(site: Site, *ended: Done) -> None:
    """No canary in any file but the ones that brought it, nor in any output."""
    ours = {site.folder / "program.py"}
    texts = [path.read_bytes() for path in site.folder.rglob("*") if path.is_file() and path not in ours]
    texts += [text.encode() for done in ended for text in (done.out, done.err)]
    assert len(texts) > 4
    for canary in (b"CANARY", b"cannot log in"):
        assert not [text for text in texts if canary in text]


def test_credentials_are_refreshed_in_mid_run(site: Site, emulate: Emulators) -> None:
    """A program's credentials of four seconds: asked again ahead of each expiry and not on every call."""
    with_program(site, life_s=4)  # a quarter of it is how long the program may take to start
    service = emulate(400, latency_s=0.01)
    manifest = site.manifest(site.ids(400), limits={"rate_per_s": 8, "burst": 1})
    done = site.run(manifest, service, "-vv", "--log-file", site.folder / "log.jsonl")
    assert (done.code, done.summary["accepted"]) == (0, 400), done.err
    assert (done.summary["calls"], done.summary["retried"]) == (40, 0)
    assert 2 <= asked(site) <= 2 + done.summary["elapsed_s"] / 3.0
    assert "paused" not in done.err
    site.judge(service, done.summary)
    check_no_secret(site, done)


def test_a_refresh_that_fails_for_a_while_pauses_the_run(site: Site, emulate: Emulators) -> None:
    """Nothing is sent meanwhile, no attempt is burnt, `status` says why, and the run goes on by itself."""
    with_program(site, life_s=2)
    service = emulate(400, latency_s=0.01)
    manifest = site.manifest(site.ids(400), limits={"rate_per_s": 8, "burst": 1})
    process = site.start_run(manifest, service, "-vv", "--log-file", site.folder / "log.jsonl")
    site.wait_until(lambda: len(service.calls) >= 3)
    (site.folder / "broken").touch()

    def shown() -> dict[str, Any]:
        return site.do("status", "fleet", "--json").summary["process"] or {}

    site.wait_until(lambda: shown().get("lane_state") == "paused" and "refreshed" in shown()["lane_reason"])
    sent = len(service.calls)
    assert "expired" in shown()["lane_reason"]
    assert "run it by hand" in site.do("status", "fleet").out
    before = asked(site)
    site.wait_until(lambda: asked(site) > before)
    assert len(service.calls) == sent
    (site.folder / "broken").unlink()
    done = site.checked(site.end(process))
    assert (done.code, done.summary["accepted"]) == (0, 400), done.err
    assert (done.summary["calls"], done.summary["retried"]) == (40, 0)
    assert "lane changed" in done.err
    rows = site.judge(service, done.summary)
    assert {row["attempts"] for row in rows} == {1}
    check_no_secret(site, done)


def test_a_refresh_that_never_succeeds_ends_the_run(site: Site, emulate: Emulators) -> None:
    """Past the patience: exit 3, all of it resumable; resumed with credentials, the rest is sent."""
    with_program(site, life_s=2)
    service = emulate(400, latency_s=0.01)
    limits = {"rate_per_s": 8, "burst": 1, "patience_s": 3}
    process = site.start_run(site.manifest(site.ids(400), limits=limits), service, "-vv")
    site.wait_until(lambda: len(service.calls) >= 3)
    (site.folder / "broken").touch()
    done = site.checked(site.end(process))
    assert (done.code, done.summary["in_doubt"], done.summary["rejected"]) == (3, 0, 0), done.err
    assert 0 < done.summary["pending"] < 400
    assert "cannot be refreshed: the credential_process failed" in done.errors[0]
    refused = site.checked(site.do("resume", "fleet", "--json", "-vv"))
    assert (refused.code, len(refused.errors)) == (2, 1), refused.err
    (site.folder / "broken").unlink()
    resumed = site.checked(site.do("resume", "fleet", "--rate", 400, "--json"))
    assert (resumed.code, resumed.summary["accepted"]) == (0, 400)
    site.judge(service, resumed.summary)
    check_no_secret(site, done, refused, resumed)


def test_another_account_after_a_refresh_is_refused(site: Site, emulate: Emulators) -> None:
    """Exit 4 before a single call is signed with the other account's credentials."""
    with_program(site, life_s=2)
    (site.folder / "account").write_text("111122223333")
    service = emulate(400, latency_s=0.01)
    process = site.start_run(site.manifest(site.ids(400), limits={"rate_per_s": 8, "burst": 1}), service)
    site.wait_until(lambda: len(service.calls) >= 3)
    (site.folder / "account").write_text("444455556666")
    done = site.checked(site.end(process))
    assert (done.code, done.summary["in_doubt"]) == (4, 0), done.err
    assert "444455556666" in done.errors[0]
    assert "111122223333" in done.errors[0]
    site.judge(service, done.summary)


@dataclass(slots=True)
class Container:
    """A container's credential endpoint on loopback."""

    url: str
    life_s: float = 2.0
    answers: list[int] = field(default_factory=list)
    status: int = 200


@pytest.fixture
def container() -> Iterator[Container]:
    """Serve credentials as ECS and EKS do; the body of a failure holds the secret."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            expiry = datetime.now(UTC) + timedelta(seconds=made.life_s)
            body = json.dumps(
                {
                    "AccessKeyId": "ASIACANARYKEY0000000",
                    "SecretAccessKey": SECRET,
                    "Token": SESSION,
                    "Expiration": expiry.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                }
            ).encode()
            made.answers.append(made.status)
            self.send_response(made.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Container(f"http://127.0.0.1:{server.server_port}/credentials")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield made
        finally:
            server.shutdown()


def test_a_container_brings_credentials(site: Site, emulate: Emulators, container: Container) -> None:
    """Its endpoint is asked ahead of expiry; while it fails after that the run is paused."""
    without_keys(site)
    site.env["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = container.url
    service = emulate(300, latency_s=0.01)
    limits = {"rate_per_s": 8, "burst": 1}
    process = site.start_run(site.manifest(site.ids(300), limits=limits), service, "-vv")
    site.wait_until(lambda: len(service.calls) >= 3)
    container.status = 500

    def paused() -> bool:
        found = site.do("status", "fleet", "--json").summary["process"] or {}
        return found.get("lane_state") == "paused" and "answers 500" in found["lane_reason"]

    site.wait_until(paused)
    sent = len(service.calls)
    failed = container.answers.count(500)
    site.wait_until(lambda: container.answers.count(500) > failed)
    assert len(service.calls) == sent
    container.status = 200
    done = site.checked(site.end(process))
    assert (done.code, done.summary["accepted"], done.summary["calls"]) == (0, 300, 30), done.err
    site.judge(service, done.summary)
    check_no_secret(site, done)


def test_no_credentials_at_the_start_end_the_run(site: Site) -> None:
    """On AWS: exit 2, one line with a hint, nothing sent, no lease kept."""
    without_keys(site)
    done = site.checked(site.do("run", site.manifest(["smd-a"]), "--json", "--yes"))
    assert (done.code, len(done.errors)) == (2, 1), done.err
    assert "no AWS credentials were found" in done.errors[0]
    again = site.checked(site.do("run", site.manifest(["smd-a"]), "--json", "--yes"))
    assert again.code == 2


def test_a_broken_program_at_the_start_ends_the_run(site: Site) -> None:
    """One line, without what the program said."""
    with_program(site, life_s=60)
    (site.folder / "broken").touch()
    done = site.checked(site.do("run", site.manifest(["smd-a"]), "--json", "--yes", "-vv"))
    assert (done.code, len(done.errors)) == (2, 1), done.err
    assert "credential_process failed; run it by hand" in done.errors[0]
    check_no_secret(site, done)


@pytest.mark.parametrize("is_session", [True, False], ids=["sso-session", "legacy"])
def test_an_expired_sso_login_names_the_command(site: Site, *, is_session: bool) -> None:
    """Offline, with the cached token expired or gone: one line, `aws sso login` with the profile."""
    without_keys(site)
    start = "sso_start_url = https://x.awsapps.com/start\nsso_region = us-west-2\n"
    role = "sso_account_id = 111122223333\nsso_role_name = ops\n"
    config = site.folder / "aws-config"
    if is_session:
        config.write_text(f"[sso-session corp]\n{start}[profile field]\nsso_session = corp\n{role}")
    else:
        config.write_text(f"[profile field]\n{start}{role}")
    site.env |= {"AWS_CONFIG_FILE": str(config), "HOME": str(site.folder)}
    cached(site.folder, "corp" if is_session else "https://x.awsapps.com/start")
    for _ in ("expired", "gone"):
        command = ("run", site.manifest(["smd-a"]), "--json", "--yes", "--profile", "field")
        done = site.checked(site.do(*command))
        assert (done.code, len(done.errors)) == (2, 1), done.err
        assert "aws sso login --profile field" in done.errors[0]
        for path in (site.folder / ".aws").rglob("*.json"):
            path.unlink()


def cached(home: Path, name: str) -> None:
    """Write the token that an SSO login left an hour ago."""
    folder = home / ".aws" / "sso" / "cache"
    folder.mkdir(parents=True)
    expired = datetime.fromtimestamp(time.time() - 3_600, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    token = {
        "startUrl": "https://x.awsapps.com/start", "region": "us-west-2", "accessToken": SECRET,
        "expiresAt": expired,
    }  # fmt: skip
    (folder / f"{hashlib.sha1(name.encode()).hexdigest()}.json").write_text(json.dumps(token))
