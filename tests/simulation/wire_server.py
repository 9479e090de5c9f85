"""The service's end of a connection: requests read by a real parser, answers in every shape that HTTP allows.

What is answered comes from the emulator's pure core, as by `network`; how it looks is played here.
"""

from __future__ import annotations

import email.utils
import json
from typing import TYPE_CHECKING, Any

import httptools

from dispatcher.emulator.app import signed_region
from dispatcher.transport.base import MAX_BODY_BYTES
from tests.simulation.network import NOT_SERVED, REFUSALS

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from tests.simulation.wire_network import Call, Link, WireNetwork

BEFORE = ("reset on arrival", "end on arrival", "request cut", "met the end")
"""How a call may be lost before it is served."""
AFTER = ("reset without a byte", "end without a byte", "cut in the head", "cut in the body", "cut in a chunk",
         "no HTTP", "too large")  # fmt: skip
"""How the answer of a served call may be lost."""
SILENT = ("silence", "drip", "interim for ever", "late answer")
"""How a call may get no answer in its time."""
SHORT = ("half with its length", "half until the end")
"""How half of a body may look like a whole one."""
WHOLE = ("one piece", "pieces", "byte by byte", "chunked", "announced end", "until the end", "interim",
         "HTTP/1.0", "more after it", "end after it")  # fmt: skip
"""How a whole answer may come."""
HANGS_UP_S = 75.0
"""After so long a call that was left without an answer gets the connection's end."""
_PAGE = b"<html><head><title>%d</title></head><body><h1>%d</h1></body></html>\r\n"
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


class Server:
    """Reads requests off one connection, and plays what befalls each of them."""

    def __init__(self, network: WireNetwork, link: Link) -> None:
        self._network = network
        self._world = network.world
        self._link = link
        self._parser = httptools.HttpRequestParser(self)
        self._fresh()
        self._call: Call | None = None
        self.served = 0
        self.is_closed = False
        """Whether it would refuse whatever still comes."""
        self._idle_since_s = 0.0
        self._is_timed = False

    def _fresh(self) -> None:
        self._path, self._headers, self._body = b"", {}, b""

    def arrives(self, data: bytes, call: Call) -> None:
        """Take bytes of a call."""
        if call.fault == "reset_before" and call.form == "-":
            call.form = call.rng.choice(BEFORE)
            self.is_closed |= call.form == "met the end"
        if self.is_closed:
            self._network.count("met the end")
            call.is_lost = True
            self._link.brings(call.back_s, "reset")
            return
        if call.form == "request cut":
            self._network.count(call.form)
            self._drop(call)
            return
        self._call = call
        self._parser.feed_data(data)

    # What the parser tells

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        call, path, headers, body = self._call, self._path.decode(), self._headers, self._body
        assert call is not None
        self._fresh()
        self._call = None
        self._idle_since_s = self._world.loop.virtual_s
        self.served += 1
        self._play(call, path, headers, body)
        self._watch_idle()

    def _watch_idle(self) -> None:
        """Close the connection once nobody has used it for a while."""
        if not (self._is_timed or self.is_closed):
            self._is_timed = True
            left_s = self._idle_since_s + self._network.idle_s - self._world.loop.virtual_s
            self._world.later(max(0.01, left_s), self._look_at_idle)

    def _look_at_idle(self) -> None:
        self._is_timed = False
        if self._link.is_closing() or self._world.is_calm:
            return
        if self._call is not None or self._world.loop.virtual_s < self._idle_since_s + self._network.idle_s:
            self._watch_idle()
            return
        self._network.count("idle end")
        self._end(self._world.scenario.latency_s, "end")

    # What befalls a call

    def _play(self, call: Call, path: str, headers: dict[str, str], body: bytes) -> None:
        fault = call.fault
        if fault == "reset_before":
            self._network.count(call.form)
            self._drop(call)
            return
        status, shown, code = 0, {}, None
        if fault not in NOT_SERVED:
            status, shown, code = self._serve(call, path, headers, body)
        if fault == "vanish":
            self._world.vanished.add(call.token)
        if fault in ("lost_reply", "vanish"):
            self._lose(call, self._shaped(call, status, shown, code))
        elif fault in ("timeout", "late_arrival"):
            self._keep_silent(call, self._shaped(call, status, shown, code))
        elif fault in REFUSALS and (fault in NOT_SERVED or status == 200):
            status, code, message = REFUSALS[fault]
            reply = self._shaped(call, status, {"message": message}, code)
            if fault not in NOT_SERVED and call.rng.random() < 0.3:
                self._lose(call, reply, AFTER[3:5])  # half of a refusal must not pass for another one
            else:
                self._answer(call, reply)
        elif fault in ("truncated", "empty_200") and status == 200:
            self._shorten(call, self._shaped(call, status, shown, code), is_empty=fault == "empty_200")
        else:
            self._answer(call, self._shaped(call, status, shown, code))

    def _serve(
        self, call: Call, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, Any], str | None]:
        """Let the service's core decide on what came, and on nothing else."""
        world = self._world
        params = json.loads(body)
        token, region = params["clientToken"], signed_region(headers.get("authorization", ""))
        found = world.service.api.route("POST", path)
        if found is None or token != call.token or tuple(params["targets"]) != call.targets:
            world.witness.breaks(0, f"what arrived is not call {call.number}: {path} {params}")
            return 400, {"message": "not understood"}, "SerializationException"
        if token in world.vanished:
            return 404, {"message": "resource not found: the device"}, "ResourceNotFoundException"
        world.witness.arrived(call.process, token)
        signer = self._network.signer(headers.get("x-amz-security-token"))
        refusal = signer.refusal("POST", path, headers, body, world.true_s(), region or "")
        if refusal is not None:
            self._network.count("skewed")
            if not str(refusal.body).startswith("{'message': 'Signature "):
                world.witness.breaks(0, f"call {call.number} is signed badly: {refusal.body}")
        got = world.service.handle(found[0].name, params, world.true_s(), region=region, refusal=refusal)
        world.witness.served(token, got)
        call.made = call.made or got.task is not None
        return got.status, dict(got.body), got.code

    def _shaped(self, call: Call, status: int, shown: dict[str, Any], code: str | None) -> Shaped:
        """Put an answer into headers and a body, as the service does, or as a proxy that has no code."""
        headers = {"Date": email.utils.formatdate(self._world.true_s(), usegmt=True)}
        if code is None and status != 200:
            headers["Content-Type"], body = "text/html", _PAGE % (status, status)
            if status == 307:
                headers["Location"] = "/elsewhere"
        else:
            headers["Content-Type"], body = "application/json", json.dumps(shown).encode()
            headers["x-amzn-RequestId"] = f"request-{call.number}"
            if code is not None:
                more = call.rng.choice(("", ":http://internal.amazon.com/coral/"))
                headers["x-amzn-ErrorType"] = code + more
        return Shaped(status, headers, body)

    def _end(self, delay_s: float, how: str) -> None:
        self.is_closed = True
        self._link.brings(delay_s, how)

    def _drop(self, call: Call) -> None:
        call.is_lost = True
        self._end(call.back_s, "end" if call.form == "end on arrival" else "reset")

    def _lose(self, call: Call, reply: Shaped, forms: Sequence[str] = AFTER) -> None:
        call.form = form = call.rng.choice(forms)
        call.is_lost = True
        self._network.count(form)
        how = call.rng.choice(("end", "reset"))
        if form.endswith("without a byte"):
            self._end(call.back_s, form.partition(" ")[0])
            return
        if form == "no HTTP":
            sent = b"SSH-2.0-OpenSSH_9.6\r\n"
        elif form == "too large":
            head = reply.head(f"Content-Length: {2 * MAX_BODY_BYTES}")
            sent = head + b'{"padding":"' + bytes(MAX_BODY_BYTES).replace(b"\0", b"a")
        elif form == "cut in a chunk":
            whole = reply.chunked(call.rng)
            sent = whole[: -call.rng.randint(1, len(reply.body) + 5)]
        else:
            head = reply.head(f"Content-Length: {len(reply.body)}")
            in_body = form == "cut in the body"
            cut = call.rng.randrange(len(reply.body)) if in_body else -call.rng.randrange(1, len(head))
            sent = head + reply.body[:cut] if in_body else head[:cut]
        self._send(call, [sent])
        self._end(call.back_s + self._gap_s(call), how)

    def _keep_silent(self, call: Call, reply: Shaped) -> None:
        call.form = form = call.rng.choice(SILENT)
        call.is_lost = form != "late answer"  # a process that stands still may find it in its time
        self._network.count(form)
        self._network.watch(call)
        left_s = max(0.0, call.due_s - self._world.loop.virtual_s)
        if form == "late answer":
            pieces, step_s = [reply.framed()], left_s + call.rng.choice((0.001, 0.01, 0.1, 1.0))
        elif form == "drip":
            whole = reply.framed()
            pieces, step_s = [whole[n : n + 1] for n in range(min(40, len(whole) - 1))], left_s / 20
        elif form == "interim for ever":
            pieces, step_s = [_INTERIM] * 40, left_s / 20
        else:
            pieces, step_s = [], 0.0
        for number, piece in enumerate(pieces, 1):
            self._link.brings(step_s * number, "data", piece)
        self._link.brings(left_s + HANGS_UP_S, "end")

    def _shorten(self, call: Call, reply: Shaped, *, is_empty: bool) -> None:
        half = Shaped(reply.status, reply.headers, b"" if is_empty else reply.body[: len(reply.body) // 2])
        call.form = form = call.rng.choice(SHORT)
        self._network.count(form)
        if form == "half until the end":
            self._send(call, [half.head("Connection: close"), half.body])
            self._end(call.back_s, "end")
        else:
            self._send(call, [half.framed()])

    def _answer(self, call: Call, reply: Shaped) -> None:
        """Send a whole answer, in one of its shapes; while all is calm in one that leaves no doubt."""
        rng = call.rng
        form = rng.choice(WHOLE) if rng.random() < 0.5 else "one piece"
        if form == "end after it" and self._world.is_calm:
            form = "announced end"
        self._network.count(form)
        if call.fault is None:
            call.form = form
        whole, ends = reply.framed(), False
        if form == "pieces":
            cuts = sorted(rng.randrange(len(whole)) for _ in range(3))
            pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if a < b]
        elif form == "byte by byte":
            first = rng.randrange(len(whole) - 40)
            stretch = [whole[n : n + 1] for n in range(first, first + 40)]
            pieces = [whole[:first], *stretch, whole[first + 40 :]][not first :]
        elif form == "chunked":
            pieces = [reply.chunked(rng)]
        elif form in ("announced end", "until the end"):
            length = f"Content-Length: {len(reply.body)}\r\n" if form == "announced end" else ""
            pieces, ends = [reply.head(f"{length}Connection: close"), reply.body], True
        elif form == "interim":
            pieces = [_INTERIM, whole]
        elif form == "HTTP/1.0":
            pieces, ends = [whole.replace(b"HTTP/1.1", b"HTTP/1.0", 1)], True
        elif form == "more after it":
            pieces = [whole + rng.choice((b"\r\n\r\nnot asked for", whole))]
        else:
            pieces, ends = [whole], form == "end after it"
        self._send(call, pieces)
        if ends:
            gap_s = rng.choice((0.0, 0.01, 1.0)) if form == "end after it" else 0.0
            self._end(call.back_s + gap_s, "end" if form != "end after it" else rng.choice(("end", "reset")))

    def _send(self, call: Call, pieces: list[bytes]) -> None:
        """Let pieces arrive one after the other, the first after the way back."""
        at_s, gap_s = call.back_s, self._gap_s(call)
        for piece in pieces:
            self._link.brings(at_s, "data", piece)
            at_s += gap_s / len(pieces)

    def _gap_s(self, call: Call) -> float:
        return call.rng.choice((0.0, 0.001, self._world.scenario.latency_s))


class Shaped:
    """An answer before it is framed."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def head(self, framing: str) -> bytes:
        lines = [
            f"HTTP/1.1 {self.status} Said",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return "\r\n".join([*lines, framing, "", ""]).encode()

    def framed(self) -> bytes:
        return self.head(f"Content-Length: {len(self.body)}") + self.body

    def chunked(self, rng: random.Random) -> bytes:
        size = rng.randint(1, max(1, len(self.body)))
        pieces = [self.body[n : n + size] for n in range(0, len(self.body), size)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        return self.head("Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n"
