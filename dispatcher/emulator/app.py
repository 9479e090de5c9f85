"""The emulated service over HTTP: read a request, ask the pure service, write down, answer.

One catch-all coroutine under aiohttp's low-level server: no router, no middleware and no access log,
which would cost more than the service itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from dispatcher.emulator import wire
from dispatcher.emulator.ledger import Ledger
from dispatcher.emulator.reply import Params, Reply
from dispatcher.emulator.service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from dispatcher.emulator.config import Config

LEDGER_PATH = "/_ledger"
_SHUTDOWN_S = 0.2  # an endless answer must not hold up the end

_decode = msgspec.json.decode


class _Unreadable(Exception):
    """The body is not what the protocol allows."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.reply = Reply(status, {"message": message}, code)


class _Shell:
    """The server's one handler, with the number of calls in flight."""

    def __init__(self, service: Service, ledger: Ledger) -> None:
        self._service = service
        self._ledger = ledger
        self._in_flight = 0
        # Unix time that never steps back: a corrected clock must not refill the bucket or revive a token.
        self._epoch_s = time.time() - time.monotonic()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path.startswith(LEDGER_PATH):
            return await self._show_ledger(request)
        self._in_flight += 1
        try:
            reply = await self._serve(request)
            if reply.delay_s:
                await asyncio.sleep(reply.delay_s)
            return await wire.send(request, reply)
        finally:
            self._in_flight -= 1

    async def _serve(self, request: web.BaseRequest) -> Reply:
        """Read, decide and record; nothing is awaited between the last two."""
        route = self._service.api.route(request.method, request.raw_path)
        region = signed_region(request.headers.get("Authorization", ""))
        name = "Unknown" if route is None else route[0].name
        params: Params = {}
        in_flight = self._in_flight
        try:
            body = await _read(request)
            if route is None:
                raise _Unreadable(404, "UnknownOperationException", "no operation has this method and path")
            params = {**_members(body), **route[1]} if body else route[1]
        except _Unreadable as error:
            now_s = self._epoch_s + time.monotonic()
            reply = error.reply
        else:
            now_s = self._epoch_s + time.monotonic()
            reply = self._service.handle(name, params, now_s, region=region)
        self._ledger.record(
            name,
            reply,
            at_s=now_s,
            region=region or self._service.config.region,
            in_flight=in_flight,
            client_token=params.get("clientToken"),
            targets=params.get("targets"),
        )
        return reply

    async def _show_ledger(self, request: web.BaseRequest) -> web.StreamResponse:
        kind = request.raw_path.removeprefix(LEDGER_PATH).strip("/")
        if request.method != "GET" or kind not in {"", "calls", "tasks"}:
            return web.Response(status=404, text="GET /_ledger, /_ledger/calls or /_ledger/tasks\n")
        if not kind:
            summary = msgspec.json.encode(self._ledger.summary())
            return web.Response(body=summary, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
        await response.prepare(request)
        for block in self._ledger.lines(kind):
            await response.write(block)
        await response.write_eof()
        return response


async def _read(request: web.BaseRequest) -> bytes:
    """Return the body; aiohttp bounds it to 1 MiB."""
    if not request.can_read_body:
        return b""
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        message = "the body is larger than 1048576 bytes"
        raise _Unreadable(413, "RequestEntityTooLargeException", message) from None


def _members(body: bytes) -> Params:
    """Decode a JSON object."""
    try:
        params = _decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise _Unreadable(400, "SerializationException", "the body is not JSON") from None
    if not isinstance(params, dict):
        raise _Unreadable(400, "SerializationException", "the body is not a JSON object")
    return params


def signed_region(authorization: str) -> str | None:
    """Return the region in a SigV4 credential scope, or None where there is no readable scope.

    The signature itself is not verified.
    """
    scope = authorization.partition("Credential=")[2].partition(",")[0].split("/")
    return scope[2] if len(scope) == 5 and scope[2] else None


def create_app(service: Service, ledger: Ledger) -> web.Server:
    """Return the aiohttp server; it must be called inside a running loop."""
    # Without cancellation a call whose client has gone would count as in flight until its latency ends.
    return web.Server(
        _Shell(service, ledger), handler_cancellation=True, access_log=None, keepalive_timeout=75.0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """A running emulator."""

    url: str
    """`http://host:port`, no slash at the end."""
    service: Service
    ledger: Ledger


@contextlib.asynccontextmanager
async def run_emulator(
    config: Config, *, host: str = "127.0.0.1", port: int = 0, ledger_path: Path | None = None
) -> AsyncIterator[Emulator]:
    """Serve until the block ends; port 0 takes a free one.

    Raises UsageError for a ledger file that cannot be opened, OSError for an address that cannot be bound.
    """
    service = Service(config)
    ledger = Ledger(config.fleet, ledger_path)
    runner = web.ServerRunner(create_app(service, ledger), shutdown_timeout=_SHUTDOWN_S)
    try:
        await runner.setup()
        await web.TCPSite(runner, host, port, backlog=1024).start()
        bound: tuple[str, int] = runner.addresses[0][:2]
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        yield Emulator(url=f"http://{shown}:{bound[1]}", service=service, ledger=ledger)
    finally:
        await runner.cleanup()
        ledger.close()
