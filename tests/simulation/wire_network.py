"""The wire transport in the simulation: its own pool and connections, over bytes that never meet a socket.

What befalls a call is what befalls it in `network.py`, played as bytes: a connection that is refused, or that
ends before, within or after the answer; an answer in pieces, by chunks, after a "100 Continue", with the
connection's end, or with more behind it. `Peer` is the service's side, and what the pool takes for a socket.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from contextvars import copy_context
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import httptools
from botocore.credentials import ReadOnlyCredentials

from dispatcher.transport.sigv4 import Signer
from dispatcher.transport.wire import WireTransport
from dispatcher.transport.wire_connection import Connection
from dispatcher.transport.wire_pool import Origin, Pool
from tests.simulation.network import NOT_SERVED, REFUSALS, SimTransport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.checkpoint.base import Plan
    from dispatcher.model import Answer
    from tests.simulation.world import Process, World

HOST = "simulated"
ENDS = ("refused", "connected", "used", "used again", "reset")
STYLES = ("whole", "drip", "chunked", "continued", "closing", "unframed", "overlong")
"""How an answer comes."""
CUTS = ("reset", "eof")
"""How a connection ends within an answer."""


@dataclass(slots=True)
class Call:
    """One attempt: what befalls it, and until when it may arrive."""

    number: int
    fault: str | None
    rng: random.Random
    due_s: float
    is_sent: bool = False


class Peer:
    """The service's side of one connection; to the connection it is asyncio's transport."""

    def __init__(self, link: WireLink, connection: Connection) -> None:
        self._link = link
        self._connection = connection
        self._context = copy_context()  # the process's: what comes waits while it is stopped
        self._inbox: deque[bytes | Exception | None] = deque()
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._is_closed = False
        self.is_busy = self.is_used = False

    # As a transport

    def write(self, data: bytes) -> None:
        if not self._is_closed:
            self._parser.feed_data(data)

    def abort(self) -> None:
        self._close(None)

    close = abort

    def _close(self, error: Exception | None) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._soon(lambda: self._connection.connection_lost(error))

    def _soon(self, work: Any) -> None:
        asyncio.get_running_loop().call_soon(work, context=self._context)

    # As the parser's protocol

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._link.asked(self, json.loads(self._body))

    # As the service

    def send(self, item: bytes | Exception | None) -> None:
        """Let bytes, an error or the end (None) reach the process, in order."""
        self._inbox.append(item)
        self._soon(self._take)

    def _take(self) -> None:
        item = self._inbox.popleft()
        if self._is_closed:
            return
        if isinstance(item, bytes):
            self._connection.data_received(item)
        elif item is not None:
            self._close(item)
        elif not self._connection.eof_received():
            self._close(None)


class _Pool(Pool):
    """Connections to a `Peer`."""

    def __init__(self, link: WireLink, timeout_s: float) -> None:
        super().__init__(Origin(HOST, 80, None), timeout_s=timeout_s)
        self._link = link

    async def _connect(self) -> Connection:
        return await self._link.connect()


class _Wire(WireTransport):
    """The transport as `open` leaves it: with one key, and without a session of the SDK's."""

    def __init__(self, link: WireLink, plan: Plan, timeout_s: float) -> None:
        key = ReadOnlyCredentials("simulated", "simulated", None)
        used = SimpleNamespace(frozen=key)
        self._plan = plan
        self._constant = {"command": {plan.command: {}}}
        self._keeper = cast(
            "Any", SimpleNamespace(is_fresh=True, use=lambda: used, reject=lambda _used: None)
        )
        self._auth = cast("Any", SimpleNamespace(skew_s=0.0))
        self._head = f"POST /task HTTP/1.1\r\nHost: {HOST}\r\n".encode()
        self._signer = Signer(host=HOST, path="/task", headers={}, region=plan.region, service="simulated")
        self._before, self._between = self._body_parts()
        self.pool = self._pool = _Pool(link, timeout_s)


class WireLink(SimTransport):
    """One process's wire to the simulated service."""

    def __init__(self, world: World, process: Process, plan: Plan, timeout_s: float) -> None:
        super().__init__(world, process, plan, timeout_s)
        self._wire = _Wire(self, plan, timeout_s)
        self._calls: dict[str, Call] = {}
        self._refused: set[asyncio.Task[Any] | None] = set()
        self._peers: list[Peer] = []

    async def _attempt(self, number: int, fault: str | None, targets: Sequence[str], token: str) -> Answer:
        due_s = asyncio.get_running_loop().time() + 0.999 * self._timeout_s
        rng = random.Random(f"wire-{self._world.scenario.seed}-{number}")
        self._calls[token] = Call(number, fault, rng, due_s)
        task = asyncio.current_task()
        if fault == "refused":
            self._refused.add(task)
            for peer in self._peers:  # a service that refuses has ended what was idle
                if not peer.is_busy:
                    peer.send(None)
            await asyncio.sleep(0.001)
        try:
            return await self._wire.create_task(targets, token)
        finally:
            self._refused.discard(task)
            del self._calls[token]

    async def connect(self) -> Connection:
        """Open a connection; raises ConnectionRefusedError where that is the call's fault."""
        world = self._world
        await asyncio.sleep(min(world.scenario.latency_s, 0.1))
        if asyncio.current_task() in self._refused:
            world.count("wire", "refused")
            raise ConnectionRefusedError(111, "Connection refused")
        world.count("wire", "connected")
        connection = Connection()
        peer = Peer(self, connection)
        self._peers.append(peer)
        connection.connection_made(cast("Any", peer))
        return connection

    def asked(self, peer: Peer, params: dict[str, Any]) -> None:
        """A request was written: serve it when it arrives."""
        world, token = self._world, params["clientToken"]
        call = self._calls.get(token)
        if call is None or call.is_sent:
            world.witness.breaks(1, f"call of {token[:8]} was written to the wire again")
            return
        if peer.is_busy:
            world.witness.breaks(3, f"call {call.number} shares its connection with one that is not answered")
        world.count("wire", "used again" if peer.is_used else "used")
        call.is_sent = peer.is_busy = peer.is_used = True
        loop = asyncio.get_running_loop()
        out_s = world.scenario.latency_s * call.rng.expovariate(2.0)
        if call.fault == "late_arrival":
            out_s = call.rng.uniform(0.5, 0.999) * self._timeout_s
        reply: asyncio.Future[tuple[int, Any, str | None]] = loop.create_future()
        reply.add_done_callback(lambda done: self._respond(peer, call, *done.result()))
        serve_s = max(0.0, min(out_s, call.due_s - loop.time()))
        world.on_its_way(serve_s, lambda: self._serve(reply, call.fault, params["targets"], token))

    def _respond(self, peer: Peer, call: Call, status: int, body: Any, code: str | None) -> None:
        """Send an answer, or what is left of it, on its way back."""
        world, rng, fault = self._world, call.rng, call.fault
        back_s = world.scenario.latency_s * rng.expovariate(2.0)
        items: list[bytes | Exception | None]
        if fault in ("reset_before", "vanish"):
            world.count("wire", "reset")
            items = [ConnectionResetError(104, "Connection reset by peer")]
        else:
            style, answer = _answer(status, body, code, fault, rng)
            if fault == "lost_reply":
                style, cut = rng.choice(CUTS), rng.randrange(len(answer))
                end = ConnectionResetError(104, "reset") if style == "reset" else None
                items = [answer[:cut], end] if cut else [end]
            elif style == "drip":
                step = max(1, len(answer) // rng.randint(2, 12))
                items = [answer[n : n + step] for n in range(0, len(answer), step)]
            else:
                items = [answer, None] if style in ("closing", "unframed") else [answer]
            world.count("wire", style)
        self._send(peer, items, back_s)

    def _send(self, peer: Peer, items: list[bytes | Exception | None], after_s: float) -> None:
        def go() -> None:
            first, *rest = items
            if not rest:
                peer.is_busy = False
            peer.send(first)
            if rest:
                self._send(peer, rest, 0.0001)

        self._world.later(after_s, go)

    async def close(self) -> None:
        self._wire.pool.close()


def _answer(
    status: int, body: Any, code: str | None, fault: str | None, rng: random.Random
) -> tuple[str, bytes]:
    """Return how an answer comes, and its bytes."""
    content = json.dumps(body).encode()
    if fault in REFUSALS and (fault in NOT_SERVED or status == 200):
        status, code, message = REFUSALS[fault]
        content = json.dumps({"message": message}).encode() if code else b"<html>no</html>"
    elif fault == "truncated":
        content = content[: len(content) // 2]
    elif fault == "empty_200":
        content = b""
    style = rng.choice(STYLES)
    head = f"HTTP/1.1 {status} .\r\nContent-Type: application/json\r\n"
    head += f"x-amzn-ErrorType: {code}\r\n" if code else ""
    if style == "chunked":
        cut = len(content) // 2
        parts = [part for part in (content[:cut], content[cut:]) if part]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        return style, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"
    if style == "unframed":
        return style, f"{head}\r\n".encode() + content
    head += "Connection: close\r\n" if style == "closing" else ""
    whole = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    if style == "continued":
        return style, b"HTTP/1.1 100 Continue\r\n\r\n" + whole
    return style, whole + whole if style == "overlong" else whole
