"""The two clocks of the shells. Policies take instants; only shells may read one."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds for intervals, Unix seconds for what is written down."""

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...


class SystemClock:
    """The system's two clocks.

    Not the event loop's `time()`: it is the same clock, but uvloop's counts whole milliseconds, and a dozen
    readings a call through it were 6 % of the engine's time (py-spy, wire transport).
    """

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
