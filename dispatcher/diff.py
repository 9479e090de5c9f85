"""An edited manifest against the stored plan: matched by device, in one sorted merge.

Devices are what counts, never positions: rows may be reordered, batches may have been split. Both sides
come sorted by id from spools, so ten million devices need no index and little memory.

    in both           settled stays settled; planned stays planned; cancelled is planned again
    only in the plan  planned → cancelled; in doubt → its batch is parked (a resend might *create* it);
                      rejected → no longer judged; accepted stays, as history
    only in the new   planned in new batches
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dispatcher.checkpoint.base import Cut
from dispatcher.errors import UsageError
from dispatcher.hints import adding
from dispatcher.model import BatchState
from dispatcher.spool import SortedSpool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from dispatcher.checkpoint.base import Row
    from dispatcher.settings import Resolved

MAX_SILENT_REMOVAL = 0.1
"""Share of the plan that `--yes` may cancel; more needs `--accept-removals N`."""
_DOUBTFUL = (BatchState.IN_DOUBT, BatchState.SENT)


@dataclass(slots=True)
class Diff:
    """What an edit changes, in devices; and the work itself, in two spools."""

    kept: int = 0
    added: int = 0
    returned: int = 0
    """Cancelled by an earlier edit, and named again."""
    cancelled: int = 0
    """Planned, never sent, and no longer named."""
    parked: int = 0
    """In doubt and no longer named: not resent until reconciled."""
    dropped: int = 0
    """Settled and no longer named."""
    planned_before: int = 0
    _ops: SortedSpool = field(default_factory=SortedSpool, repr=False)
    _new: SortedSpool = field(default_factory=SortedSpool, repr=False)

    @property
    def removals(self) -> int:
        """Devices that the plan still meant to send, and the manifest no longer names."""
        return self.cancelled + self.parked

    def as_json(self) -> dict[str, int]:
        """Return the counts for `plan --json` and for events."""
        return {
            "kept": self.kept,
            "added": self.added,
            "returned": self.returned,
            "cancelled": self.cancelled,
            "parked": self.parked,
            "dropped": self.dropped,
        }

    def new_blocks(self) -> Iterator[list[str]]:
        """Yield the added ids, ascending, as blocks; once only."""
        return self._new.sorted_blocks()

    def work(self) -> Iterator[Cut | tuple[int, bool]]:
        """Yield batches to cut, and (batch, parked?) marks, by batch number; once only."""
        lines = itertools.chain.from_iterable(self._ops.sorted_blocks())
        for number, group in itertools.groupby(lines, key=lambda line: line[:12]):
            cancel: list[str] = []
            plan: list[str] = []
            mark: bool | None = None
            for line in group:
                op, device = line[13], line[15:]
                if op == "C":
                    cancel.append(device)
                elif op == "P":
                    plan.append(device)
                else:
                    mark = mark or op == "R"
            if cancel or plan:
                yield Cut(int(number), tuple(cancel), tuple(plan))
            if mark is not None:
                yield int(number), mark

    def close(self) -> None:
        """Let go of the spools."""
        self._ops.close()
        self._new.close()

    def _gone(self, number: int, state: str, device: str) -> None:
        if state == BatchState.PLANNED:
            self.cancelled += 1
            self._op(number, "C", device)
        elif state in _DOUBTFUL:
            self.parked += 1
            self._op(number, "R")
        elif state == BatchState.REJECTED:
            self.dropped += 1
            self._op(number, "R")
        elif state == BatchState.ACCEPTED:
            self.dropped += 1

    def _named(self, number: int, state: str, device: str, *, removed: bool) -> None:
        if state == BatchState.CANCELLED:
            self.returned += 1
            self._op(number, "P", device)
            return
        self.kept += 1
        if removed:
            self._op(number, "S")

    def _op(self, number: int, op: str, device: str = "") -> None:
        self._ops.add(f"{number:012d} {op} {device}")

    def _add(self, device: str) -> None:
        self.added += 1
        self._new.add(device)


def diff(new: Iterable[list[str]], rows: Iterable[Row], *, folder: Path | None = None) -> Diff:
    """Compare ascending, distinct ids with the batches of a plan."""
    found = Diff(_ops=SortedSpool(folder), _new=SortedSpool(folder))
    with SortedSpool(folder) as spool:
        for row in rows:
            removed = "1" if row.removed else "0"
            spool.extend([f"{device}\t{row.number}\t{row.state}\t{removed}" for device in row.targets])
            if row.state != BatchState.CANCELLED:
                found.planned_before += len(row.targets)
        old = map(_parse, itertools.chain.from_iterable(spool.sorted_blocks()))
        _merge(found, itertools.chain.from_iterable(new), old)
    return found


def _parse(line: str) -> tuple[str, int, str, bool]:
    device, number, state, removed = line.split("\t")
    return device, int(number), state, removed == "1"


def _merge(found: Diff, new: Iterator[str], old: Iterator[tuple[str, int, str, bool]]) -> None:
    fresh, known = next(new, None), next(old, None)
    while fresh is not None or known is not None:
        if known is None or (fresh is not None and fresh < known[0]):
            assert fresh is not None
            found._add(fresh)
            fresh = next(new, None)
        elif fresh is None or known[0] < fresh:
            found._gone(known[1], known[2], known[0])
            known = next(old, None)
        else:
            found._named(known[1], known[2], known[0], removed=known[3])
            fresh, known = next(new, None), next(old, None)


def check_removals(found: Diff, settings: Resolved) -> None:
    """Raise `UsageError` where an edit would cancel more than was agreed to."""
    allowed = max(settings.accept_removals, int(MAX_SILENT_REMOVAL * found.planned_before))
    if found.removals > allowed:
        share = 100 * found.removals / max(1, found.planned_before)
        raise UsageError(
            f"the manifest no longer names {found.removals} devices that were still to be sent"
            f" ({share:.0f} % of the plan)",
            hint="restore the inventory; or if that is meant,"
            f" {adding('--accept-removals', str(found.removals))}",
        )


def edit_words(found: Diff) -> str:
    """Say what an edit changes."""
    named = {
        "added": found.added,
        "back": found.returned,
        "taken out before being sent": found.cancelled,
        "taken out while in doubt": found.parked,
        "taken out after being settled": found.dropped,
    }
    return ", ".join(f"{count} {what}" for what, count in named.items() if count) or "the same devices"
