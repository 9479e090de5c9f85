"""Bugs planted in the wire transport (see `mutants`)."""

from __future__ import annotations

from typing import Any

from dispatcher.transport import aiobotocore, wire_pool
from dispatcher.transport.wire_connection import Connection
from tests.simulation.mutants import Patch, mutant, nothing


@mutant
def broken_call_is_written_again() -> list[Patch]:
    """a call whose connection broke is written to another one"""
    real = wire_pool.Pool.ask

    async def ask(self: Any, request: bytes) -> Any:
        end = await real(self, request)
        return await real(self, request) if isinstance(end, wire_pool.Broken) else end

    return [(wire_pool.Pool, "ask", ask)]


@mutant
def broken_call_was_not_sent() -> list[Patch]:
    """a call whose connection broke counts as not sent"""
    real = wire_pool.Pool.ask

    async def ask(self: Any, request: bytes) -> Any:
        end = await real(self, request)
        if isinstance(end, wire_pool.Broken):
            raise wire_pool.Unreachable(end.code, end.why)
        return end

    return [(wire_pool.Pool, "ask", ask)]


@mutant
def deadline_is_not_watched() -> list[Patch]:
    """nobody looks at the deadlines of calls"""
    return [(wire_pool.Pool, "_watch", nothing)]


@mutant
def timed_out_connection_is_kept() -> list[Patch]:
    """a connection whose call timed out carries the next one"""

    def abort(self: Any, why: Any = None) -> None:
        self._end(why)

    def expire(self: Any) -> None:
        real_abort = wire_pool.Connection.abort
        wire_pool.Connection.abort = abort  # type: ignore[method-assign]
        try:
            real(self)
        finally:
            wire_pool.Connection.abort = real_abort  # type: ignore[method-assign]

    real = wire_pool.Pool._expire
    return [(wire_pool.Pool, "_expire", expire)]


@mutant
def cut_answer_is_whole() -> list[Patch]:
    """an answer that was cut short within its body is taken as it is"""
    real = Connection.on_headers_complete

    def on_headers_complete(self: Any) -> None:
        real(self)
        self._ends_with_the_connection = True

    return [(Connection, "on_headers_complete", on_headers_complete)]


@mutant
def skew_is_not_corrected() -> list[Patch]:
    """the service's clock is not looked at, however far the host's is off"""
    return [(aiobotocore.AiobotocoreTransport, "_note_clock", lambda *_: None)]
