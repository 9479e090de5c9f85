"""The wire transport: CreateTask over connections of our own, everything else as the reference transport.

It *is* the reference transport (credentials, identity, every look-up) but for the one call a run makes by the
hundred thousand. That one is put together from bytes made beforehand, signed by `sigv4`, sent by `wire_pool`
and judged by the same rules: an answer that is no success is read by the SDK's own parser.

How a request looks (endpoint, path, region and service that sign, user agent) is learnt from the SDK once, by
letting it make one that is never sent. What cannot be done here (a proxy, another signature, an endpoint with
a path that needs quoting) is said in the log, and the reference transport sends instead.

A POST is never sent twice: whatever happens to it after its first byte is `NO_REPLY`, and the engine decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
import time
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import msgspec
from botocore import exceptions as sdk
from botocore.awsrequest import HeadersDict
from botocore.httpsession import get_cert_path
from botocore.parsers import ResponseParserError, create_parser
from botocore.utils import get_environ_proxies

from dispatcher.errors import UsageError
from dispatcher.model import Answer, Kind
from dispatcher.plan import SYSTEM_TAG_RUN, SYSTEM_TAG_TOKEN
from dispatcher.transport.aiobotocore import SERVICE, AiobotocoreTransport, failed, success, unsigned
from dispatcher.transport.credentials import NoCredentials
from dispatcher.transport.sigv4 import Signer
from dispatcher.transport.wire_connection import Broken, Reply
from dispatcher.transport.wire_pool import Origin, Pool, Unreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger("dispatcher.wire")

_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^,]*/\d{8}/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request, ")
_PLAIN_PATH = re.compile(r"(?:/[A-Za-z0-9_.~-]*[A-Za-z0-9_~-])+")
"""A path that is its own canonical form: no dots to resolve, nothing to quote, no slash at the end."""
_encode = msgspec.json.Encoder().encode
_parse = create_parser("rest-json").parse


class _Made(msgspec.Struct):
    """What a success says, whatever it says."""

    taskId: Any = None  # noqa: N815  (the API's names)
    taskArn: Any = None  # noqa: N815


_decode = msgspec.json.Decoder(_Made).decode


class _Shown(Exception):
    """Carries the request that the SDK would have sent."""

    def __init__(self, request: Any) -> None:
        super().__init__("not sent")
        self.request = request


class _CannotDo(Exception):
    """What the reference transport does and this one does not."""


class WireTransport(AiobotocoreTransport):
    """CreateTask of one lane by our own hand."""

    _pool: Pool | None = None
    _signer: Signer
    _head: bytes
    _before: bytes
    _between: bytes | None

    async def open(self) -> None:
        """Open the reference transport, and learn from it how its requests look. Raises as it does."""
        await super().open()
        try:
            await self._learn(await self._shown())
        except _CannotDo as why:
            log.warning("the wire transport cannot be used here: %s; aiobotocore sends instead", why)
        except BaseException:
            await self.close()
            raise

    @property
    def is_direct(self) -> bool:
        """Whether calls go over our own connections; False where the reference transport took over."""
        return self._pool is not None

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        await super().close()

    async def create_task(self, targets: Sequence[str], client_token: str) -> Answer:
        if self._pool is None:
            return await super().create_task(targets, client_token)
        keeper = self._keeper
        if not keeper.is_fresh:
            try:
                keeper.check()
            except NoCredentials as error:
                return unsigned(error)
        used = keeper.use()
        body = self._body(targets, client_token)
        try:
            signed = self._signer.sign(used.frozen, int(time.time() + self._auth.skew_s), body)
        except ValueError as error:
            return Answer(kind=Kind.DENIED, code="Unsignable", message=str(error))
        request = b"%b%bContent-Length: %d\r\n\r\n%b" % (self._head, signed, len(body), body)
        try:
            end = await self._pool.ask(request)
        except Unreachable as error:
            return Answer(kind=Kind.UNREACHABLE, code=error.code, message=str(error))
        if isinstance(end, Broken):
            return Answer(kind=Kind.NO_REPLY, code=end.code, message=end.why)
        if end.status == 200:
            return _made(end.body)
        answer = self._read(end, targets)
        if answer.kind is Kind.EXPIRED:
            keeper.reject(used)
        return answer

    def _body(self, targets: Sequence[str], client_token: str) -> bytes:
        token, listed = _encode(client_token), _encode(targets)
        if self._between is None:
            return b'%b%b,"targets":%b}' % (self._before, token, listed)
        return b'%b%b%b%b,"targets":%b}' % (self._before, token, self._between, token, listed)

    def _read(self, reply: Reply, targets: Sequence[str]) -> Answer:
        """Judge an answer other than 200, read as the SDK reads it."""
        headers = HeadersDict({_text(name): _text(value) for name, value in reply.headers})
        if reply.status < 300:
            return _made(reply.body)
        try:
            parsed = _parse({"status_code": reply.status, "headers": headers, "body": reply.body}, None)
        except ResponseParserError as error:
            return failed(error)
        return self._refused(sdk.ClientError(parsed, "CreateTask"), targets)

    # Learning from the SDK

    async def _shown(self) -> Any:
        """Return the request that the SDK would send, signed and all."""
        event = f"before-send.{SERVICE}.CreateTask"

        def show(request: Any, **_: Any) -> NoReturn:
            raise _Shown(request)

        events, used = self._client.meta.events, self._keeper.use()
        events.register_first(event, show)
        try:
            await self._client.create_task(**self._parameters(("smd-shown",), "shown"))
        except _Shown as shown:
            return shown.request
        finally:
            events.unregister(event, show)
            used.is_used = False  # nobody has seen what was signed
        raise _CannotDo("the SDK shows no request")

    async def _learn(self, shown: Any) -> None:
        """Prepare all that is the same in every call. Raises `_CannotDo` or `UsageError`."""
        url = urlsplit(shown.url)
        scope = _SCOPE.match(_text(shown.headers.get("Authorization", "")))
        if scope is None:
            raise _CannotDo("requests are signed in another way")
        if shown.method != "POST" or url.query or not _PLAIN_PATH.fullmatch(url.path) or not url.hostname:
            raise _CannotDo(
                f"the endpoint {url.scheme}://{url.netloc}{url.path} needs more than a plain path"
            )
        if not self._is_local and get_environ_proxies(shown.url).get(url.scheme):
            raise _CannotDo("a proxy is set")
        host = _host_of(url.hostname, url.port, url.scheme)
        fixed = {"Content-Type": "application/json"}
        agent = _text(shown.headers.get("User-Agent", ""))
        lines = [f"POST {url.path} HTTP/1.1", f"Host: {host}", f"User-Agent: {agent}"]
        lines += [f"{name}: {value}" for name, value in fixed.items()]
        self._head = "".join(f"{line}\r\n" for line in lines).encode()
        self._signer = Signer(host=host, path=url.path, headers=fixed, region=scope[1], service=scope[2])
        self._before, self._between = self._body_parts()
        is_tls = url.scheme == "https"
        origin = Origin(
            url.hostname,
            url.port or (443 if is_tls else 80),
            await asyncio.to_thread(self._tls_context) if is_tls else None,  # 30 ms
        )
        self._pool = Pool(origin, timeout_s=self._timeout_s)

    def _tls_context(self) -> ssl.SSLContext:
        """Trust what the SDK trusts: its bundle, or the one that AWS_CA_BUNDLE or the profile names."""
        bundle = self._session.get_config_variable("ca_bundle") or get_cert_path(True)
        try:
            context = ssl.create_default_context(cafile=bundle)
        except OSError as error:
            raise UsageError(
                f"the certificate bundle {bundle} cannot be read: {error.strerror or error}",
                hint="see AWS_CA_BUNDLE, and ca_bundle of the AWS configuration",
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        with contextlib.suppress(NotImplementedError):
            context.set_alpn_protocols(["http/1.1"])
        return context

    def _body_parts(self) -> tuple[bytes, bytes | None]:
        """Return what stands before the client token, and between its two places; None where it has one."""
        plan = self._plan
        before = "".join(f'"{name}":{_encode(value).decode()},' for name, value in self._constant.items())
        if not plan.system_tags:
            tags = f'"tags":{_encode(plan.tags).decode()},' if plan.tags else ""
            return f'{{{before}{tags}"clientToken":'.encode(), None
        tags = _encode({**plan.tags, SYSTEM_TAG_RUN: plan.run}).decode().removesuffix("}")
        return f'{{{before}"tags":{tags},"{SYSTEM_TAG_TOKEN}":'.encode(), b'},"clientToken":'


def _made(body: bytes) -> Answer:
    """Judge the body of a success: only a task id is one."""
    try:
        made = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Answer(kind=Kind.UNREADABLE, code="Unreadable", message="success without a readable body")
    return success(made.taskId, made.taskArn)


def _host_of(host: str, port: int | None, scheme: str) -> str:
    """Return the Host header: without the port that the scheme implies, as the SDK signs it."""
    shown = f"[{host}]" if ":" in host else host
    return shown if port in (None, 443 if scheme == "https" else 80) else f"{shown}:{port}"


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
