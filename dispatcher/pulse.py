"""What a live run writes down of itself every few seconds, for `status` and for the next process.

A heart that beats also while nothing settles tells another host that the holder lives; and a process that
is killed leaves the rate it had learnt.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dispatcher.checkpoint.base import Pulse
from dispatcher.errors import DispatcherError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.checkpoint.writer import Writer
    from dispatcher.observe import Progress
    from dispatcher.policy.lane import LanePolicy
    from dispatcher.policy.rate_control import RateController

PULSE_S = 2.0
"""Seconds between two beats: one small transaction each."""


class Pulser:
    """Beats for one run in this process."""

    def __init__(
        self,
        *,
        writer: Writer,
        progress: Progress,
        rate: RateController,
        lane: LanePolicy,
        began_at: float,
        ceiling_per_s: float,
        forecast_s: float,
        on_beat: Callable[[], None] | None = None,
    ) -> None:
        """Read from `progress`, `rate` and `lane`, write through `writer`; `began_at` is Unix seconds."""
        self._on_beat = on_beat
        self._writer = writer
        self._progress = progress
        self._rate = rate
        self._lane = lane
        self._began_at = began_at
        self._ceiling_per_s = ceiling_per_s
        self._forecast_s = forecast_s

    def pulse(self) -> Pulse:
        """Return how this process fares now."""
        progress, pace = self._progress, self._rate.snapshot()
        return Pulse(
            began_at=self._began_at,
            calls=progress.calls,
            throttled=progress.throttled,
            retried=progress.retried,
            faults=progress.faults,
            in_flight=progress.in_flight,
            rate_per_s=round(pace.rate_per_s, 3),
            rate_state=pace.state.value,
            rate_why=pace.why(),
            service_per_s=None if pace.service_per_s is None else round(pace.service_per_s, 3),
            ceiling_per_s=self._ceiling_per_s,
            lane_state=self._lane.state.value,
            lane_reason=self._lane.reason,
            forecast_s=self._forecast_s,
        )

    async def beat(self) -> None:
        """Write it down. Raises `DispatcherError` where the checkpoint failed."""
        learnt = self._rate.snapshot().service_per_s
        await self._writer.learn(rate=learnt, pulse=self.pulse())

    async def beat_until_cancelled(self, every_s: float) -> None:
        """Beat every `every_s` seconds; a checkpoint that fails ends it, and the writer tells the engine."""
        while True:
            await asyncio.sleep(every_s)
            if self._on_beat is not None:
                self._on_beat()
            try:
                await self.beat()
            except DispatcherError:
                return
