"""The standard AWS credential chain, walked once: environment, profiles, SSO, roles, programs, metadata.

What it raises is for people and holds no secret: what a `credential_process` wrote to stderr, or an
endpoint's error page, may hold one, and nobody can tell. So such text is never repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import re
import sys
import weakref
from typing import TYPE_CHECKING, Any

from aiobotocore.credentials import AioCredentials
from aiobotocore.session import AioSession
from botocore import exceptions as sdk

from dispatcher.redact import redacted
from dispatcher.transport.base import clean
from dispatcher.transport.credentials import Found, NoCredentials

if TYPE_CHECKING:
    from collections.abc import Callable

_NETWORK = (sdk.HTTPClientError, sdk.ConnectionError, TimeoutError)
_MFA_HINT = "use a profile without one, or get session credentials first: aws sts get-session-token"
_SIGNS = (
    *("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
)
_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()
"""Runs side by side refresh in turn: programs and SSO write caches that a rival would spoil."""
_walking: contextvars.ContextVar[bool] = contextvars.ContextVar("walking", default=False)


class NothingFound(NoCredentials):
    """No source of the chain is set up, as opposed to one that fails."""


class NoPrompt(Exception):
    """A profile wants an MFA code, and nobody can be asked."""


class Chain:
    """Finds credentials as every AWS tool does."""

    def __init__(self, profile: str | None, *, region: str | None = None) -> None:
        """Use `profile`, or the environment's where it is None; nothing is asked before `fetch`.

        `region` is where a role is assumed, as for any client of that region.
        """
        self._profile = profile
        self._region = region
        self._walks = 0

    async def fetch(self) -> Found:
        """Walk the chain from its beginning, one walk at a time in this process. Raises `NoCredentials`."""
        async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            return await self._fetch()

    async def _fetch(self) -> Found:
        self._walks += 1
        _quieten()
        token = _walking.set(True)
        try:
            return await self._walk()
        except NoCredentials:
            raise
        except Exception as error:  # noqa: BLE001  (a provider may fail in any way)
            explained = self._explained(error)
        finally:
            _walking.reset(token)
        raise explained  # here, so that it does not carry what failed: that may hold a secret

    async def _walk(self) -> Found:
        session = AioSession(profile=self._profile)
        if self._region is not None:
            session.set_config_variable("region", self._region)
        resolver = session.get_component("credential_provider")
        roles = resolver.get_provider("assume-role")
        if self._walks > 1 or not sys.stdin.isatty():
            roles._prompter = _refuse_to_prompt  # its default blocks the loop
        async with _Programs() as programs:
            programs.watch(resolver.get_provider("custom-process"), roles._profile_provider_builder)
            return await self._found(session)

    async def _found(self, session: AioSession) -> Found:
        credentials = await session.get_credentials()
        if credentials is None:
            raise NothingFound(
                "no AWS credentials were found",
                hint="give --profile, set AWS_PROFILE, or log in: see docs/credentials.md",
            )
        # What was just loaded is not loaded again because it lives shorter than the SDK's windows.
        credentials._advisory_refresh_timeout = credentials._mandatory_refresh_timeout = 0
        frozen = await credentials.get_frozen_credentials()
        expiry = getattr(credentials, "_expiry_time", None)
        return Found(
            frozen=frozen,
            method=str(credentials.method),
            expires_at=None if expiry is None else expiry.timestamp(),
            account=frozen.account_id or None,
            is_fixed=credentials.method == "env",
            # Near their end the SDK takes an instance's credentials to last for another quarter of an hour.
            is_estimate=credentials.method == "iam-role",
        )

    def _explained(self, error: Exception) -> NoCredentials:
        """Say why the chain failed, and what to do about it."""
        own = f" --profile {self._profile}" if self._profile else ""
        if isinstance(error, sdk.CredentialRetrievalError):
            return _of_provider(error)
        if isinstance(error, (sdk.SSOError, sdk.TokenRetrievalError, sdk.NoAuthTokenError)):
            return NoCredentials("the SSO session has expired or is missing", hint=f"run: aws sso login{own}")
        if isinstance(error, sdk.LoginError):
            return NoCredentials("the login session has expired or is missing", hint=f"run: aws login{own}")
        if isinstance(error, (NoPrompt, sdk.RefreshWithMFAUnsupportedError)):
            return NoCredentials("the profile asks for an MFA code, and nobody can be asked", hint=_MFA_HINT)
        if isinstance(error, sdk.ClientError):
            found = error.response.get("Error", {})
            said = words(f"{found.get('Code', '')}: {found.get('Message', '')}")
            return NoCredentials(f"{error.operation_name} was refused ({said})")
        if isinstance(error, _NETWORK):
            return NoCredentials(f"where they come from cannot be reached ({type(error).__name__})")
        if isinstance(error, OSError):
            return NoCredentials(f"{error.strerror or type(error).__name__}: {error.filename or 'a file'}")
        if isinstance(error, sdk.BotoCoreError):
            return NoCredentials(words(error))
        if isinstance(error, RuntimeError) and "still expired" in str(error):
            return NoCredentials("what came has expired already by this host's clock")
        return NoCredentials(f"what came cannot be read ({type(error).__name__})")


class _Programs:
    """The programs that a walk starts: none outlives it, though nobody waits for a walk that hangs."""

    def __init__(self) -> None:
        self._started: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> _Programs:
        return self

    async def __aexit__(self, *_error: object) -> None:
        for program in self._started:
            if program.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    program.kill()
                await program.wait()

    def watch(self, provider: Any, builder: Any) -> None:
        """Keep what `provider` starts, and what those start that `builder` makes for a role's source."""
        make = builder._create_process_provider

        def made(*arguments: Any, **options: Any) -> Any:
            found = make(*arguments, **options)
            found._popen = self._start
            return found

        provider._popen = self._start
        builder._create_process_provider = made

    async def _start(self, *command: str, **options: Any) -> asyncio.subprocess.Process:
        program = await asyncio.create_subprocess_exec(*command, **options)
        self._started.append(program)
        return program


def _of_provider(error: sdk.CredentialRetrievalError) -> NoCredentials:
    provider, text = str(error.kwargs.get("provider")), str(error.kwargs.get("error_msg"))
    if provider == "custom-process":
        key = re.fullmatch(r"Missing required key in response: '(\w{1,32})'", text)
        if key is not None:
            return NoCredentials(f"the output of credential_process has no {key[1]}")
        if text.startswith("Unsupported version"):
            return NoCredentials("the output of credential_process is not of Version 1")
        return NoCredentials("the credential_process failed", hint="run it by hand to see why")
    if provider == "container-role":
        status = re.search(r"non 200 response (\d{3})", text)
        said = f"answers {status[1]}" if status else "cannot be reached or read"
        return NoCredentials(f"the container's credential endpoint {said}")
    return NoCredentials(f"{provider} failed", hint="see docs/credentials.md")


class KeptCredentials(AioCredentials):  # type: ignore[misc]
    """What a client signs with: always the latest, and never a refresh."""

    method = "kept"

    def __init__(self, current: Callable[[], Found]) -> None:
        self._current = current

    def __repr__(self) -> str:
        return "<KeptCredentials>"

    async def get_frozen_credentials(self) -> Any:
        return self._current().frozen

    async def load_credentials(self) -> KeptCredentials:
        """Be a session's `credential_provider` too."""
        return self


def has_credentials(session: AioSession, profile: str | None) -> bool:
    """Whether credentials are configured without asking the network for them."""
    if profile or any(os.environ.get(name) for name in _SIGNS):
        return True
    return "default" in session.available_profiles


def words(error: object) -> str:
    """Render what the SDK raised: one line, no secrets that can be told."""
    text = " ".join(str(error).split()) or type(error).__name__
    return redacted(clean(text, 300)) or ""


def _refuse_to_prompt(_prompt: str) -> str:
    raise NoPrompt


class _Ours(logging.Filter):
    """Drops what the SDK logs of a walk of ours: it has a stack trace with the text of whatever failed."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        return not _walking.get()


_OURS = _Ours()


def _quieten() -> None:
    for package in ("aiobotocore", "botocore"):
        for module in ("credentials", "tokens", "utils"):
            logging.getLogger(f"{package}.{module}").addFilter(_OURS)  # once: it is a set
