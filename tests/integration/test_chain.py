"""The standard credential chain through the SDK: what it finds, how often it asks, what it says."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from botocore import exceptions as sdk

from dispatcher.checkpoint.base import Plan
from dispatcher.errors import PlanMismatch, UsageError
from dispatcher.model import Answer, Kind
from dispatcher.transport.aiobotocore import AiobotocoreTransport
from dispatcher.transport.chain import Chain, NoPrompt
from dispatcher.transport.credentials import Found, NoCredentials

SECRET = "wJalrCANARYsecretKEY0123456789"
Machine = Callable[[str], Path]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A machine whose AWS configuration is the text given; returns its path."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def write(text: str) -> Path:
        path = tmp_path / "config"
        path.write_text(text)
        return path

    return write


def keys(name: str) -> str:
    return f"[default]\naws_access_key_id = {name}\naws_secret_access_key = {SECRET}\n"


def program(folder: Path, body: str) -> str:
    path = folder / "program.py"
    path.write_text(
        f"import sys\nfrom datetime import *\nopen({str(folder / 'asked')!r}, 'a').write('x')\n{body}"
    )
    return f"[default]\ncredential_process = {sys.executable} -S {path}\n"


def failure(chain: Chain) -> NoCredentials:
    """Walk a chain that finds nothing; hold what it raises against the canary."""
    with pytest.raises(NoCredentials) as caught:
        asyncio.run(chain.fetch())
    assert "CANARY" not in "".join(traceback.format_exception(caught.value, chain=True))
    assert caught.value.__context__ is None
    return caught.value


def test_a_program_is_asked_once_a_walk(machine: Machine, tmp_path: Path) -> None:
    """Though its credentials live shorter than the SDK's windows, in which it would ask on every call."""
    body = (
        "expiry = (datetime.now(timezone.utc) + timedelta(seconds=60)).isoformat()\n"
        'print(\'{"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "B", "SessionToken": "C",\''
        ' \'"AccountId": "111122223333", "Expiration": "\' + expiry + \'"}\')'
    )
    machine(program(tmp_path, body))
    chain = Chain(None)
    found = asyncio.run(chain.fetch())
    assert (found.method, found.account, found.is_fixed) == ("custom-process", "111122223333", False)
    assert found.expires_at is not None
    asyncio.run(chain.fetch())
    assert (tmp_path / "asked").read_text() == "xx"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (f"sys.exit({SECRET!r})", "the credential_process failed; run it by hand to see why"),
        (f"print({SECRET!r})", "what came cannot be read (JSONDecodeError)"),
        (f'print(\'{{"Version": "{SECRET}"}}\')', "the output of credential_process is not of Version 1"),
        (
            f'print(\'{{"Version": 1, "AccessKeyId": "{SECRET}"}}\')',
            "the output of credential_process has no SecretAccessKey",
        ),
    ],
)
def test_what_a_program_says_is_not_repeated(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture, body: str, said: str
) -> None:
    """It may have printed its secret; neither message, traceback nor log has it."""
    caplog.set_level(logging.DEBUG, "aiobotocore.credentials")
    machine(program(tmp_path, body))
    assert str(failure(Chain(None))) == said
    assert "CANARY" not in caplog.text


@pytest.mark.parametrize("is_source", [False, True], ids=["own", "of a role"])
def test_a_program_that_hangs_does_not_outlive_its_walk(
    machine: Machine, tmp_path: Path, *, is_source: bool
) -> None:
    """Given up, it is ended; each try would leave one more."""
    body = f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    text = program(tmp_path, body)
    if is_source:
        role = "[default]\nrole_arn = arn:aws:iam::111122223333:role/ops\nsource_profile = base\n"
        text = role + text.replace("default", "profile base")
    machine(text)

    async def main() -> None:
        walk = asyncio.create_task(Chain(None).fetch())
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0)
        walk.cancel()
        with pytest.raises(asyncio.CancelledError):
            await walk

    asyncio.run(asyncio.wait_for(main(), 20))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_program_that_is_not_there(machine: Machine) -> None:
    """Its name is told."""
    machine("[default]\ncredential_process = /nowhere/login\n")
    assert str(failure(Chain(None))) == "No such file or directory: /nowhere/login"


def test_nothing_configured_says_where_to_begin(machine: Machine) -> None:
    """One line and a hint; a profile that is not there is named."""
    machine("")
    assert "no AWS credentials were found; give --profile" in str(failure(Chain(None)))
    assert "fieldd" in str(failure(Chain("fieldd")))


def test_nobody_is_asked_for_an_mfa_code_in_mid_run(machine: Machine) -> None:
    """Its default would read the terminal and hold the whole loop."""
    machine(
        "[default]\nrole_arn = arn:aws:iam::111122223333:role/ops\nsource_profile = base\n"
        "mfa_serial = arn:aws:iam::111122223333:mfa/me\n"
        + keys("AKIDBASE").replace("default", "profile base")
    )
    chain = Chain(None)
    chain._walks = 1  # the first was at the start, and perhaps on a terminal
    assert "MFA code" in str(failure(chain))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (sdk.UnauthorizedSSOTokenError(), "run: aws sso login --profile field"),
        (sdk.SSOTokenLoadError(error_msg=SECRET), "run: aws sso login --profile field"),
        (sdk.TokenRetrievalError(provider="sso", error_msg=SECRET), "run: aws sso login --profile field"),
        (sdk.LoginRefreshRequired(), "run: aws login --profile field"),
        (NoPrompt(), "MFA code"),
        (sdk.RefreshWithMFAUnsupportedError(), "MFA code"),
        (sdk.EndpointConnectionError(endpoint_url="https://x", error=SECRET), "cannot be reached"),
        (
            sdk.CredentialRetrievalError(provider="container-role", error_msg=SECRET),
            "cannot be reached or read",
        ),
        (sdk.CredentialRetrievalError(provider="iam-role", error_msg=SECRET), "iam-role failed"),
        (
            RuntimeError("Credentials were refreshed, but the refreshed credentials are still expired."),
            "clock",
        ),
        (ValueError(SECRET), "cannot be read (ValueError)"),
        (
            sdk.ClientError({"Error": {"Code": "AccessDenied", "Message": "not you"}}, "AssumeRole"),
            "AssumeRole was refused (AccessDenied: not you)",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_failure_says_what_to_do(error: Exception, said: str) -> None:
    """In words of ours, or in the service's where they cannot hold a secret."""
    found = str(Chain("field")._explained(error))
    assert said in found
    assert "CANARY" not in found


def plan(url: str | None) -> Plan:
    return Plan(
        plan_id="p", run="nightly", command="reboot", region="us-west-2", endpoint_url=url, intent_digest="",
        selection_digest="", inventory_digest="", planned_at=0.0,
    )  # fmt: skip


def test_a_key_that_the_service_calls_expired_is_replaced(machine: Machine) -> None:
    """Not sent again while the file has the old one; the one that an operator puts there is used."""
    signed: list[str] = []

    async def serve(request: web.Request) -> web.Response:
        key = request.headers["Authorization"].partition("Credential=")[2].partition("/")[0]
        signed.append(key)
        if key == "AKIDOLD":
            body = {"message": "The security token included in the request is expired"}
            return web.json_response(body, status=403, headers={"x-amzn-ErrorType": "ExpiredTokenException"})
        return web.json_response({"taskId": "st-1"})

    async def main() -> list[Any]:
        app = web.Application()
        app.router.add_post("/{tail:.*}", serve)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        transport = AiobotocoreTransport(
            plan(f"http://127.0.0.1:{port}"), max_in_flight=4, attempt_timeout_s=5.0
        )
        try:
            await transport.open()
            told: list[Any] = [await transport.create_task(("smd-1",), "a" * 64)]
            told += [await transport.renew(), await transport.create_task(("smd-1",), "a" * 64)]
            machine(keys("AKIDNEW"))
            told += [await transport.renew(), await transport.create_task(("smd-1",), "a" * 64)]
        finally:
            await transport.close()
            await runner.cleanup()
        return told

    machine(keys("AKIDOLD"))
    expired, refused, unsent, renewed, accepted = asyncio.run(main())
    assert expired.kind is Kind.EXPIRED
    assert refused.kind is unsent.kind is Kind.NO_CREDENTIALS
    assert "the same ones came back" in refused.message
    assert renewed is None
    assert accepted.kind is Kind.ACCEPTED
    assert signed == ["AKIDOLD", "AKIDNEW"]


def test_another_account_is_noticed_by_asking_who_we_are(machine: Machine) -> None:
    """Where the credentials do not say: on AWS, after each refresh, before a call is signed with them."""

    class Asking(AiobotocoreTransport):
        accounts = ["111122223333", "444455556666"]  # noqa: RUF012

        async def _account_of(self, found: Found) -> str | None:
            assert found.frozen.access_key
            return self.accounts.pop(0)

    async def main() -> Answer | None:
        transport = Asking(plan(None), max_in_flight=4, attempt_timeout_s=5.0)
        try:
            await transport.open()
            assert await transport.identity() == "111122223333"
            answer = await transport.renew()
            assert isinstance(transport.refusal, PlanMismatch)
            unsent = await transport.create_task(("smd-1",), "a" * 64)
        finally:
            await transport.close()
        assert unsent.kind is Kind.NO_CREDENTIALS
        return answer

    machine(keys("AKID"))
    answer = asyncio.run(main())
    assert answer is not None
    assert "444455556666" in (answer.message or "")


def test_a_start_without_credentials_is_a_usage_error(machine: Machine) -> None:
    """Before anything is sent."""
    machine("")
    transport = AiobotocoreTransport(plan(None), max_in_flight=4, attempt_timeout_s=5.0)
    with pytest.raises(UsageError, match="no AWS credentials"):
        asyncio.run(transport.open())


def test_an_emulator_on_this_host_takes_stand_ins(machine: Machine) -> None:
    """Also where a profile says nothing but a region; a source that fails is no such case."""

    async def opened() -> Answer | None:
        transport = AiobotocoreTransport(plan("http://127.0.0.1:1"), max_in_flight=4, attempt_timeout_s=5.0)
        try:
            await transport.open()
            assert (await transport.create_task(("smd-1",), "a" * 64)).kind is Kind.UNREACHABLE
            return await transport.renew()
        finally:
            await transport.close()

    for text in ("", "[default]\nregion = us-west-2\n"):
        machine(text)
        assert asyncio.run(opened()) is None
    machine("[default]\ncredential_process = /nowhere/login\n")
    with pytest.raises(UsageError, match="/nowhere/login"):
        asyncio.run(opened())
