"""Connections to one endpoint: opened when none is idle, kept, and given up in time.

The newest idle connection is used first, so that those a slow run does not need grow old and go. One that
was idle for long is not used: services close idle connections (AWS after some 20 s), and a POST that meets
the closing would be a doubt that nothing but haste has made.

One timer watches all deadlines. It is set for the first of them, and as every call has the same time it
comes due about once in that time, however many calls there are.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

import aiohappyeyeballs

from dispatcher.transport.resolving import PatientResolver
from dispatcher.transport.wire_connection import Broken, Connection

if TYPE_CHECKING:
    import ssl

    from dispatcher.transport.wire_connection import Reply

MAX_IDLE_S = 12.0
"""As long as aiobotocore keeps one."""
ADDRESSES_S = 30.0
"""How long a look-up holds; a connection that cannot be made ends it before."""
NEXT_ADDRESS_S = 0.25
"""When the next address is tried beside one that does not answer (RFC 8305, section 5)."""


class Origin(NamedTuple):
    """Where connections go; `tls` is None for plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None


class Unreachable(Exception):
    """There is no connection: nothing was sent."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


class Pool:
    """Sends requests to `origin`, each over a connection of its own for as long as it is under way."""

    def __init__(self, origin: Origin, *, timeout_s: float) -> None:
        """Give every request `timeout_s`, and half of it to a connection that must be made first.

        Made where its loop runs.
        """
        self._loop = asyncio.get_running_loop()
        self._origin = origin
        self._timeout_s = timeout_s
        self._timed_out = Broken("Timeout", f"no answer within {timeout_s:g} s")
        self._idle: list[Connection] = []
        self._asked: dict[Connection, float] = {}  # with their deadlines
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = math.inf
        self._resolver = PatientResolver()
        self._looking: asyncio.Task[list[aiohappyeyeballs.AddrInfoType]] | None = None
        self._looked_up_s = 0.0

    async def ask(self, request: bytes) -> Reply | Broken:
        """Send `request` once and return how it ended. Raises `Unreachable` where it was not sent."""
        now_s = self._loop.time()
        deadline_s = now_s + self._timeout_s
        connection = self._idle_one(now_s) or await self._connected_by(deadline_s)
        asked = connection.ask(request)
        self._asked[connection] = deadline_s
        if deadline_s < self._timer_due_s:
            self._watch(deadline_s)
        try:
            return await asked
        except asyncio.CancelledError:
            connection.abort()
            raise
        finally:
            # Not before: until its answer is taken, a connection is this call's alone.
            del self._asked[connection]
            if connection.is_usable:
                connection.idle_since_s = self._loop.time()
                self._idle.append(connection)

    def close(self) -> None:
        """Close every connection, and forget the timer."""
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
        for connection in (*self._idle, *self._asked):
            connection.abort()
        self._idle.clear()

    def _idle_one(self, now_s: float) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable and now_s - connection.idle_since_s <= MAX_IDLE_S:
                return connection
            connection.abort()
        return None

    # Deadlines

    def _watch(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due_s = due_s
        self._timer = self._loop.call_at(due_s, self._expire)

    def _expire(self) -> None:
        """End what is due, and look again when the next one is."""
        self._timer, self._timer_due_s = None, math.inf
        # A loop may fire its timers a little early (uvloop rounds to milliseconds).
        now_s = self._loop.time() + 0.001
        for connection, due_s in self._asked.items():
            if due_s <= now_s:
                connection.abort(self._timed_out)  # its task takes it out, later
        if left := [due_s for due_s in self._asked.values() if due_s > now_s]:
            self._watch(min(left))

    # Connecting

    async def _connected_by(self, deadline_s: float) -> Connection:
        """Open a connection that may still be written to. Raises `Unreachable`.

        A machine may sleep meanwhile, and the clock that timers go by may stand still with it: the call that
        wakes would be sent on a claim that another host has taken over, in a window that has passed.
        """
        began_at = time.time()
        connection = await self._connected()
        is_late = self._loop.time() >= deadline_s
        if is_late or abs(time.time() - began_at) >= self._timeout_s:
            connection.abort()
            raise Unreachable("ConnectTimeout", f"no connection within {self._timeout_s:g} s")
        return connection

    async def _connected(self) -> Connection:
        """Open a connection. Raises `Unreachable`."""
        try:
            async with asyncio.timeout(self._timeout_s / 2):
                return await self._connect()
        except TimeoutError:
            why = f"no connection within {self._timeout_s / 2:g} s"
            self._forget_addresses()
            raise Unreachable("ConnectTimeout", why) from None
        except OSError as error:  # ssl's are among them
            self._forget_addresses()
            why = error.strerror or str(error) or type(error).__name__
            raise Unreachable(type(error).__name__, why) from error

    async def _connect(self) -> Connection:
        host, _, tls = self._origin
        raw = await aiohappyeyeballs.start_connection(
            await self._addresses(), happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1
        )
        connection = Connection(self._loop)
        try:
            await self._loop.create_connection(
                lambda: connection,
                sock=raw,
                ssl=tls,
                server_hostname=host if tls else None,
            )
        except BaseException:
            connection.abort()
            raw.close()
            raise
        return connection

    async def _addresses(self) -> list[aiohappyeyeballs.AddrInfoType]:
        """Return where the host is; calls that come together share one look-up."""
        now_s = self._loop.time()
        if self._looking is None or (self._looking.done() and now_s - self._looked_up_s > ADDRESSES_S):
            self._looked_up_s = now_s
            self._looking = asyncio.create_task(self._look_up(), name="look-up")
            self._looking.add_done_callback(_seen)
        return await asyncio.shield(self._looking)

    async def _look_up(self) -> list[aiohappyeyeballs.AddrInfoType]:
        host, port, _ = self._origin
        return [
            (found["family"], socket.SOCK_STREAM, found["proto"], "", (found["host"], found["port"]))
            for found in await self._resolver.resolve(host, port)
        ]

    def _forget_addresses(self) -> None:
        if self._looking is not None and self._looking.done():
            self._looking = None


def _seen(looking: asyncio.Task[list[aiohappyeyeballs.AddrInfoType]]) -> None:
    """Take notice of a failure: whoever asked may have been cancelled."""
    if not looking.cancelled():
        looking.exception()
