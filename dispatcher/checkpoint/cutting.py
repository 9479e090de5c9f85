"""How a batch is taken apart: by `--limit`, and by an edited manifest. Pure; both stores use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.model import Batch, BatchState, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.checkpoint.base import Cut


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
