"""What a live run shows on stderr: a bar on a terminal, a plain line now and then without one."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from dispatcher.cli.output import note
from dispatcher.cli.render import duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.run import Run

BAR_EVERY_S = 0.2
LINE_EVERY_S = 5.0


async def show(run: Callable[[], Run | None]) -> None:
    """Show progress of the run that `run` returns, once it has one, until cancelled."""
    while (live := run()) is None:  # noqa: ASYNC110  (planning, in a thread)
        await asyncio.sleep(0.05)
    if sys.stderr.isatty():
        await _bar(live)
    else:
        await _lines(live)


async def _lines(run: Run) -> None:
    while True:
        await asyncio.sleep(LINE_EVERY_S)
        note(_line(run))


async def _bar(run: Run) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.fields[run]}"), BarColumn(), TextColumn("{task.fields[words]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=run.counts.devices, run=run.plan.run, words="")
        while True:
            settled, _ = _settled(run)
            bar.update(task, completed=settled, words=_words(run))
            bar.refresh()
            await asyncio.sleep(BAR_EVERY_S)


def _settled(run: Run) -> tuple[int, int]:
    """Return devices that are settled in the whole run, and by this process."""
    base = run.counts
    here = sum(run.progress.settled.get(name, 0) for name in ("accepted", "rejected"))
    return base.accepted + base.rejected + base.cancelled + here, here


def _line(run: Run) -> str:
    settled, _ = _settled(run)
    return f"{run.plan.run}: {settled} of {run.counts.devices} devices settled, {_words(run)}"


def _words(run: Run) -> str:
    progress = run.progress
    elapsed_s = max(0.001, time.monotonic() - run.started_s)
    settled, here = _settled(run)
    left = run.counts.devices - settled
    words = [f"{progress.calls / elapsed_s:.0f} calls/s", f"rate {progress.rate_per_s:.0f}/s"]
    if progress.throttled:
        words.append(f"{progress.throttled} throttled")
    in_doubt = progress.settled.get("in_doubt", 0)
    if in_doubt:
        words.append(f"{in_doubt} in doubt")
    if progress.lane_state != "open":
        words.append(progress.lane_state)
    if here and left > 0:
        words.append(f"{duration(left * elapsed_s / here)} left")
    return ", ".join(words)
