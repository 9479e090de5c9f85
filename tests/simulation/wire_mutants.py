"""Bugs planted in the wire transport, each of a kind that only bytes can show (see `mutants`)."""

from __future__ import annotations

from typing import Any

from dispatcher.transport import aiobotocore, wire_connection, wire_pool
from dispatcher.transport.wire_connection import Broken, Connection
from dispatcher.transport.wire_pool import Pool, Unreachable
from tests.simulation.mutants import Patch, mutant


@mutant
def wire_post_is_sent_again() -> list[Patch]:
    """wire: a POST whose connection died without an answer is sent again at once"""
    real = Pool.ask

    async def ask(self: Any, request: bytes) -> Any:
        end = await real(self, request)
        is_lost = isinstance(end, Broken) and end.code in ("ConnectionClosed", "ConnectionResetError")
        return await real(self, request) if is_lost else end

    return [(Pool, "ask", ask)]


@mutant
def wire_lost_answer_was_never_asked_for() -> list[Patch]:
    """wire: a connection that died without an answer counts as never made"""
    real = Pool.ask

    async def ask(self: Any, request: bytes) -> Any:
        end = await real(self, request)
        if isinstance(end, Broken) and end.code == "ConnectionClosed":
            raise Unreachable(end.code, end.why)
        return end

    return [(Pool, "ask", ask)]


@mutant
def wire_cut_answer_is_whole() -> list[Patch]:
    """wire: an answer that was cut short in its body is taken as it is"""
    real = Connection.on_headers_complete

    def on_headers_complete(self: Any) -> None:
        real(self)
        self._ends_with_the_connection = True

    return [(Connection, "on_headers_complete", on_headers_complete)]


@mutant
def wire_late_answer_is_the_next_ones() -> list[Patch]:
    """wire: a call that timed out leaves its connection to the next one"""
    real = Connection.abort

    def abort(self: Any, why: Broken = wire_connection._NO_ANSWER) -> None:
        if why.code == "Timeout":
            self._end(why)
        else:
            real(self, why)

    def data_received(self: Any, data: bytes) -> None:
        if self._asked is None:
            self._late = getattr(self, "_late", b"") + data  # left for whoever reads next
        else:
            taken(self, self.__dict__.pop("_late", b"") + data)

    taken = Connection.data_received
    return [(Connection, "abort", abort), (Connection, "data_received", data_received)]


@mutant
def wire_deadline_is_not_armed() -> list[Patch]:
    """wire: no timer watches the deadlines"""
    return [(wire_pool.Pool, "_watch", lambda *_: None)]


@mutant
def wire_skew_is_not_corrected() -> list[Patch]:
    """wire: the service's clock is not looked at"""
    return [(aiobotocore.AiobotocoreTransport, "_note_clock", lambda *_: None)]
