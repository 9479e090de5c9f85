"""The two clocks of the shells. Policies take instants; only shells may read one."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds for intervals, Unix seconds for what is written down."""

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...


class SystemClock:
    """The running event loop's clock, and the system's."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return time.time()
