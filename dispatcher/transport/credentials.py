"""Credentials that expire, kept so that a run outlives them: one refresh at a time, ahead of time.

The SDK's own keeper (`AioRefreshableCredentials`) is not used to refresh, each for a reason that its source
shows. It refreshes inside the call that asks, so an attempt's deadline cancels the refresh that all others
wait for. It asks again on *every* call of the last fifteen minutes while that fails, and for ever where
credentials live shorter than that. And it raises from ten minutes before the expiry on, though what it has
is still good.

Here a refresh is a task of its own, shared by whoever needs it. No call waits for it: what is at hand is
used until `MARGIN` before its end, and after that nothing is sent. A refresh that fails is tried again with
growing pauses. A refresh walks the whole standard chain again, so that it also finds what an operator has
renewed: a new SSO login, another session token in the credentials file.

Nothing of a key is ever in a message, a `repr` or an exception of this module.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dispatcher.errors import DispatcherError, PlanMismatch
from dispatcher.redact import inert

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dispatcher.clock import Clock

log = logging.getLogger("dispatcher.credentials")

REFRESH_S = 60.0
"""The longest that one refresh may take: a program may open a browser, an endpoint may never answer."""
AHEAD_S, AHEAD_SHARE = 900.0, 0.25
"""A refresh begins 15 minutes before the expiry, as the SDK's, or in the last quarter of a shorter life."""
MARGIN_S, MARGIN_SHARE = 2.0, 0.1
"""Credentials are not used for a call that leaves so shortly before their end, or in the last tenth."""
RETRY_FIRST_S, RETRY_CAP_S = 1.0, 60.0


class NoCredentials(Exception):
    """There are no credentials to sign with: one sentence for people, without any part of a key."""

    def __init__(self, message: str, *, hint: str | None = None, is_final: bool = False) -> None:
        """`is_final`: nothing that happens outside of this process can bring new ones into it."""
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message = message
        self.hint = hint
        self.is_final = is_final


@dataclass(slots=True, eq=False)
class Found:
    """Credentials as the chain gave them."""

    frozen: Any = field(repr=False)
    """Key, secret and token, comparable; opaque here."""
    method: str
    """Which link of the chain had them, in the SDK's words."""
    expires_at: float | None = None
    """Unix seconds; None where nobody says."""
    account: str | None = None
    """The account they are of, where that is known."""
    is_fixed: bool = False
    """They come from the process's own environment: looking again brings the same."""
    is_estimate: bool = False
    """`expires_at` may be too late: look again a full `AHEAD_S` before it."""
    is_used: bool = False
    """Something was signed with them."""
    is_rejected: bool = False
    """The service said that they have expired."""


class CredentialKeeper:
    """Holds the credentials of one lane and renews them."""

    def __init__(
        self, fetch: Callable[[], Awaitable[Found]], *, clock: Clock, deadline_s: float = REFRESH_S
    ) -> None:
        """`fetch` walks the chain once, and raises `NoCredentials` where it finds nothing usable."""
        self._fetch = fetch
        self._clock = clock
        self._deadline_s = deadline_s
        self.current: Found | None = None
        self.account: str | None = None
        """The account of the first credentials; others are refused."""
        self.refusal: DispatcherError | None = None
        """Why nothing may be signed any more: the credentials became another account's."""
        self._due_at = self._dead_at = -math.inf  # Unix seconds: refresh from here, do not use from here
        self._refreshing: asyncio.Task[None] | None = None
        self._began_s = 0.0
        self._why: NoCredentials | None = None  # the last refresh failed
        self._failures = 0
        self._next_try_s = -math.inf

    @property
    def is_fresh(self) -> bool:
        """Whether nothing needs to be done; the one question that every call asks."""
        return self._clock.wall() < self._due_at

    @property
    def is_usable(self) -> bool:
        """Whether a call that leaves now may be signed."""
        return self._clock.wall() < self._dead_at

    def use(self) -> Found:
        """Return what to sign with."""
        assert self.current is not None
        self.current.is_used = True
        return self.current

    def check(self) -> None:
        """Begin a refresh where one is due. Raises `NoCredentials` where nothing can be signed now.

        A call never waits for a refresh: it holds a permit, and calls that waited would leave in a bunch.
        """
        if self.is_fresh:
            return
        if self._refreshing is None and self._clock.monotonic() >= self._next_try_s:
            self._begin()
        if not self.is_usable:
            raise self._unready()

    async def renew(self) -> None:
        """Fetch anew and wait for it, unless nobody has tried yet what is at hand. Raises `NoCredentials`.

        Joins a refresh under way; whoever is cancelled here leaves it to the others.
        """
        if self._refreshing is None and not (self.is_fresh and self.current and not self.current.is_used):
            self._begin()
        if self._refreshing is not None:
            await asyncio.wait({self._refreshing})
        if not self.is_usable:
            raise self._unready()

    def reject(self, found: Found) -> None:
        """Note that the service calls `found` expired, whatever the clock here says."""
        if found is self.current:  # else they were replaced while the call was under way
            found.is_rejected = True
            self._due_at = self._dead_at = -math.inf

    async def close(self) -> None:
        """Give up a refresh under way."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait({self._refreshing})

    def _begin(self) -> None:
        if self.refusal is None:
            self._began_s = self._clock.monotonic()
            self._refreshing = asyncio.create_task(self._refresh(), name="credentials")

    async def _refresh(self) -> None:
        """Fetch once; raises nothing, since those who wait come and go."""
        try:
            async with asyncio.timeout(self._deadline_s):
                found = await self._fetch()
            self._accept(found)
        except TimeoutError:
            self._failed(NoCredentials(f"that took more than {self._deadline_s:g} s"))
        except NoCredentials as why:
            self._failed(why)
        finally:
            self._refreshing = None

    def _accept(self, found: Found) -> None:
        now, old = self._clock.wall(), self.current
        if old is not None and old.is_rejected and found.frozen == old.frozen:
            if found.is_fixed:
                hint = "set new ones and resume: those of a running process cannot change"
                raise NoCredentials("they are in environment variables", hint=hint, is_final=True)
            raise NoCredentials(f"the same ones came back ({found.method})", hint="log in again")
        if found.expires_at is not None and found.expires_at <= now:
            ago = span(now - found.expires_at)
            raise NoCredentials(f"what came expired {ago} ago by this host's clock")
        self._check_account(found)
        if self._why is not None:
            log.info("credentials were renewed")
        self.current, self._why, self._failures, self._next_try_s = found, None, 0, -math.inf
        self._due_at = self._dead_at = math.inf
        if found.expires_at is not None:
            life_s = found.expires_at - now
            ahead_s = min(AHEAD_S, (1.0 - AHEAD_SHARE if found.is_estimate else AHEAD_SHARE) * life_s)
            self._due_at = found.expires_at - ahead_s
            self._dead_at = found.expires_at - min(MARGIN_S, MARGIN_SHARE * life_s)

    def _check_account(self, found: Found) -> None:
        if found.account is None or self.account in (None, found.account):
            self.account = self.account or found.account
            return
        words = f"the credentials were renewed for account {found.account}, not {self.account} as before"
        hint = "use the credentials the run began with, or run the manifest with another --run-key"
        self.refusal = PlanMismatch(words, hint=hint)
        self._due_at = self._dead_at = -math.inf
        raise NoCredentials(words, hint=hint)

    def _failed(self, why: NoCredentials) -> None:
        pause_s = min(RETRY_CAP_S, RETRY_FIRST_S * 2.0 ** min(self._failures, 20))
        self._next_try_s = self._clock.monotonic() + pause_s
        self._failures += 1
        self._why = why
        if self._failures == 1 and self.is_usable and self.current and self.current.expires_at:
            left = span(self.current.expires_at - self._clock.wall())
            log.warning("credentials expire in %s and could not be renewed yet: %s", left, inert(str(why)))

    def _unready(self) -> NoCredentials:
        """Say what an operator needs to know: since when, and why they cannot be renewed."""
        found, why = self.current, self._why
        if why is not None and (self.refusal is not None or found is None):
            return NoCredentials(why.message, hint=why.hint, is_final=why.is_final)
        standing = "there are no credentials yet"
        if found is not None and found.is_rejected:
            standing = "the service says that the credentials expired; they"
        elif found is not None and found.expires_at is not None:
            standing = f"credentials expired {span(self._clock.wall() - found.expires_at)} ago and"
        if why is None:
            so_far = span(self._clock.monotonic() - self._began_s)
            return NoCredentials(f"{standing} are being refreshed, for {so_far} so far")
        return NoCredentials(
            f"{standing} cannot be refreshed: {why.message}", hint=why.hint, is_final=why.is_final
        )


def span(seconds: float) -> str:
    """Render a time span as people say it: `40 s`, `3 min`, `2 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    hours, minutes = divmod(round(whole / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
