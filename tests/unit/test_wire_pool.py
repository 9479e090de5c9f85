"""Whether a call may still be written when its connection has come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from dispatcher.transport.wire_connection import Connection, Reply
from dispatcher.transport.wire_pool import Origin, Pool, Unreachable
from tests.simulation.loop import VirtualTimeLoop


class Wire(asyncio.Transport):
    """Keeps what is written, and answers it at once."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self._connection = connection

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        asyncio.get_running_loop().call_soon(self._connection.data_received, answer)

    def abort(self) -> None:
        self._connection.connection_lost(None)


class SlowPool(Pool):
    """A pool whose connections come when something else has come about."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__(Origin("service.example", 80, None), timeout_s=5.0)
        self.wires: list[Wire] = []
        self._meanwhile = meanwhile

    async def _connect(self) -> Connection:
        self._meanwhile()
        connection = Connection(self._loop)
        self.wires.append(Wire(connection))
        connection.connection_made(self.wires[-1])
        return connection


@pytest.mark.parametrize(("slept_s", "stalled_s", "is_sent"), [(1, 1, True), (100, 0, False), (0, 6, False)])
def test_a_call_whose_time_passed_while_it_connected_is_not_written(
    monkeypatch: pytest.MonkeyPatch, slept_s: float, stalled_s: float, is_sent: bool
) -> None:
    """Its claim and its token's window were looked at before: what slept or stood still must not send."""
    loop, wall = VirtualTimeLoop(), [1_800_000_000.0]
    monkeypatch.setattr(time, "time", lambda: wall[0])

    def meanwhile() -> None:
        wall[0] += slept_s
        loop.virtual_s += stalled_s

    async def asked() -> tuple[object, list[Wire]]:
        pool = SlowPool(meanwhile)
        try:
            return await pool.ask(b"POST"), pool.wires
        except Unreachable as error:
            return error, pool.wires
        finally:
            pool.close()

    end, wires = loop.run_until_complete(asked())
    loop.close()
    assert isinstance(end, Reply if is_sent else Unreachable)
    assert [wire.written for wire in wires] == ([[b"POST"]] if is_sent else [[]])
