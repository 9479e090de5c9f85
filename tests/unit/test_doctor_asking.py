"""Doctor's questions, against a stand-in for AWS on this host."""

from __future__ import annotations

import asyncio
import email.utils
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest

from dispatcher.doctor.base import Checkup, Verdict
from dispatcher.doctor.examine import examine
from dispatcher.errors import UsageError
from dispatcher.manifest import Manifest
from dispatcher.settings import Settings
from dispatcher.transport import inspecting
from dispatcher.transport.inspecting import Inspector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ACCOUNT = "111122223333"
SERVICES = ("snow-device-management", "sts", "iam")
READS = ["GET /managed-devices", "GET /tasks", "POST /task/st-00000000000000000"]
SECRET = "canary/secret+that/nobody+may/see"


class Aws:
    """Snow Device Management, STS and IAM, as far as doctor asks them."""

    def __init__(self) -> None:
        self.skew_s = 0.0
        self.arn = f"arn:aws:iam::{ACCOUNT}:user/ops"
        self.decisions = {"CreateTask": "allowed", "TagResource": "allowed"}
        self.asked: list[str] = []
        """`METHOD path`, or the action of STS and IAM, in the order of arrival."""
        self.simulated: list[dict[str, list[str]]] = []
        self.hold: threading.Event | None = None
        """Answer nothing before this is set."""
        self.refusal: str | None = None
        """The code with which everything is refused."""
        self.no_simulation = False
        aws = self

        class Handler(BaseHTTPRequestHandler):
            def date_time_string(self, timestamp: float | None = None) -> str:
                return email.utils.formatdate(time.time() + aws.skew_s, usegmt=True)

            def do_GET(self) -> None:
                aws.asked.append(f"GET {self.path.partition('?')[0]}")
                self._answer({"tasks": [], "devices": [{"id": "x"}]}, aws.refusal)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                if self.path != "/":  # DescribeTask is a POST
                    aws.asked.append(f"POST {self.path}")
                    self._answer({}, aws.refusal)
                    return
                form = parse_qs(body)
                aws.asked.append(form["Action"][0])
                status, answer = aws.query(form["Action"][0], form)
                self._send(status, answer.encode(), "text/xml")

            def _answer(self, found: Any, refusal: str | None) -> None:
                if aws.hold is not None:
                    aws.hold.wait(30)
                if refusal is None:
                    self._send(200, json.dumps(found).encode(), "application/json")
                else:
                    body = json.dumps({"message": f"refused: Authorization={SECRET}"}).encode()
                    self._send(403, body, "application/json", refusal)

            def _send(self, status: int, body: bytes, kind: str, error: str | None = None) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                if error is not None:
                    self.send_header("x-amzn-ErrorType", error)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.urls = dict.fromkeys(SERVICES, self.url)

    def query(self, action: str, form: dict[str, list[str]]) -> tuple[int, str]:
        """Answer STS and IAM."""
        if self.refusal is not None or (self.no_simulation and action == "SimulatePrincipalPolicy"):
            code = self.refusal or "AccessDenied"
            return 403, f"<ErrorResponse><Error><Code>{code}</Code></Error></ErrorResponse>"
        if action == "GetCallerIdentity":
            found = f"<Account>{ACCOUNT}</Account><Arn>{self.arn}</Arn><UserId>U</UserId>"
        elif action == "GetRole":
            found = f"<Role><Arn>arn:aws:iam::{ACCOUNT}:role/path/{form['RoleName'][0]}</Arn></Role>"
        else:
            self.simulated.append(form)
            name = form["ActionNames.member.1"][0]
            decision = self.decisions[name.partition(":")[2]]
            found = f"<EvalActionName>{name}</EvalActionName><EvalDecision>{decision}</EvalDecision>"
            found = f"<EvaluationResults><member>{found}</member></EvaluationResults>"
        return 200, f"<{action}Response><{action}Result>{found}</{action}Result></{action}Response>"

    def stop(self) -> None:
        if self.hold is not None:
            self.hold.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


@pytest.fixture
def aws() -> Iterator[Aws]:
    running = Aws()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in the environment, and nothing else of AWS's."""
    for name in (
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def checkup(
    tmp_path: Path, urls: dict[str, str], settings: dict[str, Any] | None = None, **keys: Any
) -> Checkup:
    """Examine a manifest that goes to AWS, or what stands in for it."""
    assert set(urls) == set(SERVICES), "a test never asks AWS"
    content: dict[str, Any] = {"name": "fleet", "command": "reboot", "inventory": {"targets": ["smd-a"]}}
    content |= {"region": "us-west-2"} | keys
    (tmp_path / "fleet.json").write_text(
        json.dumps({key: value for key, value in content.items() if value is not None})
    )
    manifest = Manifest.load(tmp_path / "fleet.json")
    resolved = Settings(state_dir=tmp_path / "state", **(settings or {})).resolve(manifest)
    return examine(manifest, resolved, urls=urls)


def verdicts(found: Checkup) -> dict[str, str]:
    return {check.name: str(check.verdict) for check in found.checks}


def message(found: Checkup, name: str) -> str:
    return next(check.message for check in found.checks if check.name == name)


def test_all_is_well(tmp_path: Path, aws: Aws) -> None:
    """Every check is made, nothing but reads is sent, and nothing is written."""
    found = checkup(tmp_path, aws.urls)
    assert set(verdicts(found).values()) == {"ok"}
    assert found.exit == 0
    assert message(found, "identity") == f"account {ACCOUNT}, {aws.arn}"
    assert message(found, "credentials") == "found by env"
    assert sorted(aws.asked) == [
        *("GET /managed-devices", "GET /tasks", "GetCallerIdentity"),
        *("POST /task/st-00000000000000000", "SimulatePrincipalPolicy", "SimulatePrincipalPolicy"),
    ]
    assert f":us-west-2:{ACCOUNT}:task/*" in json.dumps(found.policy)
    assert [path.name for path in tmp_path.iterdir()] == ["fleet.json"]


def test_an_own_endpoint_is_never_told_who_we_are(tmp_path: Path, aws: Aws) -> None:
    """STS and IAM are AWS's: they are not asked where the run goes elsewhere."""
    found = checkup(tmp_path, aws.urls, {"endpoint_url": aws.url})
    assert sorted(aws.asked) == READS
    assert [verdicts(found)[name] for name in ("identity", "create_task", "tag_resource")] == ["skip"] * 3
    assert message(found, "identity") == "not asked: the endpoint is not AWS's"
    assert found.exit == 0


def test_another_account_fails(tmp_path: Path, aws: Aws) -> None:
    found = checkup(tmp_path, aws.urls, account="999999999999")
    assert verdicts(found)["identity"] == "fail"
    assert "but the manifest says 999999999999" in message(found, "identity")
    assert ":999999999999:task/*" in json.dumps(found.policy)
    assert found.exit == 1


def test_a_role_is_simulated_by_its_own_arn(tmp_path: Path, aws: Aws) -> None:
    """A session's ARN lacks the role's path; TagResource is asked for a task, with the keys of its tags."""
    aws.arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/Ops/alice"
    checkup(tmp_path, aws.urls, tags={"owner": "ops"})
    assert {form["PolicySourceArn"][0] for form in aws.simulated} == {f"arn:aws:iam::{ACCOUNT}:role/path/Ops"}
    (tag,) = (form for form in aws.simulated if form["ActionNames.member.1"][0].endswith(":TagResource"))
    assert tag["ResourceArns.member.1"][0].startswith(
        f"arn:aws:snow-device-management:us-west-2:{ACCOUNT}:task/"
    )
    keys = [
        value[0] for name, value in tag.items() if name.startswith("ContextEntries.member.2.ContextKeyValues")
    ]
    assert keys == ["dispatcher-run", "dispatcher-token", "owner"]


def test_a_denied_simulation_fails(tmp_path: Path, aws: Aws) -> None:
    aws.decisions = {"CreateTask": "allowed", "TagResource": "implicitDeny"}
    found = checkup(tmp_path, aws.urls)
    assert (verdicts(found)["create_task"], verdicts(found)["tag_resource"]) == ("ok", "fail")
    assert found.exit == 1


def test_without_tags_tagging_is_not_asked_for(tmp_path: Path, aws: Aws) -> None:
    aws.decisions = {"CreateTask": "allowed", "TagResource": "implicitDeny"}
    found = checkup(tmp_path, aws.urls, system_tags=False)
    assert verdicts(found)["tag_resource"] == "skip"
    assert found.exit == 0
    assert len(aws.simulated) == 1


def test_a_simulation_that_is_not_permitted_is_skipped(tmp_path: Path, aws: Aws) -> None:
    aws.no_simulation = True
    found = checkup(tmp_path, aws.urls)
    assert verdicts(found)["create_task"] == "skip"
    assert "iam:SimulatePrincipalPolicy answered AccessDenied" in message(found, "create_task")
    assert found.exit == 0


@pytest.mark.parametrize(("skew_s", "verdict"), [(90.0, "warn"), (-600.0, "fail")])
def test_a_skewed_clock(tmp_path: Path, aws: Aws, skew_s: float, verdict: str) -> None:
    aws.skew_s = skew_s
    found = checkup(tmp_path, aws.urls)
    assert verdicts(found)["clock"] == verdict
    assert ("behind" if skew_s > 0 else "ahead of") in message(found, "clock")


def test_refused_credentials(tmp_path: Path, aws: Aws) -> None:
    """One check says it; what could not be known is skipped, and a secret in an answer is not shown."""
    aws.refusal = "UnrecognizedClientException"
    found = checkup(tmp_path, aws.urls)
    assert message(found, "credentials") == "found by env, refused: UnrecognizedClientException"
    wrong = {name for name, verdict in verdicts(found).items() if verdict == "fail"}
    assert wrong == {"credentials", "identity"}
    assert SECRET not in json.dumps(found.as_json())


def test_no_credentials(tmp_path: Path, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs no signature is asked all the same: is anybody there, and what time is it."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "config").write_text("[default]\nregion = us-west-2\n")
    (tmp_path / "credentials").write_text("")
    aws.refusal = "MissingAuthenticationTokenException"
    aws.skew_s = 600.0
    urls = aws.urls
    found = checkup(tmp_path, urls)
    assert verdicts(found)["credentials"] == "fail"
    assert next(check.hint for check in found.checks if check.name == "credentials")
    assert verdicts(found)["clock"] == "fail"
    assert verdicts(found)["reachability"] == "ok"
    assert message(found, "identity") == "not asked: there are no credentials"
    assert sorted(aws.asked) == READS


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        found = checkup(tmp_path, dict.fromkeys(SERVICES, url))
    assert verdicts(found)["reachability"] == "fail"
    assert message(found, "reachability") == "AWS does not answer: Connection refused"
    assert verdicts(found)["clock"] == "skip"


def test_a_service_that_hangs_is_given_up(tmp_path: Path, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.hold = threading.Event()
    monkeypatch.setattr(inspecting, "DEADLINE_S", 0.2)
    found = checkup(tmp_path, aws.urls)
    assert message(found, "reachability") == "AWS does not answer: no answer within 0.2 s"


def test_a_name_that_nobody_looks_up_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs holds neither the question nor the end of the process."""
    never = threading.Event()

    def hang(*_: Any, **__: Any) -> list[Any]:
        never.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "too late")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(inspecting, "DEADLINE_S", 1.0)  # time enough to come to the look-up
    try:
        found = checkup(tmp_path, dict.fromkeys(SERVICES, "http://snow.invalid:1"))
        assert message(found, "reachability") == "AWS does not answer: no answer within 1 s"
        threads = [one for one in threading.enumerate() if one.name == "resolver"]
        assert threads
        assert all(one.daemon for one in threads)
    finally:
        never.set()


def test_a_name_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = checkup(tmp_path, dict.fromkeys(SERVICES, "http://snow.invalid:1"))
    assert message(found, "reachability") == "AWS does not answer: Name or service not known"


def test_without_a_region_nobody_is_asked(tmp_path: Path, aws: Aws) -> None:
    found = checkup(tmp_path, aws.urls, region=None)
    assert verdicts(found)["region"] == "fail"
    assert message(found, "credentials") == "not asked: no region is set"
    assert aws.asked == []
    assert found.exit == 1


def test_a_profile_that_is_not_there_is_a_usage_error(tmp_path: Path, aws: Aws) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        checkup(tmp_path, aws.urls, {"profile": "nowhere"})


def test_an_endpoint_of_the_profile_is_ignored_and_told(tmp_path: Path, aws: Aws) -> None:
    (tmp_path / "config").write_text("[default]\nendpoint_url = http://127.0.0.1:1\n")
    found = checkup(tmp_path, aws.urls)
    assert verdicts(found)["endpoint"] == "warn"
    assert message(found, "endpoint").endswith("ignored: endpoint_url of the profile")


def test_only_questions_are_asked() -> None:
    """Whatever changes something cannot be sent from here at all."""

    async def send() -> None:
        async with Inspector(region="us-west-2", endpoint_url="http://127.0.0.1:1") as inspector:
            await inspector.ask("create_task", {})

    with pytest.raises(ValueError, match="create_task is not a question"):
        asyncio.run(send())


def test_the_verdicts_have_their_documented_names() -> None:
    assert [str(verdict) for verdict in Verdict] == ["ok", "warn", "fail", "skip"]
