"""A service over real sockets that a test scripts byte by byte, and the transports that are held to it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from typing import TYPE_CHECKING, Any

from botocore.loaders import create_loader

from dispatcher.checkpoint.base import Plan
from dispatcher.transport.aiobotocore import AiobotocoreTransport
from dispatcher.transport.wire import WireTransport

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    Script = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]

KINDS: dict[str, type[AiobotocoreTransport]] = {"aiobotocore": AiobotocoreTransport, "wire": WireTransport}
TOKEN = "a" * 64
BODY = b'{"taskId":"st-1","taskArn":"arn:aws:snow-device-management:us-west-2:123456789012:task/st-1"}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
ANSWER = HEAD + BODY
_LOADER = create_loader()
"""Shared, since it keeps what it read: most of what opening a transport costs."""
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def plan_for(url: str | None, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "plan_id": "p", "run": "nightly", "command": "reboot", "region": "us-west-2", "endpoint_url": url,
        "intent_digest": "", "selection_digest": "", "inventory_digest": "", "planned_at": 0.0,
    }  # fmt: skip
    return Plan(**(values | changes))


@contextlib.asynccontextmanager
async def opened(
    kind: str, url: str | None, *, timeout_s: float = 5.0, **changes: Any
) -> AsyncIterator[AiobotocoreTransport]:
    transport = KINDS[kind](plan_for(url, **changes), max_in_flight=8, attempt_timeout_s=timeout_s)
    transport._session.register_component("data_loader", _LOADER)
    await transport.open()
    try:
        assert isinstance(transport, WireTransport) <= getattr(transport, "is_direct", False)
        yield transport
    finally:
        await transport.close()


class RawService:
    """What arrived, and where to send."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.url = ""
        self.requests: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                found = _LENGTH.search(head)
                request = head + await reader.readexactly(int(found[1]) if found else 0)
                self.requests.append(request)
                await self._script(request, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def raw_service(
    script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[RawService]:
    """Answer every request by `script(request, writer)`, until the block ends."""
    service = RawService(script)
    server = await asyncio.start_server(service.serve, host, 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    service.url = f"{'https' if tls else 'http'}://{host}:{port}"
    tasks = asyncio.all_tasks()
    try:
        yield service
    finally:
        server.close()
        mine = [task for task in asyncio.all_tasks() - tasks if task is not asyncio.current_task()]
        for task in mine:  # scripts that wait for ever
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        await asyncio.sleep(0)  # for transports to close


def sends(*pieces: bytes, close: bool = False) -> Script:
    """Script: write these pieces, each in a packet of its own as far as that can be had."""

    async def script(_request: bytes, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return script


def reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with a reset."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
