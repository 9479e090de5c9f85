"""What a live run shows on stderr: a bar on a terminal, a plain line now and then without one."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from dispatcher.cli.output import note
from dispatcher.cli.render import duration
from dispatcher.redact import inert

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console
    from rich.table import Table

    from dispatcher.run import Run

BAR_EVERY_S = 0.2
LINE_EVERY_S = 5.0
LONG_PLANNING_S = 2.0
"""Planning that takes longer is told of: a silent terminal makes people press Ctrl-C."""
METER_S = 10.0
NAME_WIDTH = 24
BAR_WIDTHS = (10, 40)
"""The bar's least and greatest width, in columns."""


async def show(run: Callable[[], Run | None], is_planning: Callable[[], bool]) -> None:
    """Show progress of the run that `run` returns, once it has one, until cancelled."""
    began_s, told = time.monotonic(), False
    while (live := run()) is None:
        await asyncio.sleep(0.05)
        if not told and is_planning() and time.monotonic() - began_s > LONG_PLANNING_S:
            told = True
            note("reading and planning; nothing is sent yet")
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_dumb_terminal:
            await _bar(live, console)
    await _lines(live)


class Meter:
    """Calls and settled devices per second of late, by what was seen at each look."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def look(self, now_s: float, calls: int, devices: int) -> tuple[float, float]:
        """Take one more look, and return calls and devices per second over the last `METER_S`."""
        seen = self._seen
        seen.append((now_s, calls, devices))
        while len(seen) > 2 and now_s - seen[1][0] >= METER_S:
            seen.popleft()
        since_s, calls_before, devices_before = seen[0]
        span_s = max(0.001, now_s - since_s)
        return (calls - calls_before) / span_s, (devices - devices_before) / span_s


async def _lines(run: Run) -> None:
    meter = Meter()
    words(run, meter)
    while True:
        await asyncio.sleep(LINE_EVERY_S)
        note(line(run, meter))


async def _bar(run: Run, console: Console) -> None:
    from rich.live import Live

    meter = Meter()
    with Live(console=console, transient=True, auto_refresh=False) as live:
        while True:
            live.update(bar(run, meter, console.width), refresh=True)
            await asyncio.sleep(BAR_EVERY_S)


def line(run: Run, meter: Meter) -> str:
    """Render progress as one line for a log."""
    settled = _settled(run)
    share = 100 * settled // max(1, run.counts.devices)
    told = ", ".join(text for _, text in words(run, meter))
    return f"{run.plan.run}: {settled} of {run.counts.devices} devices settled ({share} %), {told}"


def bar(run: Run, meter: Meter, width: int) -> Table:
    """Render progress as one line of at most `width` columns."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    settled, total = _settled(run), max(1, run.counts.devices)
    most = max(4, min(NAME_WIDTH, width - BAR_WIDTHS[0] - len(" 100 % ") - 2))  # the share matters more
    name = run.plan.run if len(run.plan.run) <= most else run.plan.run[: most - 1] + "…"
    room = width - len(name) - len(" 100 % ") - 1
    least, greatest = BAR_WIDTHS
    text = fit(words(run, meter), room - least - 1)
    grid = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(4):
        grid.add_column(no_wrap=True, overflow="crop")
    grid.add_row(
        Text(name),
        ProgressBar(total=total, completed=settled, width=max(1, min(greatest, room - len(text) - 1))),
        Text(f"{100 * settled // total:>3} %"),
        Text(text),
    )
    return grid


def _settled(run: Run) -> int:
    """Return devices that are settled in the whole run."""
    here = sum(run.progress.settled.get(name, 0) for name in ("accepted", "rejected"))
    return run.counts.accepted + run.counts.rejected + run.counts.cancelled + here


def words(run: Run, meter: Meter) -> Sequence[tuple[int, str]]:
    """Return what there is to say, in order, each with how much it matters: 0 matters most."""
    progress = run.progress
    settled = _settled(run)
    calls_per_s, devices_per_s = meter.look(time.monotonic(), progress.calls, settled)
    left = run.counts.devices - settled
    told = [(1, f"{calls_per_s:.0f} calls/s")]
    if progress.throttled:
        told.append((4, f"{progress.throttled} throttled"))
        if run.pace is not None:
            told.append((5, run.pace.why()))
    if progress.in_doubt:
        told.append((3, f"{progress.in_doubt} in doubt"))
    rejected = progress.settled.get("rejected", 0)
    if rejected:
        told.append((6, f"{rejected} rejected"))
    if progress.lane_state != "open":
        told.append((0, progress.lane_state))
        if progress.lane_reason:
            told.append((7, inert(progress.lane_reason)))
    elif devices_per_s > 0 and left > 0:
        told.append((2, f"{duration(left / devices_per_s)} left"))
    return told


def fit(told: Sequence[tuple[int, str]], room: int) -> str:
    """Join what matters most and fits into `room` columns, in the order it was given."""
    kept: list[tuple[int, str]] = []
    for rank, text in sorted(told):
        tried = [word for word in told if word in kept or word == (rank, text)]
        if len(", ".join(text for _, text in tried)) <= room:
            kept = tried
    return ", ".join(text for _, text in kept)
