"""The bookkeeping of a trial: one poisoned batch, taken apart until a device is accepted or none is left."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dispatcher.flight import Flight


class Trial:
    """A split tree of one batch. It can be undone as long as none of its parts was settled."""

    def __init__(self, root: Flight) -> None:
        self.root = root
        self.poison: list[Flight] = [root]
        """Answered as poison, not split yet, or of a single device."""
        self.untried: deque[Flight] = deque()
        self.accepted = False
        self._has_settled = False
        self.is_split = False

    @property
    def is_exhausted(self) -> bool:
        """Whether every device was tried alone, and every answer was poison."""
        return not self.accepted and not self.untried and all(len(f.batch.targets) == 1 for f in self.poison)

    @property
    def can_undo(self) -> bool:
        """Whether nothing can have come of any part: none is settled, none was answered with doubt."""
        return not self._has_settled and not any(f.is_tainted for f in (*self.untried, *self.poison))

    def next_parent(self) -> Flight | None:
        """Take the largest poisoned part out, to be split; None when only single devices are left."""
        parent = max(self.poison, key=lambda flight: len(flight.batch.targets), default=None)
        if parent is None or len(parent.batch.targets) == 1:
            return None
        self.poison.remove(parent)
        return parent

    def branch(self, children: Iterable[Flight]) -> None:
        """Note the children of the parent that was taken out."""
        self.is_split = True
        self.untried.extend(children)

    def poisoned(self, child: Flight) -> None:
        """Note that a part was refused too."""
        self.poison.append(child)

    def settled(self, *, accepted: bool) -> None:
        """Note that a part has an outcome: accepted, or in doubt."""
        self._has_settled = True
        self.accepted = self.accepted or accepted


def systemic_reason(flight: Flight) -> str:
    """Say what a trial found when nothing was accepted."""
    answer = flight.answer
    said = ": ".join(part for part in (answer.code, answer.message) if part) if answer else "no answer"
    return f"no device was accepted, not even alone: the region, the account or the request is wrong ({said})"
