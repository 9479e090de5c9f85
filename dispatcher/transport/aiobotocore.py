"""The reference transport: the AWS SDK does credentials, endpoint, signing and parsing.

One long-lived client, one SDK attempt, a pool as large as the window. What the SDK does not do well enough
for us is done here, each found by measurement:

- Its read time-out is per read, so a server that drips a byte at a time hangs it: every attempt has a
  total deadline.
- It reads a body to its end, however long that is, and follows redirects with the signed request: the HTTP
  session below is guarded against both.
- It maps a reset after sending and a refused connection to the same error: the cause tells them apart.
- A truncated or empty body with status 200 comes back as an empty success: only a task id is one.
- Environment and profiles can redirect the endpoint: only our own setting can.
- It refreshes credentials inside the call that needs them: `credentials` does that beside the calls.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import botocore.auth
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError
from yarl import URL

from dispatcher.clock import SystemClock
from dispatcher.errors import DispatcherError, UsageError
from dispatcher.manifest import is_loopback
from dispatcher.model import Answer, Kind
from dispatcher.plan import SYSTEM_TAG_RUN, SYSTEM_TAG_TOKEN
from dispatcher.redact import redacted
from dispatcher.transport.base import MAX_BODY_BYTES, TaskPage, TaskView, answer_for, clean
from dispatcher.transport.chain import Chain, KeptCredentials, NothingFound, has_credentials, words
from dispatcher.transport.credentials import CredentialKeeper, Found, NoCredentials
from dispatcher.transport.deadline import deadline
from dispatcher.transport.looking import page_of, view_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.checkpoint.base import Plan

SERVICE = "snow-device-management"
_has_credentials, _words = has_credentials, words
_STAND_IN = SimpleNamespace(access_key="emulator", secret_key="emulator", token=None)  # noqa: S106
"""An emulator on this host takes any credentials, and IMDS need not be asked for some."""
_NOT_SENT = (sdk.ConnectTimeoutError, sdk.SSLError, sdk.ProxyConnectionError)
_SKEW_S = 60.0
"""Clock differences below this are not worth correcting; the service allows five minutes."""


class AiobotocoreTransport:
    """CreateTask, DescribeTask and ListTasks of one lane through aiobotocore."""

    def __init__(
        self,
        plan: Plan,
        *,
        max_in_flight: int,
        attempt_timeout_s: float,
        profile: str | None = None,
    ) -> None:
        """Send `plan`'s command; nothing is connected before `open`."""
        self._plan = plan
        self._max_in_flight = max_in_flight
        self._timeout_s = attempt_timeout_s
        self._chain = Chain(profile, region=plan.region)
        self._keeper = CredentialKeeper(self._find_credentials, clock=SystemClock())
        self._session = AioSession(profile=profile)
        self._stack = contextlib.AsyncExitStack()
        self._client: Any = None
        self._constant: dict[str, Any] = {"command": {plan.command: {}}}
        if plan.description is not None:
            self._constant["description"] = plan.description
        self._profile = profile
        self._is_stand_in = False
        self._skew_s = 0.0
        self._auth: type[_SkewedAuth] = type("SkewedAuth", (_SkewedAuth,), {"skew_s": 0.0})

    async def open(self) -> None:
        """Find credentials and make the client. Raises `UsageError` where either cannot be done."""
        try:
            self._is_stand_in = self._is_local and not _has_credentials(self._session, self._profile)
            await self._keeper.renew()
            kept = KeptCredentials(self._keeper.use)
            self._session.register_component("credential_provider", kept)
            botocore.auth.AUTH_TYPE_MAPS[self._auth_name] = self._auth
            self._client = await self._stack.enter_async_context(
                self._session.create_client(SERVICE, region_name=self._plan.region, **self._client_options())
            )
        except NoCredentials as error:
            raise UsageError(error.message, hint=error.hint) from None
        except (sdk.BotoCoreError, ValueError) as error:
            raise UsageError(f"the AWS configuration cannot be used: {_words(error)}") from error

    @property
    def refusal(self) -> DispatcherError | None:
        return self._keeper.refusal

    async def _find_credentials(self) -> Found:
        """Fetch credentials, and ask for their account where it would tell that it is another one."""
        if self._is_stand_in:
            return Found(_STAND_IN, "none")
        try:
            found = await self._chain.fetch()
        except NothingFound:
            self._is_stand_in = self._is_local and self._keeper.current is None
            if not self._is_stand_in:
                raise
            return Found(_STAND_IN, "none")
        if found.account is None and self._keeper.account is not None and self._plan.endpoint_url is None:
            found.account = await self._account_of(found)
        return found

    @property
    def _auth_name(self) -> str:
        return f"v4-dispatcher-{id(self):x}"

    def _client_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "config": AioConfig(
                retries={"total_max_attempts": 1, "mode": "standard"},
                max_pool_connections=self._max_in_flight,
                connect_timeout=max(0.1, self._timeout_s / 2),
                read_timeout=self._timeout_s,
                parameter_validation=False,  # our own limits are stricter
                ignore_configured_endpoint_urls=True,
                signature_version=self._auth_name,
                http_session_cls=_GuardedSession,
                proxies={} if self._is_local else None,
            )
        }
        if self._plan.endpoint_url is not None:
            options["endpoint_url"] = self._plan.endpoint_url
        return options

    @property
    def _is_local(self) -> bool:
        url = self._plan.endpoint_url
        return url is not None and is_loopback(URL(url).host or "")

    async def close(self) -> None:
        await self._keeper.close()
        await self._stack.aclose()
        botocore.auth.AUTH_TYPE_MAPS.pop(self._auth_name, None)

    async def renew(self) -> Answer | None:
        """Resolve the credential chain anew, and sign by the service's clock if ours is off."""
        if abs(self._skew_s) >= _SKEW_S:
            self._auth.skew_s = self._skew_s
        try:
            await self._keeper.renew()
        except NoCredentials as error:
            return unsigned(error)
        return None

    async def create_task(self, targets: Sequence[str], client_token: str) -> Answer:
        response = await self._ask("create_task", self._parameters(targets, client_token), targets)
        if isinstance(response, Answer):
            return response
        return success(response.get("taskId"), response.get("taskArn"))

    def _parameters(self, targets: Sequence[str], client_token: str) -> dict[str, Any]:
        """Return CreateTask's members."""
        parameters = {"targets": list(targets), "clientToken": client_token, **self._constant}
        tags = self._tags(client_token)
        if tags:
            parameters["tags"] = tags
        return parameters

    async def _ask(
        self, operation: str, parameters: dict[str, Any], targets: Sequence[str] = ()
    ) -> dict[str, Any] | Answer:
        """Call once; return the parsed success, or what came instead."""
        keeper = self._keeper
        if not keeper.is_fresh:
            try:
                keeper.check()
            except NoCredentials as error:
                return unsigned(error)
        used = keeper.use()
        try:
            async with deadline(self._timeout_s):
                response: dict[str, Any] = await getattr(self._client, operation)(**parameters)
        except TimeoutError:
            return Answer(
                kind=Kind.NO_REPLY, code="Timeout", message=f"no answer within {self._timeout_s:g} s"
            )
        except sdk.ClientError as error:
            answer = self._refused(error, targets)
            if answer.kind is Kind.EXPIRED:
                keeper.reject(used)
            return answer
        except Exception as error:  # noqa: BLE001  (whatever the SDK raises is an answer, never a crash)
            return failed(error)
        return response

    def _tags(self, client_token: str) -> dict[str, str]:
        if not self._plan.system_tags:
            return self._plan.tags
        return {**self._plan.tags, SYSTEM_TAG_RUN: self._plan.run, SYSTEM_TAG_TOKEN: client_token}

    def _refused(self, error: sdk.ClientError, targets: Sequence[str]) -> Answer:
        meta = error.response.get("ResponseMetadata", {})
        self._note_clock(meta)
        found = error.response.get("Error", {})
        code, message = str(found.get("Code") or ""), str(found.get("Message") or "")
        named = code if code and not code.isdigit() and code != "Unknown" else None
        return answer_for(int(meta.get("HTTPStatusCode", 0)), named, redacted(message) or None, targets)

    def _note_clock(self, meta: dict[str, Any]) -> None:
        served_at = _date_of(meta)
        if served_at is not None:
            self._skew_s = served_at - time.time()

    async def describe_task(self, task_id: str) -> TaskView | Answer:
        response = await self._ask("describe_task", {"taskId": task_id})
        if isinstance(response, Answer):
            return response
        return view_of(response, _date_of(response.get("ResponseMetadata", {})))

    async def list_tasks(self, next_token: str | None, limit: int) -> TaskPage | Answer:
        parameters: dict[str, Any] = {"maxResults": limit}
        if next_token is not None:
            parameters["nextToken"] = next_token
        response = await self._ask("list_tasks", parameters)
        return response if isinstance(response, Answer) else page_of(response)

    async def identity(self) -> str | None:
        """Return the caller's account, by STS or else by the credentials; None where it is not AWS's."""
        if self._plan.endpoint_url is not None:
            return None
        account = await self._account_of(self._keeper.use())
        self._keeper.account = self._keeper.account or account
        return account or self._keeper.account

    async def _account_of(self, found: Found) -> str | None:
        """Ask STS whose credentials these are; None where it cannot be had."""
        config = AioConfig(ignore_configured_endpoint_urls=True, connect_timeout=5, read_timeout=5)
        frozen = found.frozen
        signed = self._session.create_client(
            "sts",
            region_name=self._plan.region,
            config=config,
            aws_access_key_id=frozen.access_key,
            aws_secret_access_key=frozen.secret_key,
            aws_session_token=frozen.token,
        )
        try:
            async with signed as client:
                return str((await client.get_caller_identity())["Account"])
        except Exception:  # noqa: BLE001  (the first call says what is wrong with the credentials)
            return None


class _SkewedAuth(botocore.auth.SigV4Auth):  # type: ignore[misc]
    """SigV4 by a clock that is `skew_s` ahead of ours; botocore corrects no skew itself."""

    skew_s = 0.0

    def _modify_request_before_signing(self, request: Any) -> None:
        if self.skew_s:
            now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.skew_s)
            request.context["timestamp"] = now.strftime(botocore.auth.SIGV4_TIMESTAMP)
        super()._modify_request_before_signing(request)


class _GuardedSession(AIOHTTPSession):  # type: ignore[misc]
    """The SDK's HTTP session, with redirects refused and bodies bounded."""

    async def __aenter__(self) -> Any:
        """Build the TLS context now: 30 ms that would make the first call late, and the next ones bunch."""
        entered = await super().__aenter__()
        with contextlib.suppress(
            OSError
        ):  # a certificate bundle that cannot be read is the first call's to tell
            await self._get_session(None)
        return entered

    async def _get_session(self, proxy_url: str | None) -> Any:
        return _Guard(await super()._get_session(proxy_url))


class _Guard:
    """An aiohttp session as far as the SDK uses one."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, method: str, **options: Any) -> _BoundedResponse:
        return _BoundedResponse(await self._session.request(method, allow_redirects=False, **options))


class _BoundedResponse:
    """An aiohttp response whose body is read up to `MAX_BODY_BYTES` and no further."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.url = response.url
        self.status = response.status
        self.raw_headers = response.raw_headers

    async def read(self) -> bytes:
        response = self._response
        body = bytearray()
        try:
            if response.content_length is not None and response.content_length <= MAX_BODY_BYTES:
                return await response.read()  # as nearly always; no more than that will be read
            async for chunk in response.content.iter_chunked(65_536):
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise aiohttp.ClientPayloadError(f"the answer is larger than {MAX_BODY_BYTES} bytes")
        except BaseException:
            response.close()
            raise
        return bytes(body)


def success(task_id: object, task_arn: object) -> Answer:
    """Judge what a success says: only a task id is one."""
    if not isinstance(task_id, str) or not 1 <= len(task_id) <= 256 or not task_id.isprintable():
        return Answer(kind=Kind.UNREADABLE, code="NoTaskId", message="success without a task id")
    arn = clean(task_arn, 2_048) if isinstance(task_arn, str) else None
    return Answer(kind=Kind.ACCEPTED, task_id=task_id, task_arn=arn)


def failed(error: Exception) -> Answer:
    """Classify what the SDK raised instead of an answer: was anything sent?"""
    code = type(error).__name__
    if isinstance(error, ResponseParserError):
        return Answer(kind=Kind.UNREADABLE, code=code, message=_words(error))
    if isinstance(error, sdk.EndpointConnectionError):
        cause = error.kwargs.get("error")
        if isinstance(cause, Exception) and _is_mid_flight(cause):
            return Answer(kind=Kind.NO_REPLY, code=type(cause).__name__, message=_words(cause))
        return Answer(kind=Kind.UNREACHABLE, code=code, message=_words(error))
    kind = Kind.UNREACHABLE if isinstance(error, _NOT_SENT) else Kind.NO_REPLY
    return Answer(kind=kind, code=code, message=_words(error))


def _is_mid_flight(cause: Exception) -> bool:
    """Whether the connection stood already: then the request may have been read.

    aiohttp raises ClientConnectorError for what fails before (DNS, refused, TLS); the SDK folds that and
    every other connection error into one.
    """
    return isinstance(cause, aiohttp.ClientConnectionError) and not isinstance(
        cause, aiohttp.ClientConnectorError
    )


def unsigned(error: NoCredentials) -> Answer:
    """Nothing can be signed: the lane waits, or stops where waiting is no use."""
    kind = Kind.DENIED if error.is_final else Kind.NO_CREDENTIALS
    return Answer(kind=kind, code="NoCredentials", message=str(error))


def _date_of(meta: dict[str, Any]) -> float | None:
    text = meta.get("HTTPHeaders", {}).get("date")
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else None
    except (TypeError, ValueError):
        return None


def configured_region(profile: str | None) -> str | None:
    """Return the region of the standard AWS chain: environment, then profile."""
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if named:
        return named
    try:
        region = AioSession(profile=profile).get_config_variable("region")
    except sdk.BotoCoreError as error:
        raise UsageError(f"the AWS configuration cannot be used: {_words(error)}") from error
    return None if region is None else str(region)
