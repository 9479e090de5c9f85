"""How a reply looks on the wire: the rest-json forms, and every form of misbehaviour."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
from typing import TYPE_CHECKING

import msgspec
from aiohttp import hdrs, web

from dispatcher.emulator.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dispatcher.emulator.reply import Reply

DRIP_INTERVAL_S = 0.3

_JSON = "application/json"
_encode = msgspec.json.Encoder().encode
_request_numbers = itertools.count(int.from_bytes(os.urandom(12), "big"))
_PADDING = b"a" * 65536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


async def send(request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
    """Answer the request as the reply says; a dropped connection returns an answer nobody gets."""
    if reply.status == 0:
        return _hang_up(request, is_reset=reply.fault in {Fault.RESET_BEFORE, Fault.OUTAGE})
    if not reply.body and reply.code is None and reply.fault in _BARE:
        return _bare(reply)
    stream = _STREAMS.get(reply.fault) if reply.fault is not None else None
    if stream is None:
        return _modelled(reply)
    try:
        return await stream(request, reply)
    except ConnectionError:  # the client gave up, as it should
        return _hang_up(request, is_reset=False)


def _headers(reply: Reply) -> dict[str, str]:
    number = f"{next(_request_numbers):032x}"
    request_id = f"{number[:8]}-{number[8:12]}-{number[12:16]}-{number[16:20]}-{number[20:]}"
    headers = {"x-amzn-RequestId": request_id, hdrs.CONTENT_TYPE: _JSON}
    if reply.code is not None:
        headers["x-amzn-ErrorType"] = reply.code
    return headers


def _modelled(reply: Reply) -> web.Response:
    response = web.Response(status=reply.status, body=_encode(reply.body), headers=_headers(reply))
    if reply.status == 413:
        response.force_close()  # the rest of the body is still on its way
    return response


_BARE = {Fault.BARE_429, Fault.BARE_503, Fault.REDIRECT, Fault.OUTAGE}
_TITLES = {307: "Temporary Redirect", 429: "Too Many Requests", 503: "Service Unavailable"}


def _bare(reply: Reply) -> web.Response:
    """Answer as a proxy in front of the service does: no code, no request id, HTML."""
    title = f"{reply.status} {_TITLES[reply.status]}"
    page = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\r\n"
    headers = {hdrs.LOCATION: "/elsewhere"} if reply.fault is Fault.REDIRECT else None
    return web.Response(status=reply.status, text=page, content_type="text/html", headers=headers)


def _hang_up(request: web.BaseRequest, *, is_reset: bool) -> web.Response:
    """Close the connection without an answer: an RST where `is_reset`, else a FIN."""
    transport = request.transport
    if transport is not None:
        known = transport.get_extra_info("socket")
        if is_reset and known is not None:
            # A duplicate shares its options with the original, and works under every event loop.
            with socket.socket(fileno=os.dup(known.fileno())) as duplicate:
                duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()
    return web.Response()


async def _truncated(request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
    """Cut the body short: with an honest length, or with one that promises the rest."""
    body = _encode(reply.body)
    half = body[: len(body) // 2]
    is_honest = reply.chance < 0.5
    response = web.StreamResponse(status=reply.status, headers=_headers(reply))
    response.content_length = len(half) if is_honest else len(body)
    await response.prepare(request)
    await response.write(half)
    if is_honest:
        await response.write_eof()
    elif request.transport is not None:
        request.transport.close()  # flushes what was written
    return response


async def _endless(request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
    """Send a JSON string that never ends, as fast as the client reads."""
    response = web.StreamResponse(status=reply.status, headers=_headers(reply))
    await response.prepare(request)
    await response.write(_encode(reply.body)[:-1] + b',"padding":"')
    while True:
        await response.write(_PADDING)


async def _drip(request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
    """Send the whole body one byte at a time: every read succeeds, the call takes half a minute."""
    body = _encode(reply.body)
    response = web.StreamResponse(status=reply.status, headers=_headers(reply))
    response.content_length = len(body)
    await response.prepare(request)
    for position in range(len(body)):
        await response.write(body[position : position + 1])
        await asyncio.sleep(DRIP_INTERVAL_S)
    await response.write_eof()
    return response


_STREAMS: dict[Fault, Callable[[web.BaseRequest, Reply], Awaitable[web.StreamResponse]]] = {
    Fault.TRUNCATED: _truncated,
    Fault.ENDLESS: _endless,
    Fault.DRIP: _drip,
}
