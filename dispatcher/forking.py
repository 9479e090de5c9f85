"""What a forked child must not keep of a run: locks that outlive its parent, and an open database.

A descriptor that is inherited holds the same lock, and closing it in the child frees nothing of the parent's
(flock(2)). A connection may not even be closed in the child: SQLite would undo the parent's open transaction
in the index both share (https://www.sqlite.org/howtocorrupt.html, 2.6).
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Inherited(Protocol):
    """Something that a child must let go of."""

    def disown(self) -> None:
        """Called in the child, alone: give up what the parent holds, and do not wait for anything."""


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()


def disown_in_children(owner: Inherited) -> None:
    """Have `owner` disowned in every child that is forked from now on; it is held weakly."""
    _inherited.add(owner)


def _disown_all() -> None:
    for owner in list(_inherited):
        owner.disown()
    _inherited.clear()


os.register_at_fork(after_in_child=_disown_all)
