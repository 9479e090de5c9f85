"""Bugs planted in the wire transport that only odd bytes or an odd clock can show (see `mutants`)."""

from __future__ import annotations

from typing import Any

from dispatcher.transport import aiobotocore
from dispatcher.transport.wire_connection import Connection
from tests.simulation.mutants import Patch, mutant


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
