"""The emulated service over HTTP: read a request, ask the pure service, write down, answer.

One catch-all coroutine under aiohttp's low-level server: no router, no middleware and no access log,
which would cost more than the service itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from dispatcher.emulator import wire
from dispatcher.emulator.ledger import Ledger
from dispatcher.emulator.reply import Params, Reply, error
from dispatcher.emulator.service import Service
from dispatcher.emulator.state_file import StateFile
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from dispatcher.emulator.config import Config
    from dispatcher.emulator.signatures import Signer

LEDGER_PATH = "/_ledger"
_DISK_TEXT = "the emulator cannot write its state file"
_MAX_OFFSET_S = 1e9  # thirty years; beyond, instants are no dates any more
_SHUTDOWN_S = 0.2  # an endless answer must not hold up the end

_decode = msgspec.json.decode


class _Unreadable(Exception):
    """The body is not what the protocol allows."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.reply = Reply(status, {"message": message}, code)


class _Shell:
    """The server's one handler, with the number of calls in flight."""

    def __init__(
        self,
        service: Service,
        ledger: Ledger,
        *,
        state: StateFile | None = None,
        signer: Signer | None = None,
        clock_offset_s: float = 0.0,
    ) -> None:
        self._service = service
        self._ledger = ledger
        self._state = state
        self._signer = signer
        self._in_flight = 0
        # Unix time that never steps back: a corrected clock must not refill the bucket or revive a token.
        self._epoch_s = time.time() - time.monotonic() + clock_offset_s

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
        refusal: Reply | None = None
        in_flight = self._in_flight
        try:
            body = await _read(request)
            if self._state is not None and self._state.is_broken:
                refusal = error("InternalServerException", _DISK_TEXT)
            elif self._signer is not None:
                refusal = self._refusal(request, body, region)
            if route is None:
                raise _Unreadable(404, "UnknownOperationException", "no operation has this method and path")
            params = {**_members(body), **route[1]} if body else route[1]
        except _Unreadable as unreadable:
            now_s = self._epoch_s + time.monotonic()
            reply = refusal or unreadable.reply
        else:
            now_s = self._epoch_s + time.monotonic()
            reply = self._service.handle(name, params, now_s, region=region, refusal=refusal)
            reply = self._kept(reply)
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

    def _kept(self, reply: Reply) -> Reply:
        """Write down what the call changed, before it is answered; a disk that refuses is a 500."""
        if self._state is None:
            return reply
        try:
            self._state.keep(reply)
        except OSError:
            shown = error("InternalServerException", _DISK_TEXT)
            return replace(reply, status=shown.status, code=shown.code, body=shown.body)
        return reply

    def _refusal(self, request: web.BaseRequest, body: bytes, region: str | None) -> Reply | None:
        assert self._signer is not None
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            lower = name.lower()
            headers[lower] = f"{headers[lower]},{value}" if lower in headers else value
        return self._signer.refusal(
            request.method,
            request.raw_path,
            headers,
            body,
            self._epoch_s + time.monotonic(),
            region or self._service.config.region,
        )

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
    """Return the region in a SigV4 credential scope, or None where there is no readable scope."""
    scope = authorization.partition("Credential=")[2].partition(",")[0].split("/")
    return scope[2] if len(scope) == 5 and scope[2] else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """A running emulator."""

    url: str
    """`http://host:port`, no slash at the end."""
    service: Service
    ledger: Ledger


@contextlib.asynccontextmanager
async def run_emulator(
    config: Config,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    ledger_path: Path | None = None,
    state_path: Path | None = None,
    signer: Signer | None = None,
    clock_offset_s: float = 0.0,
) -> AsyncIterator[Emulator]:
    """Serve until the block ends; port 0 takes a free one.

    With `state_path` the service goes on from where the file ends. With `signer` it verifies signatures.
    Its clock is this machine's, plus `clock_offset_s`. Raises UsageError for a ledger or state file that
    cannot be used, OSError for an address that cannot be bound.
    """
    if not abs(clock_offset_s) <= _MAX_OFFSET_S:  # what is no number is not either
        raise UsageError(f"clock_offset_s {clock_offset_s:g} is more than {_MAX_OFFSET_S:g}")
    service = Service(config)
    with contextlib.ExitStack() as files:
        state = None if state_path is None else StateFile(state_path, config)
        if state is not None:
            files.callback(state.close)
            _restore(service, state, state_path)
        ledger = Ledger(config.fleet, ledger_path)
        files.callback(ledger.close)
        shell = _Shell(service, ledger, state=state, signer=signer, clock_offset_s=clock_offset_s)
        # Without cancellation a call whose client has gone would count as in flight until its latency ends.
        # No operation takes compressed bodies, and one that says so and is not would be a traceback.
        server = web.Server(
            shell,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=75.0,
            auto_decompress=False,
        )
        runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_S)
        try:
            await runner.setup()
            await web.TCPSite(runner, host, port, backlog=1024).start()
            bound: tuple[str, int] = runner.addresses[0][:2]
            shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
            yield Emulator(url=f"http://{shown}:{bound[1]}", service=service, ledger=ledger)
        finally:
            await runner.cleanup()


def _restore(service: Service, state: StateFile, path: Path | None) -> None:
    try:
        service.restore(state.records())
    except ValueError as fault:  # msgspec's errors are ValueErrors, too
        raise UsageError(f"the state {path} is damaged: {fault}") from fault
