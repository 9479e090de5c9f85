"""How a batch is taken apart: by `--limit`, an edited manifest or a reconcile. Pure; both stores use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from dispatcher.errors import CheckpointError
from dispatcher.model import RECONCILE_MOVES, Batch, BatchState, FoundTask, Outcome, Resend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.checkpoint.base import Cut
    from dispatcher.model import Part, Ruling


def within(batches: Sequence[Batch], max_devices: int | None) -> tuple[list[Batch], tuple[Batch, int] | None]:
    """Take batches while their fresh devices fit `max_devices`.

    Returns the batches that fit whole, and where the next must be cut: (batch, devices that still fit).
    Batches that were on the wire before (`fresh` false) cost nothing.
    """
    if max_devices is None:
        return list(batches), None
    taken: list[Batch] = []
    room = max_devices
    for batch in batches:
        cost = len(batch.targets) if batch.fresh else 0
        if cost > room:
            return taken, (batch, room) if room else None
        room -= cost
        taken.append(batch)
    return taken, None


def children_of(parent: Batch, parts: Sequence[tuple[str, ...]], *, first: int, fresh: bool) -> list[Batch]:
    """Number the parts of a batch from `first` on."""
    return [
        Batch(first + i, parent.lane, parent.wave, part, parent.number, fresh) for i, part in enumerate(parts)
    ]


def split_outcome(batch: Batch, now: float) -> Outcome:
    """The outcome of a batch that was cut without having been sent."""
    return Outcome(batch.number, BatchState.SPLIT, len(batch.targets), 0, None, now)


def apply(
    cut: Cut, parent: Batch, *, was_cancelled: bool, first: int, now: float
) -> tuple[list[Outcome], list[Batch]]:
    """Return the outcomes and children that put `cut` into effect; children number from `first` on."""
    outcomes = [split_outcome(parent, now)]
    children: list[Batch] = []
    moved = {*cut.cancel, *cut.plan}
    keep = tuple(target for target in parent.targets if target not in moved)
    for targets, cancelled in ((keep, was_cancelled), (cut.cancel, True), (cut.plan, False)):
        if not targets:
            continue
        child = Batch(first + len(children), parent.lane, parent.wave, targets, parent.number, parent.fresh)
        children.append(child)
        if cancelled:
            outcomes.append(Outcome(child.number, BatchState.CANCELLED, len(targets), 0, None, now))
    return outcomes, children


class Ruled(NamedTuple):
    """What a ruling writes in place of a batch's outcome."""

    outcomes: list[Outcome]
    children: list[Batch]
    is_planned: bool
    """Whether the batch itself returns to the plan."""
    parked: tuple[int, ...] = ()
    """Children that stay in doubt: they are parked where the batch was."""


def adopted(batch: Batch, task: FoundTask, now: float, old: Outcome | None = None) -> Outcome:
    """The outcome of devices whose task was found."""
    sent_at = old.first_sent_at if old is not None and old.first_sent_at is not None else task.created_at
    attempts = old.attempts if old is not None else 0
    size = len(batch.targets)
    return Outcome(
        batch.number, BatchState.ACCEPTED, size, attempts, sent_at, now, task.task_id, task.task_arn
    )


def ruled(
    ruling: Ruling, parent: Batch, old: Outcome | None, held: int | None, *, first: int, now: float
) -> Ruled:
    """Return what puts `ruling` into effect on `parent`, whose outcome was `old`.

    Raises `CheckpointError` for a ruling that is not about the batch's devices, or no legal move.
    """
    state = BatchState.PLANNED if old is None else old.state
    _check(ruling, parent, state)
    if len(ruling.parts) == 1:
        part = ruling.parts[0]
        if part.state is BatchState.PLANNED:
            return Ruled([], [], is_planned=True)
        resend = Resend.NEVER if held == 0 else Resend.ALLOWED
        return Ruled([_part_outcome(part, parent, old, ruling, now, resend)], [], is_planned=False)
    outcomes = [split_outcome(parent, now)]
    children: list[Batch] = []
    for part in ruling.parts:
        child = Batch(first + len(children), parent.lane, parent.wave, part.targets, parent.number, False)
        children.append(child)
        if part.state is not BatchState.PLANNED:
            # Other devices, so another client token than was sent: only a reconcile may settle its doubt.
            outcomes.append(_part_outcome(part, child, old, ruling, now, Resend.NEVER))
    parked = tuple(outcome.batch for outcome in outcomes if outcome.state is BatchState.IN_DOUBT)
    return Ruled(outcomes, children, is_planned=False, parked=parked)


def _check(ruling: Ruling, parent: Batch, state: BatchState) -> None:
    devices = sorted(device for part in ruling.parts for device in part.targets)
    wanted = {part.state for part in ruling.parts} if len(ruling.parts) == 1 else {BatchState.SPLIT}
    if devices != sorted(parent.targets) or not wanted <= RECONCILE_MOVES.get(state, frozenset()):
        raise CheckpointError(f"batch {parent.number} is {state} and cannot be ruled so; this is a bug")


def _part_outcome(
    part: Part, batch: Batch, old: Outcome | None, ruling: Ruling, now: float, resend: Resend
) -> Outcome:
    if part.task is not None:
        return adopted(batch, part.task, now, old)
    size = len(part.targets)
    if part.state is BatchState.CANCELLED or old is None:
        return Outcome(batch.number, BatchState.CANCELLED, size, 0, None, now)
    if part.state is not BatchState.IN_DOUBT:
        raise CheckpointError(f"batch {batch.number} is accepted without a task; this is a bug")
    message = ruling.message or old.message
    return replace(old, batch=batch.number, devices=size, settled_at=now, message=message, resend=resend)
