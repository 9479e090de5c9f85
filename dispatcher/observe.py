"""What a run says while it goes on: frozen events for hooks, and counters for whoever looks.

Events tell what is durable: a batch's event follows the commit of its outcome. A hook that raises or is
slow cannot harm the run: what it raises is logged once, and it is called from the loop between commits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from dispatcher.model import Counts

log = logging.getLogger("dispatcher")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a run."""

    run: str
    at: float = field(default_factory=lambda: time.time())  # noqa: PLW0108  (a simulation puts a clock there)
    """Unix seconds."""

    def text(self) -> str:
        """Render for people, one line."""
        words = {k: v for k, v in asdict(self).items() if k not in ("run", "at") and v is not None}
        return f"{_words(type(self).__name__)}: " + ", ".join(f"{k} {v}" for k, v in words.items())

    def json(self) -> str:
        """Render for programs, one JSON object with the event's name under `event`."""
        return msgspec.json.encode({"event": _words(type(self).__name__), **asdict(self)}).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """The engine begins: a first run and a resume alike."""

    devices: int
    pending: int
    in_doubt: int
    resumed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettled(Event):
    """A batch's outcome is durable."""

    batch: int
    state: str
    devices: int
    task_id: str | None = None
    error_code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateChanged(Event):
    """The rate that the service is believed to allow moved by a tenth or more."""

    rate_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneChanged(Event):
    """A lane was slowed, paused, stopped or opened."""

    lane: int
    state: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReplayed(Event):
    """The service answered with a task that is older than the plan: somebody sent this before."""

    task_id: str
    devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """The engine is done, or was stopped."""

    exit: int
    reason: str | None = None


Hook = Callable[[Event], Any]
"""Called with every event, on the event loop; may be slow or raise, must not block for long."""


@dataclass(slots=True)
class Progress:
    """Live counters of one process; read by the progress line, written by the engine."""

    calls: int = 0
    throttled: int = 0
    retried: int = 0
    faults: int = 0
    replayed: int = 0
    in_flight: int = 0
    rate_per_s: float = 0.0
    lane_state: str = "open"
    lane_reason: str | None = None
    in_doubt: int = 0
    """Devices that rest in doubt: left by this process, or met by it and not settled since."""
    settled: dict[str, int] = field(default_factory=dict)
    """Devices by class that this process settled durably."""
    base: Counts | None = None
    """Counts of the whole run when the process began."""


class Hooks:
    """Hands events to hooks, and keeps their faults to itself."""

    def __init__(self, hooks: tuple[Hook, ...] = ()) -> None:
        self._hooks = hooks
        self._complained = False

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def emit(self, event: Event) -> None:
        """Call every hook with `event`."""
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:
                if not self._complained:
                    self._complained = True
                    log.exception("an event hook raised; it is called on, and the run goes on")


def _words(name: str) -> str:
    """`BatchSettled` → `batch settled`."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
