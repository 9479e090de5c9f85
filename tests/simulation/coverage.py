"""What the seeds reached: a state, a fault or an act that never comes up proves nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dispatcher.model import BatchState, Kind
from dispatcher.policy.lane import LANE_TRANSITIONS, LaneState
from tests.simulation.disk import Failure
from tests.simulation.scenario import BETWEEN, CALL_FAULTS, MOMENTS, WINDOWS
from tests.simulation.wire_network import CONNECTS, EVENTS
from tests.simulation.wire_server import AFTER, BEFORE, SHORT, SILENT, WHOLE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.simulation.runs import Result

SETTLED = (BatchState.ACCEPTED, BatchState.REJECTED, BatchState.IN_DOUBT)
"""What a running process records one by one; `split` and `cancelled` are written with their children."""


def expected() -> list[str]:
    """Everything that must have come up, by the names `World.count` uses."""
    moves = (
        f"lane: {before.value} → {after.value}"
        for before, after_all in LANE_TRANSITIONS.items()
        for after in after_all
    )
    return sorted(
        {
            *(f"answer: {kind.value}" for kind in Kind),
            *(f"fault: {fault}" for fault in CALL_FAULTS),
            *(f"window: {mode}" for mode in WINDOWS),
            *(f"moment: {what}" for what in MOMENTS),
            *(f"between: {what}" for what in BETWEEN),
            *(f"wire: {what}" for what in (*CONNECTS, *BEFORE, *AFTER, *SILENT, *SHORT, *WHOLE, *EVENTS)),
            *(f"io: {failure.value}" for failure in Failure),
            *(f"settled: {state.value}" for state in SETTLED),
            *(f"stored: {state.value}" for state in BatchState),
            *(f"lane state: {state.value}" for state in LaneState),
            *moves,
            *(f"exit: {code}" for code in ("0", "1", "3 RunStopped", "130 RunInterrupted")),
            *(f"exit: 4 {name}" for name in ("CheckpointLeased", "CheckpointIo", "CheckpointError")),
            *(f"note: {what}" for what in ("rebuilt", "planned anew", "edited", "duplicate", "taking over")),
            *(f"edit: {what}" for what in ("added", "returned", "cancelled", "parked", "dropped")),
            *("killed: io", "killed: step", "power: lost", "power: lost between"),
            *("verb: run", "verb: resume", "event: replayed", "served: created", "served: replayed"),
            *("served: ResourceNotFoundException", "served: ThrottlingException"),
        }
    )


UNREACHED: dict[str, str] = {
    "lane: open → probing": "five faults slow a lane before twenty make an outage",
}
"""What no seed need reach, each with its reason."""
RARE = frozenset({"lane: paused → denied", "lane: slowed → stopped", "wire: half open"})
"""Two things must meet for these: asked of the soak's seeds, not of a thousand."""


def total(results: Iterable[Result]) -> Counter[str]:
    """Add up what seeds reached."""
    reached: Counter[str] = Counter()
    for result in results:
        reached.update(result.reached)
    return reached


def missing(reached: Counter[str], *, rare: bool = False) -> list[str]:
    """Return what should have come up and did not; `rare` asks for everything."""
    excused = {*UNREACHED, *(() if rare else RARE)}
    return [name for name in expected() if not reached[name] and name not in excused]


def table(reached: Counter[str]) -> str:
    """Render what was reached, and how often."""
    names = sorted({*expected(), *reached})
    return "\n".join(f"{reached[name]:9,} {name}" for name in names)
