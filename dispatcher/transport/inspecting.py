"""Questions to AWS that change nothing: who am I, may I, what time is it there, is anybody there.

Every question is one attempt with a deadline, and its answer is a value: nothing here raises for what the
network, the service or the AWS configuration does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import botocore
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import exceptions as sdk
from yarl import URL

from dispatcher.errors import UsageError
from dispatcher.manifest import is_loopback
from dispatcher.redact import redacted
from dispatcher.transport.aiobotocore import SERVICE, _date_of, _GuardedSession
from dispatcher.transport.base import clean
from dispatcher.transport.chain import Chain, has_credentials, words
from dispatcher.transport.credentials import Found, NoCredentials
from dispatcher.transport.resolving import PatientResolver

if TYPE_CHECKING:
    from collections.abc import Mapping

CONNECT_S = 3.0
DEADLINE_S = 5.0
"""For one question."""
CREDENTIALS_S = 15.0
"""For finding credentials, which may ask an SSO portal, a role or a program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What came back for one question."""

    status: int | None = None
    """The HTTP status; None where no answer came."""
    code: str | None = None
    """The service's error code, or the kind of failure where no answer came; None for a success."""
    message: str | None = None
    elapsed_s: float = 0.0
    skew_s: float | None = None
    """The service's clock less ours, by its Date header, half the round trip taken off."""
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        return self.status == 200 and self.code is None


class Inspector:
    """Asks with the credentials, the region and the endpoint that a run would use."""

    def __init__(
        self,
        *,
        region: str,
        endpoint_url: str | None = None,
        profile: str | None = None,
        urls: Mapping[str, str] | None = None,
    ) -> None:
        """`urls` puts a service somewhere else, by its SDK name: for tests.

        Raises `UsageError` where the AWS configuration cannot be used: a profile that is not there.
        """
        self._region = region
        self._profile = profile
        self._urls = {**(urls or {}), **({} if endpoint_url is None else {SERVICE: endpoint_url})}
        self._stack = contextlib.AsyncExitStack()
        self._session = AioSession(profile=profile)
        try:
            self._profile_keys = self._session.get_scoped_config().keys()
        except sdk.BotoCoreError as error:
            raise UsageError(f"the AWS configuration cannot be used: {words(error)}") from error
        self._session.set_default_client_config(
            AioConfig(
                retries={"total_max_attempts": 1, "mode": "standard"},
                connect_timeout=CONNECT_S,
                read_timeout=DEADLINE_S,
                parameter_validation=False,
                ignore_configured_endpoint_urls=True,
                http_session_cls=_GuardedSession,
                connector_args={"resolver": PatientResolver()},
            )
        )
        self._opening = asyncio.Lock()
        self._clients: dict[str, Any] = {}
        self._is_unsigned = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._stack.aclose()

    def ignored(self) -> list[str]:
        """Return what names an endpoint in the profile, and has no say in where a run sends."""
        return ["endpoint_url of the profile"] if "endpoint_url" in self._profile_keys else []

    async def credentials(self) -> Found | NoCredentials | None:
        """Walk the standard chain once, and sign with what it finds from then on; None: none are needed."""
        found: Found | NoCredentials | None = None
        if self._is_local(SERVICE) and not has_credentials(self._session, self._profile):
            self._session.set_credentials("emulator", "emulator")
        else:
            try:
                async with asyncio.timeout(CREDENTIALS_S):
                    found = await Chain(self._profile).fetch()
            except TimeoutError:
                return NoCredentials(f"the credential chain took more than {CREDENTIALS_S:g} s")
            except NoCredentials as error:
                return error
            key = found.frozen
            self._session.set_credentials(key.access_key, key.secret_key, key.token)
        self._is_unsigned = False
        return found

    async def ask(self, operation: str, parameters: Mapping[str, Any], *, service: str = SERVICE) -> Answered:
        """Make one call that only reads."""
        if not operation.startswith(("list_", "describe_", "get_", "simulate_")):
            raise ValueError(f"{operation} is not a question")
        began, started_at = time.monotonic(), time.time()
        try:
            async with asyncio.timeout(DEADLINE_S):
                client = await self._client(service)
                began, started_at = time.monotonic(), time.time()
                response = await getattr(client, operation)(**parameters)
        except TimeoutError:
            return Answered(code="Timeout", message=f"no answer within {DEADLINE_S:g} s")
        except sdk.ClientError as error:
            response = error.response
        except Exception as error:  # noqa: BLE001  (whatever the SDK raises is an answer)
            return Answered(code=type(error).__name__, message=_cause(error))
        return _answered(response, time.monotonic() - began, started_at)

    async def _client(self, service: str) -> Any:
        async with self._opening:
            if service not in self._clients:
                options: dict[str, Any] = {"proxies": {}} if self._is_local(service) else {}
                if self._is_unsigned:
                    options["signature_version"] = botocore.UNSIGNED
                self._clients[service] = await self._stack.enter_async_context(
                    self._session.create_client(
                        service,
                        region_name=self._region,
                        endpoint_url=self._urls.get(service),
                        config=AioConfig(**options),
                    )
                )
        return self._clients[service]

    def _is_local(self, service: str) -> bool:
        url = self._urls.get(service)
        return url is not None and is_loopback(URL(url).host or "")


def _cause(error: Exception) -> str:
    """Say what went wrong on the network: the SDK's own sentence has the URL and not the reason."""
    found = getattr(error, "kwargs", {}).get("error")
    found = getattr(found, "os_error", found)
    if isinstance(found, OSError) and found.errno:
        return (
            os.strerror(found.errno) if found.errno > 0 else str(found.strerror)
        )  # a look-up's are negative
    return words(found if isinstance(found, Exception) else error)


def _answered(response: Mapping[str, Any], elapsed_s: float, started_at: float) -> Answered:
    meta, error = response.get("ResponseMetadata", {}), response.get("Error", {})
    served_at = _date_of(meta)
    return Answered(
        status=int(meta.get("HTTPStatusCode", 0)),
        code=clean(str(error.get("Code") or ""), 128) or None,
        message=redacted(clean(str(error.get("Message") or ""), 300)) or None,
        elapsed_s=elapsed_s,
        # The header has whole seconds: half of one is the best guess at the rest.
        skew_s=None if served_at is None else served_at + 0.5 - (started_at + elapsed_s / 2),
        body={key: value for key, value in response.items() if key not in ("ResponseMetadata", "Error")},
    )
