"""What to make of a batch, given the tasks that the service lists: f(stored batch, tasks, view) → ruling.

A task that is found is adopted: that is a fact. That a task is *not* found proves little, since nobody
documents how long ListTasks keeps a task or how soon it shows one. So absence counts only where

- the list was read to its end;
- the doubt is old enough: past the token window for a command that harms when it comes twice (inside it a
  resend under the same client token is the better question), and past a list's likely lag for any;
- for such a command, every task that is known to exist is listed as well; and
- the policy says so: by default a reboot is sent at most once and stays in doubt, an unlock at least once.

Everything else stays in doubt, with the reason.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dispatcher.model import BatchState, FoundTask, Part, Ruling

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from dispatcher.checkpoint.base import Row
    from dispatcher.policy.token_window import TokenWindow

LAG_S = 60.0
"""A task younger than this may not be listed yet. Nobody documents it; a minute is generous for the lists of
this family, and costs nothing where the token window is longer."""


class Why(enum.StrEnum):
    """Why a batch stays in doubt though no task of it is listed."""

    RESENDABLE = "its token window is open: a resume asks again"
    INCOMPLETE = "the list of tasks was not read to its end"
    TOO_YOUNG = "it is too young to take a task that is not listed for absent"
    AT_MOST_ONCE = "at most once: a task that is not listed may exist all the same"
    UNTRUSTED = "tasks that are known to exist are not listed either"
    PARKED = "it holds a device that was taken out: name the manifest"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is known beside the batch."""

    now: float
    """Unix seconds."""
    window: TokenWindow
    is_complete: bool
    """Whether the list was read to its end."""
    unlisted: int = 0
    """Accepted batches whose task the list does not show."""
    assume_absent: bool = False
    """Whether what is not listed is taken for absent: at least once, where False is at most once."""
    is_harmful: bool = True
    """Whether the command harms a device that gets it twice."""
    removed: Collection[str] | None = None
    """Devices of parked batches that are not in the manifest; None where no manifest was read."""


def decide(
    row: Row, own: Sequence[FoundTask], others: Mapping[str, Sequence[FoundTask]], view: View
) -> tuple[Ruling | None, Why | None]:
    """Return what becomes of a batch, None where it stays as it is, and why what stays in doubt does.

    Args:
        row: the batch as stored.
        own: tasks under the batch's own client token; the first is adopted.
        others: tasks of the run under tokens of no batch, by device.
        view: what is known beside it.
    """
    if row.state not in (BatchState.IN_DOUBT, BatchState.REJECTED, BatchState.CANCELLED):
        return None, None
    if own:
        return Ruling(row.number, (Part(row.targets, BatchState.ACCEPTED, own[0]),)), None
    parts, rest = _by_task(row.targets, others)
    if not rest:
        return Ruling(row.number, parts), None
    if row.state != BatchState.IN_DOUBT:
        kept = Part(rest, BatchState(row.state))
        return (Ruling(row.number, (*parts, kept)) if parts else None), None
    why = _stays(row, view, is_cut=bool(parts))
    if why is None:
        return Ruling(row.number, (*parts, *_released(rest, view.removed or ()))), None
    if why is Why.RESENDABLE:
        return None, why
    kept = Part(rest, BatchState.IN_DOUBT)
    return Ruling(row.number, (*parts, kept), message=f"no task of it is listed; {why}"), why


def _by_task(
    targets: Sequence[str], others: Mapping[str, Sequence[FoundTask]]
) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """Group devices by the task that has them; return these parts, and the devices that are in none."""
    groups: dict[FoundTask, list[str]] = {}
    rest: list[str] = []
    for device in targets:
        tasks = others.get(device)
        if tasks:
            groups.setdefault(tasks[0], []).append(device)
        else:
            rest.append(device)
    parts = (Part(tuple(devices), BatchState.ACCEPTED, task) for task, devices in groups.items())
    return tuple(parts), tuple(rest)


def _stays(row: Row, view: View, *, is_cut: bool) -> Why | None:
    """Tell why a batch whose task is not listed stays in doubt; None: it is taken for never created.

    What is left of a batch that is cut has another client token than was sent, and cannot be resent.
    """
    age_s = view.now - (row.first_sent_at if row.first_sent_at is not None else view.now)
    may_resend = row.held != 0 and not row.removed and not is_cut
    if may_resend and view.window.is_open(row.first_sent_at, view.now, None):
        return Why.RESENDABLE
    if not view.is_complete:
        return Why.INCOMPLETE
    if not view.assume_absent:
        return Why.AT_MOST_ONCE
    if age_s < max(LAG_S, view.window.window_s if view.is_harmful else 0.0):
        return Why.TOO_YOUNG
    if view.is_harmful and view.unlisted:
        return Why.UNTRUSTED
    return Why.PARKED if row.removed and view.removed is None else None


def _released(devices: Sequence[str], removed: Collection[str]) -> tuple[Part, ...]:
    """Return what may go on to the plan, and cancel what has left the manifest."""
    kept = tuple(device for device in devices if device not in removed)
    gone = tuple(device for device in devices if device in removed)
    parts = (Part(kept, BatchState.PLANNED), Part(gone, BatchState.CANCELLED))
    return tuple(part for part in parts if part.targets)


def conflicts(
    row: Row, own: Sequence[FoundTask], others: Mapping[str, Sequence[FoundTask]]
) -> dict[tuple[str, ...], list[str]]:
    """Return devices that have more than one task of the run, by the ids of these tasks, ascending."""
    shared = {task.task_id for task in own} | ({row.task_id} if row.task_id is not None else set())
    found: dict[tuple[str, ...], list[str]] = {}
    for device in row.targets:
        tasks = shared | {task.task_id for task in others.get(device, ())}
        if len(tasks) > 1:
            found.setdefault(tuple(sorted(tasks)), []).append(device)
    return found
