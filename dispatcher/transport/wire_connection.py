"""One HTTP/1.1 connection that carries one POST at a time, and says honestly how each of them ended.

What the service sends is parsed by llhttp (httptools). A request is never sent twice here, nor a second one
before the first is answered: whoever calls gets a `Reply`, or a `Broken` with the reason, and decides.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, cast

import httptools

from dispatcher.transport.base import MAX_BODY_BYTES

MAX_HEAD_BYTES = 65_536
"""What of an answer may be no body: status line, headers, interim answers, chunk sizes, trailers."""


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Broken(NamedTuple):
    """No whole answer came, and whether the request was read nobody knows."""

    code: str
    why: str


_NO_ANSWER = Broken("ConnectionClosed", "the connection was closed without an answer")
_CUT_SHORT = Broken("IncompleteAnswer", "the connection was closed within the answer")
_TOO_LARGE = Broken("AnswerTooLarge", f"the answer is larger than {MAX_BODY_BYTES} bytes")
_GARBAGE = Broken("NoHttp", "what came back is not HTTP")


class Connection(asyncio.Protocol):
    """A connection to the service: idle, or with one request under way."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop  # to ask for the running one is a system call each time (Python 3.11)
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._asked: asyncio.Future[Reply | Broken] | None = None
        self._is_dead = False
        self.idle_since_s = 0.0
        self._fresh()

    def _fresh(self) -> None:
        """Forget the last answer."""
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._came = self._came_body = 0
        self._ends_with_the_connection = False
        self._is_whole = False

    def ask(self, request: bytes) -> asyncio.Future[Reply | Broken]:
        """Send a request; the future gets its end, and is never set to an exception."""
        assert self._asked is None
        assert self._transport is not None
        self._asked = asked = self._loop.create_future()
        self._transport.write(request)
        return asked

    @property
    def is_usable(self) -> bool:
        """Whether the other side has not ended it, as far as can be known."""
        return not self._is_dead

    def abort(self, why: Broken = _NO_ANSWER) -> None:
        """Close it now; the request under way, if any, ends as `why`."""
        self._is_dead = True
        if self._transport is not None:
            self._transport.abort()
        self._end(why)

    # What the loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        if self._is_dead:  # its time was up already
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._asked is None or self._parser is None:
            self.abort()  # nobody asked: a 408, or the rest of what was too long
            return
        self._came += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # After a whole answer it is only the connection that is of no more use.
            self._is_dead = True
            if not self._is_whole:
                self.abort(_GARBAGE)
                return
        if self._is_whole:
            self._reply()
        elif self._is_too_large:
            self.abort(_TOO_LARGE)

    @property
    def _is_too_large(self) -> bool:
        """Whether the body is, or what is no body: interim answers, a head or chunk lines without end."""
        return self._came_body > MAX_BODY_BYTES or self._came - self._came_body > MAX_HEAD_BYTES

    def eof_received(self) -> bool:
        """Nothing more will come. False closes our half too."""
        self._is_dead = True
        if self._asked is not None and self._ends_with_the_connection:
            self._reply()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._is_dead = True
        if error is None and self._asked is not None and self._ends_with_the_connection:
            self._reply()
        elif error is not None:
            self._end(Broken(type(error).__name__, f"the connection broke: {error}"))
        else:
            self._end(_CUT_SHORT if self._came else _NO_ANSWER)
        self._parser = self._transport = None  # they know us: a circle

    # What the parser tells

    def on_message_begin(self) -> None:
        if self._is_whole:
            self._is_dead = True  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_whole:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._is_whole:
            return
        assert self._parser is not None
        if self._parser.should_keep_alive():  # nearly always; and what ends with the connection does not
            self._ends_with_the_connection = False
            return
        framed = any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._headers)
        status = self._parser.get_status_code()
        self._ends_with_the_connection = not framed and status >= 200 and status not in (204, 304)

    def on_body(self, body: bytes) -> None:
        if not self._is_whole:
            self._pieces.append(body)
            self._came_body += len(body)

    def on_message_complete(self) -> None:
        if self._is_whole:
            return
        assert self._parser is not None
        if self._parser.get_status_code() < 200:  # "100 Continue": the answer is still to come
            self._headers.clear()
            return
        self._is_whole = True
        self._status = self._parser.get_status_code()
        self._is_dead = self._is_dead or not self._parser.should_keep_alive()

    def _reply(self) -> None:
        """Hand the answer over."""
        if not self._is_whole:  # it ended with the connection
            assert self._parser is not None
            self._status = self._parser.get_status_code()
        if self._came_body > MAX_BODY_BYTES:
            self.abort(_TOO_LARGE)
            return
        pieces = self._pieces
        reply = Reply(self._status, self._headers, pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self._fresh()
        self._end(reply)
        if self._is_dead and self._transport is not None:
            self._transport.close()

    def _end(self, end: Reply | Broken) -> None:
        asked, self._asked = self._asked, None
        if asked is not None and not asked.done():
            asked.set_result(end)
