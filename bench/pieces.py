"""Pieces of the walk measured by themselves: CPU a batch with nothing beside them, caches warm.

They tell what a stage of `profile` is made of, and cost less here than among all the rest: no event loop
turns between them, and no other thread waits for the interpreter's lock.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from bench import stub

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.harness import Scratch
    from dispatcher.checkpoint.base import Checkpoint
    from dispatcher.model import Batch
    from dispatcher.prepared import Prepared
    from dispatcher.transport.wire import WireTransport

PIECES = {
    "plan": "alone: plan, from CSV to checkpoint",
    "claim": "alone: 1,024 batches claimed",
    "token": "alone: client token",
    "body": "alone: body of the request",
    "sign": "alone: signature",
    "judge": "alone: answer judged",
    "record": "alone: 1,024 outcomes committed",
    "mark": "alone: registry's marks of both commits",
    "report": "alone: receipts as JSON lines",
}
BLOCK = 1_024
BATCHES = 8 * BLOCK

T = TypeVar("T")


class Stopwatch:
    """Adds up CPU time by name."""

    def __init__(self) -> None:
        self.spent_us: dict[str, float] = {}

    def timed(self, name: str, work: Callable[[], T]) -> T:
        """Do `work`; what it took counts as a part of what all batches take."""
        began_s = time.process_time()
        result = work()
        spent_us = 1e6 * (time.process_time() - began_s) / BATCHES
        self.spent_us[name] = self.spent_us.get(name, 0.0) + spent_us
        return result


async def measured_alone(place: Scratch, url: str, name: str) -> dict[str, float]:
    """Take a run apart that is never sent; return microseconds of CPU a batch by piece."""
    from bench.profile import wire_transport
    from bench.runs import prepare
    from dispatcher.report import receipts, render

    watch = Stopwatch()
    place.fleet(10 * BATCHES)
    prepared, settings = watch.timed("plan", lambda: prepare(place, name, 10 * BATCHES, url))
    transport = await wire_transport(prepared, settings)
    try:
        while batches := watch.timed("claim", lambda: _claimed(prepared.checkpoint)):
            _requests(watch, prepared, transport, batches)
            _commits(watch, prepared, batches)
        lines: list[str] = []
        watch.timed("report", lambda: render(receipts(prepared.checkpoint), "jsonl", lines.append))
        if len(lines) != 10 * BATCHES:
            raise RuntimeError(f"{len(lines)} receipts")
    finally:
        prepared.checkpoint.close()
        await transport.close()
    return watch.spent_us


def _claimed(checkpoint: Checkpoint) -> list[Batch]:
    now = time.time()
    with checkpoint.together(now=now):
        return checkpoint.claim(limit=BLOCK, max_devices=None, now=now)


def _requests(
    watch: Stopwatch, prepared: Prepared, transport: WireTransport, batches: Sequence[Batch]
) -> None:
    """Make a block's requests, and judge their answers."""
    from dispatcher.plan import ClientTokens
    from dispatcher.transport.wire import _made

    tokens, key, at = ClientTokens(prepared.plan), transport._keeper.use().frozen, int(time.time())
    texts = watch.timed("token", lambda: [tokens.of(batch.targets) for batch in batches])
    pairs = [(batch.targets, text) for batch, text in zip(batches, texts, strict=True)]
    bodies = watch.timed("body", lambda: [transport._body(*pair) for pair in pairs])
    watch.timed("sign", lambda: [transport._signer.sign(key, at, body) for body in bodies])
    answer = f'{{"taskId":"st-{0:017d}","taskArn":"{stub.ARN}st-{0:017d}"}}'.encode()
    watch.timed("judge", lambda: [_made(answer) for _ in batches])


def _commits(watch: Stopwatch, prepared: Prepared, batches: Sequence[Batch]) -> None:
    """Record a block's outcomes, and mark what the block cost in commits."""
    from dispatcher.model import BatchState, Outcome

    checkpoint, marker, now = prepared.checkpoint, prepared.marker, time.time()
    task_id = f"st-{0:017d}"
    outcomes = [
        Outcome(batch.number, BatchState.ACCEPTED, 10, 1, now, now, task_id, stub.ARN + task_id)
        for batch in batches
    ]

    def record() -> None:
        with checkpoint.together(now=now):
            checkpoint.record(outcomes, now=now)

    def mark(claimed: Sequence[Batch]) -> None:
        marker.committed(claimed, commits=checkpoint.standing().commits, now=now)

    watch.timed("mark", lambda: mark(batches))
    watch.timed("record", record)
    watch.timed("mark", lambda: mark(()))
