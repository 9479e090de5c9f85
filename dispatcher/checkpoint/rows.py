"""Batches and outcomes as rows, and the statements that insert them by the block."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from dispatcher.checkpoint.reading import QUERIES
from dispatcher.model import Resend

if TYPE_CHECKING:
    from dispatcher.model import Batch, Outcome

SIZES = (256, 64, 16, 4, 1)
"""Rows a statement: few enough texts that all stay prepared, and below SQLite's 32,766 parameters."""
BLOCK = 1_024
"""Batches held at once while planning."""


class Insert(NamedTuple):
    """An INSERT for any of `SIZES` rows."""

    head: str
    columns: int
    tail: str = ""

    @functools.cache  # noqa: B019  (two instances, both module constants)
    def of(self, size: int) -> str:
        row = f"({','.join('?' * self.columns)})"
        return f"{self.head} VALUES {','.join([row] * size)} {self.tail}"


INSERT_BATCH = Insert(QUERIES["insert_batches"], 7)
RECORD = Insert(QUERIES["record"], 11, QUERIES["record_again"])


def batch_row(batch: Batch) -> tuple[Any, ...]:
    targets = batch.targets
    return (
        batch.number,
        batch.lane,
        batch.wave,
        batch.parent,
        int(batch.fresh),
        len(targets),
        " ".join(targets),
    )


def outcome_row(outcome: Outcome, epoch: int) -> tuple[Any, ...]:
    resend = outcome.resend
    held = None if resend is Resend.ALLOWED else epoch if resend is Resend.NEXT_PROCESS else 0
    return (
        outcome.batch, outcome.state, outcome.devices, outcome.attempts, outcome.first_sent_at,
        outcome.settled_at, outcome.task_id, outcome.task_arn, outcome.code, outcome.message, held,
    )  # fmt: skip
