"""The way to the service, byte by byte: the real wire transport over connections that are only in memory.

Some seeds send through it instead of `network`. The loop asks it for connections; what the transport writes
travels in virtual time to `wire_server`, and what comes back is handed to the protocol as a real loop would:
in order, in the steps of the process that it belongs to, whole, cut, late, reset or never.

The faults are those of `scenario`; which of its forms one takes is drawn from a random stream of its own, so
that all else that a seed decides is the same by either way. Beside what `witness` asks of every call, each is
held here to what only bytes can show: it is written once, by a call that still waits, and in its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
from collections import deque
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohappyeyeballs.impl

from dispatcher.emulator.signatures import Signer
from dispatcher.model import Created, Kind
from dispatcher.transport import aiobotocore
from tests.simulation.loop import PROCESS
from tests.simulation.wire_server import Server
from tests.simulation.witness import CREATED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Context

    from dispatcher.model import Answer
    from tests.simulation.witness import Departure
    from tests.simulation.world import Process, World

CONNECTS = ("refused", "no such name", "never connects")
"""What befalls a call that finds no service."""
EVENTS = ("next address", "reused", "idle end", "half open", "met the end", "aborted", "skewed")
"""What comes about by itself: no call's fault."""
ADDRESSES = ("2001:db8::1", "192.0.2.1")
CALL: ContextVar[Call | None] = ContextVar("CALL", default=None)
"""The call that the running code makes."""


@contextlib.contextmanager
def installed(world: World) -> Iterator[None]:
    """Give the loop of a seed that uses it its network; no session of the SDK is made."""
    if world.wire is None:
        yield
        return
    sockets, session = aiohappyeyeballs.impl.socket, aiobotocore.AioSession
    aiohappyeyeballs.impl.socket = SimpleNamespace(socket=SimSocket)
    aiobotocore.AioSession = lambda **_: None
    world.loop.network = world.wire
    try:
        yield
    finally:
        aiohappyeyeballs.impl.socket, aiobotocore.AioSession = sockets, session


@dataclass(eq=False)
class Call:
    """One attempt, and what became of its bytes."""

    process: Process
    token: str
    targets: tuple[str, ...]
    timeout_s: float
    number: int = 0
    fault: str | None = None
    form: str = "-"
    """Which form of its fault it took."""
    departure: Departure | None = None
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    out_s: float = 0.0
    """When, after its departure, it is to be whole at the service."""
    back_s: float = 0.0
    writes: int = 0
    made: bool = False
    """Whether the service made or found its task."""
    is_lost: bool = False
    """Whether no whole answer was sent in its time."""
    waits: int = 0

    @property
    def is_answered(self) -> bool:
        """Whether a whole answer came in its time: only then its connection is of more use."""
        answer = None if self.departure is None else self.departure.answer
        return answer is not None and answer.code != "Timeout" and not self.is_lost

    @property
    def due_s(self) -> float:
        """Until when it may wait for an answer."""
        return (0.0 if self.departure is None else self.departure.at_s) + self.timeout_s


class WireNetwork:
    """Names, addresses and connections of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        rng = random.Random(f"wire-world-{world.scenario.seed}")
        self.addresses = rng.choice((ADDRESSES, ADDRESSES[1:]))
        self.dead = {self.addresses[0]: rng.choice(("refused", "silent"))} if rng.random() < 0.2 else {}
        if len(self.addresses) == 1:
            self.dead = {}
        self.idle_s = rng.choice((3.0, 20.0, 60.0))
        """How long the service keeps a connection that nobody uses."""
        self.links: list[Link] = []
        self.serial = 0
        self._signers: dict[str | None, Signer] = {}

    def signer(self, token: str | None) -> Signer:
        """Return what verifies requests with session token `token`: whatever was issued counts."""
        if token not in self._signers:
            self._signers[token] = Signer(access_key="AKIASIM", secret_key="simulated", session_token=token)
        return self._signers[token]

    def count(self, what: str) -> None:
        self.world.count("wire", what)

    # A call's life

    def departs(self, call: Call) -> None:
        """Note that a call was signed, and decide what befalls it."""
        world = self.world
        call.number, call.fault = world.next_fault()
        call.departure = world.witness.departed(call.process, call.token, call.targets)
        seed = world.scenario.seed
        latencies = random.Random(f"call-{seed}-{call.number}")
        call.out_s, call.back_s = (world.scenario.latency_s * latencies.expovariate(2.0) for _ in range(2))
        if call.fault == "late_arrival":
            call.out_s = latencies.uniform(0.5, 0.999) * call.timeout_s
        call.out_s = min(call.out_s, 0.999 * call.timeout_s)
        call.rng = random.Random(f"wire-call-{seed}-{call.number}")
        if call.fault == "refused":
            call.form = call.rng.choice(CONNECTS)
            for link in self.links[:]:
                if link.process is call.process and link.is_idle:
                    link.ends_now()  # a service that refuses has ended what was idle
            self.links = [link for link in self.links if not link.is_closing()]

    def answered(self, call: Call, answer: Answer) -> None:
        """Hold an answer against the bytes."""
        departure, witness = call.departure, self.world.witness
        assert departure is not None
        witness.answered(departure, answer)
        name = f"{call.process.name} call {call.number} {call.token[:8]}"
        if answer.kind is Kind.UNREACHABLE and call.writes:
            witness.breaks(4, f"{name} was written, and counts as never sent")
        if call.made and CREATED[answer.kind] is Created.NO:
            witness.breaks(4, f"{name} has its task, and counts as not created: {answer.kind.value}")
        if call.is_lost and answer.kind is not Kind.NO_REPLY:
            witness.breaks(4, f"{name} got no whole answer, and counts as {answer.kind.value}")
        if answer.kind is Kind.ACCEPTED:
            task = self.world.service.tasks.get(answer.task_id or "")
            if task is None or task.client_token != call.token:
                witness.breaks(3, f"{name} counts as accepted by another call's answer")

    def written(self, call: Call | None) -> None:
        """Note that a call's bytes leave."""
        witness = self.world.witness
        if call is None or call.departure is None or call.departure.answer is not None:
            witness.breaks(5, "bytes were written that no waiting call stands for")
            return
        call.writes += 1
        name = f"{call.process.name} call {call.number} {call.token[:8]}"
        if call.writes > 1:
            witness.breaks(5, f"{name} was written {call.writes} times with one permit")
        if self.world.true_s() - call.departure.true_s >= call.timeout_s:
            witness.breaks(1, f"{name} was written after its time was up")

    def watch(self, call: Call) -> None:
        """See that a call which gets no answer is given up in time, as far as its process can run."""
        world, process = self.world, call.process
        due_s = max(call.due_s, world.loop.virtual_s) + 1.0

        def look() -> None:
            if call.departure is None or call.departure.answer is not None or process.is_over:
                return
            is_held = process in world.loop._frozen or world.loop.virtual_s > due_s + 0.001
            call.waits = 0 if is_held else call.waits + 1
            if call.waits > 1:
                witness = world.witness
                witness.breaks(6, f"{process.name} call {call.number} waits beyond its time")
                return
            self.watch(call)

        world.later(due_s - world.loop.virtual_s, look)

    # What the loop is asked for

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        """Be the resolver."""
        call = CALL.get()
        await asyncio.sleep(0.005)
        if call is not None and call.form == "no such name":
            self.count("no such name")
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            {"family": socket.AF_INET6 if ":" in host else socket.AF_INET, "proto": 6, "host": host,
             "port": port}
            for host in self.addresses
        ]  # fmt: skip

    async def connect(self, address: tuple[str, int]) -> None:
        """Be the handshake."""
        call, dead = CALL.get(), self.dead.get(address[0])
        if call is not None and call.form == "never connects":
            self.count("never connects")
            dead = "silent"
        elif call is not None and call.fault == "refused":
            self.count("refused")
            dead = "refused"
        elif dead is not None:
            self.count("next address")
        if dead == "silent":
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0.001 if call is None else min(call.back_s, 0.1 * call.timeout_s))
        if dead == "refused":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    async def connection(self, factory: Callable[[], asyncio.Protocol]) -> tuple[Link, asyncio.Protocol]:
        """Join a protocol to the service."""
        loop, protocol = asyncio.get_running_loop(), factory()
        link = Link(self, protocol)
        made = loop.create_future()

        def begin() -> None:
            protocol.connection_made(link)
            if not made.done():
                made.set_result(None)

        loop.call_soon(begin)
        await made
        self.links = [*(link for link in self.links if not link.is_closing()), link]
        return link, protocol


class SimSocket:
    """A socket as far as one is needed before there is a connection."""

    def __init__(self, family: int = 0, type: int = 0, proto: int = 0) -> None:  # noqa: A002
        self.family, self.type, self.proto = family, type, proto

    def setblocking(self, _flag: bool) -> None: ...

    def close(self) -> None: ...


class Link(asyncio.Transport):
    """A process's end of one connection, as a loop's transport is."""

    def __init__(self, network: WireNetwork, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._network = network
        self._protocol = protocol
        self._context: Context = copy_context()
        self.process = PROCESS.get()
        self.server = Server(network, self)
        self._last: Call | None = None
        self._outbox: deque[tuple[bytes, Call]] = deque()
        self._inbox: deque[tuple[str, bytes]] = deque()
        """Both in order, though what is due at once may run in any."""
        self._last_s = 0.0
        self._slept_s = network.world.slept_s
        self._is_closing = False

    @property
    def is_idle(self) -> bool:
        return self._last is None or (self._last.departure is not None and self._last.is_answered)

    # What the protocol asks for

    def write(self, data: Any) -> None:
        network, world = self._network, self._network.world
        call = CALL.get()
        network.written(call)
        if self._is_closing or call is None or call.departure is None:
            return
        if self._slept_s != world.slept_s and self.is_idle:
            self.server.is_closed = True  # while the machine slept, and it was not told
            network.count("half open")
        self._slept_s = world.slept_s
        last, self._last = self._last, call
        if last is not None and not last.is_answered:
            world.witness.breaks(3, f"call {call.number} follows one without an answer on its connection")
        if call.writes == 1 and self.server.served:
            network.count("reused")
        left_s = max(0.0, call.departure.at_s + call.out_s - world.loop.virtual_s)
        data, cut = bytes(data), call.rng.randrange(1, len(data))
        pieces = [data[:cut], data[cut:]] if call.rng.random() < 0.2 else [data]
        for number, piece in enumerate(pieces, 1):
            delay_s = left_s * number / len(pieces)
            self._outbox.append((piece, call))
            world.on_its_way(delay_s, lambda: self.server.arrives(*self._outbox.popleft()))

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._lose(None)

    def abort(self) -> None:
        if not self._is_closing:
            self._network.count("aborted")
        self._lose(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def _lose(self, error: Exception | None) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._network.world.loop.call_soon(self._protocol.connection_lost, error, context=self._context)

    # What comes from the service

    def brings(self, delay_s: float, what: str, data: bytes = b"") -> None:
        """Let something reach the process after a while, and after all that was sent before it."""
        loop = self._network.world.loop
        self._last_s = max(self._last_s, loop.virtual_s + delay_s)
        self._inbox.append((what, data))
        loop.call_at(self._last_s, self._take, context=self._context)

    def _take(self) -> None:
        what, data = self._inbox.popleft()
        if self._is_closing:
            return
        if what == "data":
            self._protocol.data_received(data)
        elif what == "end":
            self.ends_now()
        else:
            self._lose(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))

    def ends_now(self) -> None:
        """Be at the end of what the service sends."""
        self.server.is_closed = True
        if not self._is_closing and not self._protocol.eof_received():
            self.close()
