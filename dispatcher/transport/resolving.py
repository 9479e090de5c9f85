"""Look names up without ever holding the process back.

`getaddrinfo` cannot be interrupted, and a resolver that is away takes half a minute to say so. The loop's own
threads are joined when the process ends; these are not, so a deadline on the look-up is a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult


class PatientResolver(AbstractResolver):
    """The system's resolver, in threads that nobody waits for."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`; raises OSError where it has none."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()

        def settle(outcome: Any) -> None:
            if future.done():
                return
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        def look_up() -> None:
            try:
                outcome: Any = socket.getaddrinfo(
                    host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
                )
            except Exception as error:  # noqa: BLE001  (handed over to whoever awaits)
                outcome = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
                loop.call_soon_threadsafe(settle, outcome)

        threading.Thread(target=look_up, daemon=True, name="resolver").start()
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=int(address[1]),
                family=found,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found, _, proto, _, address in await future
        ]

    async def close(self) -> None:
        """Nothing is held."""
