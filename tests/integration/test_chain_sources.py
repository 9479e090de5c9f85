"""Every source of the standard chain, served on loopback: found, with its expiry, once a walk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from botocore.tokens import SSOTokenProvider

from dispatcher.transport.chain import Chain
from dispatcher.transport.credentials import Found

LIFE_S = 600
ROLE = "arn:aws:iam::111122223333:role/ops"
KEYS = "aws_access_key_id = AKIDBASE\naws_secret_access_key = base\n"
ASSUMED = """<{0}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{0}Result><AssumedRoleUser>
<Arn>arn:aws:sts::111122223333:assumed-role/ops/me</Arn><AssumedRoleId>A:me</AssumedRoleId></AssumedRoleUser>
<Credentials><AccessKeyId>ASIATEMP</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>
<Expiration>{1}</Expiration></Credentials></{0}Result></{0}Response>"""


class Cloud:
    """STS, SSO, and the metadata of an instance and of a container."""

    def __init__(self) -> None:
        self.gave: Counter[str] = Counter()

    def app(self) -> web.Application:
        app = web.Application()
        base = "/latest/meta-data/iam/security-credentials/"
        app.router.add_put("/latest/api/token", self.text("token"))
        app.router.add_get(base, self.text("ops"))
        app.router.add_get(base + "ops", self.metadata)
        app.router.add_get("/container", self.metadata)
        app.router.add_get("/federation/credentials", self.sso)
        app.router.add_post("/", self.sts)
        return app

    @staticmethod
    def text(words: str) -> object:
        async def say(_request: web.Request) -> web.Response:
            return web.Response(text=words, headers={"x-aws-ec2-metadata-token-ttl-seconds": "600"})

        return say

    async def metadata(self, request: web.Request) -> web.Response:
        self.gave[request.path.split("/")[1]] += 1
        keys = {"AccessKeyId": "ASIATEMP", "SecretAccessKey": "s", "Token": "t", "Expiration": expiry()}
        return web.json_response({"Code": "Success", "Type": "AWS-HMAC", **keys})

    async def sso(self, _request: web.Request) -> web.Response:
        self.gave["sso"] += 1
        keys = {"accessKeyId": "ASIATEMP", "secretAccessKey": "s", "sessionToken": "t"}
        expiration = int((time.time() + LIFE_S) * 1_000)
        return web.json_response({"roleCredentials": {**keys, "expiration": expiration}})

    async def sts(self, request: web.Request) -> web.Response:
        action = str((await request.post())["Action"])
        self.gave[action] += 1
        return web.Response(text=ASSUMED.format(action, expiry()), content_type="text/xml")


def expiry() -> str:
    return datetime.fromtimestamp(time.time() + LIFE_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def logged_in(home: Path) -> None:
    """Leave the token of an SSO login."""
    folder = home / ".aws" / "sso" / "cache"
    folder.mkdir(parents=True)
    name = hashlib.sha1(b"corp").hexdigest()
    token = {"startUrl": "https://x", "region": "us-west-2", "accessToken": "a", "expiresAt": expiry()}
    (folder / f"{name}.json").write_text(json.dumps(token))


CONFIG = {
    "AssumeRole": f"[default]\nrole_arn = {ROLE}\nsource_profile = base\n[profile base]\n{KEYS}",
    "AssumeRoleWithWebIdentity": f"[default]\nrole_arn = {ROLE}\nweb_identity_token_file = HOME/token\n",
    "sso": (
        "[default]\nsso_session = corp\nsso_account_id = 111122223333\nsso_role_name = ops\n"
        "[sso-session corp]\nsso_start_url = https://x\nsso_region = us-west-2\n"
    ),
    "container": "",
    "latest": "",
}


@pytest.mark.parametrize("source", CONFIG)
def test_a_source_is_asked_once_a_walk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str) -> None:
    """Ten minutes lie inside the SDK's windows, in which it would ask again on every call."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(SSOTokenProvider, "_SSO_TOKEN_CACHE_DIR", str(tmp_path / ".aws" / "sso" / "cache"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    (tmp_path / "config").write_text(CONFIG[source].replace("HOME", str(tmp_path)))
    (tmp_path / "token").write_text("web identity")
    logged_in(tmp_path)
    cloud = Cloud()

    async def walk_twice() -> list[Found]:
        runner = web.AppRunner(cloud.app())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        for name in ("AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL_SSO", "AWS_EC2_METADATA_SERVICE_ENDPOINT"):
            monkeypatch.setenv(name, url)
        if source == "container":
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/container")
        chain = Chain(None, region="us-west-2")
        try:
            return [await chain.fetch(), await chain.fetch()]
        finally:
            await runner.cleanup()

    found = asyncio.run(walk_twice())
    for one in found:
        assert one.frozen.access_key == "ASIATEMP"
        assert one.expires_at is not None
        longest_s = 1_500 if one.is_estimate else LIFE_S
        assert one.is_estimate is (source == "latest")
        assert 0 < one.expires_at - time.time() <= longest_s + 1
        assert one.account in (None, "111122223333")
    assert cloud.gave == {source: 2}
