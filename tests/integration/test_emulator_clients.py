"""All 13 operations, by clients that no one here wrote, with signatures verified."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config as ClientConfig
from botocore.exceptions import ClientError

from dispatcher.emulator.api import load_api
from dispatcher.emulator.app import Emulator, run_emulator
from dispatcher.emulator.config import Config
from dispatcher.emulator.fleet import GeneratedFleet
from dispatcher.emulator.signatures import Signer

if TYPE_CHECKING:
    from collections.abc import Callable

_spec = importlib.util.spec_from_file_location(
    "emulator_clients", Path(__file__).with_name("emulator_clients.py")
)
assert _spec is not None
_clients: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_clients)  # type: ignore[union-attr]

KEY, SECRET, SESSION = "AKIDEXAMPLE", "a/very+secret=key", "a session+token/="
PACKAGE = "@aws-sdk/client-snow-device-management"
AWS = shutil.which("aws", path=str(Path(sys.executable).parent))


def beside(use: Callable[[Emulator], None], *, offset_s: float = 0.0, **signer: Any) -> Emulator:
    """Run blocking code beside an emulator that verifies signatures; return it with its ledger."""
    signed = Signer(**{"access_key": KEY, "secret_key": SECRET, "session_token": SESSION} | signer)

    async def main() -> Emulator:
        config = Config(fleet=GeneratedFleet(_clients.DEVICES), settle_s=600)
        async with run_emulator(config, signer=signed, clock_offset_s=offset_s) as emulator:
            await asyncio.to_thread(use, emulator)
            return emulator

    return asyncio.run(main())


def assert_all_succeeded(emulator: Emulator) -> None:
    """The ledger saw every operation of the model, and nothing but 200."""
    summary: Any = emulator.ledger.summary()
    assert summary["by_operation"].keys() == load_api().operations.keys()
    assert summary["by_status"].keys() == {"200"}
    assert (summary["tasks"], summary["replays"]) == (1, 1)


def client_of(emulator: Emulator) -> Any:
    return boto3.client(
        "snow-device-management",
        region_name="us-west-2",
        endpoint_url=emulator.url,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        aws_session_token=SESSION,
        config=ClientConfig(retries={"total_max_attempts": 1}),
    )


def snake(name: str, joint: str = "_") -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", joint, name).lower()


def test_boto3_runs_every_operation() -> None:
    """boto3 signs, sends and parses all 13."""

    def use(emulator: Emulator) -> None:
        client = client_of(emulator)
        names = {name: method for method, name in client.meta.method_to_api_mapping.items()}
        _clients.walk(lambda operation, params: getattr(client, names[operation])(**params))

    assert_all_succeeded(beside(use))


@pytest.mark.skipif(AWS is None, reason="the aws command is not installed beside this Python")
def test_the_aws_cli_runs_every_operation(tmp_path: Path) -> None:
    """The AWS CLI turns flags into all 13, and the answers into JSON."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": SESSION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_PAGER": "",
    }

    def use(emulator: Emulator) -> None:
        fixed = ["--endpoint-url", emulator.url, "--region", "us-west-2", "--output", "json", "--no-paginate"]

        def call(operation: str, params: dict[str, Any]) -> dict[str, Any]:
            verb = snake(operation, "-")
            flags = [
                word
                for name, value in params.items()
                for word in (
                    f"--{snake(name, '-')}",
                    *(value if isinstance(value, list) else [_flag(value)]),
                )
            ]
            done = subprocess.run(
                [str(AWS), "snow-device-management", verb, *flags, *fixed],
                env=environment,
                capture_output=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            found: dict[str, Any] = json.loads(done.stdout or "{}")
            return found

        _clients.walk(call)

    assert_all_succeeded(beside(use))


def _flag(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


PROGRAM = """
const sdk = require(process.argv[1]);
const client = new sdk.SnowDeviceManagementClient({
  endpoint: process.argv[2], region: "us-west-2", maxAttempts: 1,
  credentials: { accessKeyId: process.env.KEY, secretAccessKey: process.env.SECRET,
                 sessionToken: process.env.SESSION },
});
const lines = require("node:readline").createInterface({ input: process.stdin });
lines.on("line", async (line) => {
  const [operation, params] = JSON.parse(line);
  try {
    const { $metadata, ...answer } = await client.send(new sdk[operation + "Command"](params));
    console.log(JSON.stringify(answer));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }));
  }
});
"""


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SDK as npm installs it, or as SNOW_JS_SDK names it; skips where it cannot be had."""
    if "SNOW_JS_SDK" in os.environ:
        return Path(os.environ["SNOW_JS_SDK"])
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node and npm are not installed")
    folder = tmp_path_factory.mktemp("js")
    command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", PACKAGE]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {PACKAGE} within 90 s")
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {PACKAGE}")
    return folder / "node_modules" / PACKAGE


def test_the_javascript_sdk_runs_every_operation(sdk: Path) -> None:
    """The SDK for JavaScript v3 signs, sends and parses all 13."""

    def use(emulator: Emulator) -> None:
        process = subprocess.Popen(
            ["node", "-e", PROGRAM, str(sdk), emulator.url],
            env={**os.environ, "KEY": KEY, "SECRET": SECRET, "SESSION": SESSION},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None

        def call(operation: str, params: dict[str, Any]) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([operation, params]) + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            assert "error" not in answer, answer
            return answer

        with process:
            try:
                _clients.walk(call)
            finally:
                process.kill()

    assert_all_succeeded(beside(use))


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ({"secret_key": "other"}, "InvalidSignatureException", "does not match"),
        ({"access_key": "AKIDOTHER"}, "UnrecognizedClientException", "invalid"),
        ({"session_token": None}, "UnrecognizedClientException", "invalid"),
        ({"expires_at": 0.0}, "ExpiredTokenException", "expired"),
        ({"offset_s": 400.0}, "InvalidSignatureException", "Signature expired"),
        ({"offset_s": -400.0}, "InvalidSignatureException", "Signature not yet current"),
    ],
    ids=str,
)
def test_a_request_of_someone_else_is_refused(given: dict[str, Any], code: str, words: str) -> None:
    """Each refusal is a 403 with AWS's code; nothing is made, and the ledger knows why."""

    def use(emulator: Emulator) -> None:
        with pytest.raises(ClientError, match=words) as caught:
            client_of(emulator).create_task(command={"reboot": {}}, targets=["smd-a"])
        response = caught.value.response
        assert (response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]) == (code, 403)

    emulator = beside(use, **given)
    assert emulator.ledger.summary()["by_code"] == {code: 1}
    assert emulator.ledger.tasks == []


def test_a_clock_five_minutes_off_is_close_enough() -> None:
    """Up to the limit a skewed request is taken."""

    def use(emulator: Emulator) -> None:
        assert client_of(emulator).list_tasks()["tasks"] == []

    beside(use, offset_s=290.0)
