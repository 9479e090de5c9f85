"""What a run says while it goes on: frozen events for hooks, and counters for whoever looks.

Events tell what is durable: a batch's event follows the commit of its outcome. How they reach a hook that
may be slow or raise is `delivery`'s business.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from dispatcher.model import DEVICE_CLASSES
from dispatcher.redact import inert, inert_json

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
        """Render for people, one line, with nothing in it that a terminal would act on."""
        words = {k: v for k, v in asdict(self).items() if k not in ("run", "at") and v is not None}
        told = ", ".join(f"{name} {_short(value)}" for name, value in words.items())
        return inert(f"{_words(type(self).__name__)}: {told}")

    def json(self) -> str:
        """Render for programs, one JSON object with the event's name under `event`."""
        name = _words(type(self).__name__)
        return inert_json(msgspec.json.encode({"event": name, **asdict(self)}).decode())


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """The engine begins: a first run and a resume alike."""

    devices: int
    pending: int
    in_doubt: int
    resumed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettled(Event):
    """A batch's outcome is durable. A batch that was split settles as its parts do."""

    batch: int
    state: str
    """`accepted`, `rejected` or `in_doubt`; what is in doubt may be settled by a later event."""
    devices: int
    device_ids: tuple[str, ...] = ()
    attempts: int = 0
    """Calls that this process made for it."""
    task_id: str | None = None
    error_code: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgressed(Event):
    """How the run stands, every two seconds while it is live.

    Devices by class speak of the whole run, the other counters of this process. Claimed devices are pending
    here until their answer is durable; `status` reads the checkpoint and counts them as in doubt.
    """

    accepted: int
    rejected: int
    in_doubt: int
    pending: int
    cancelled: int
    calls: int
    throttled: int
    retried: int
    faults: int
    in_flight: int
    rate_per_s: float
    """Calls per second that the service is believed to allow."""
    lane_state: str


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
    """The engine is done, or was stopped. Devices by class speak of the whole run."""

    exit: int
    reason: str | None = None
    accepted: int = 0
    rejected: int = 0
    in_doubt: int = 0
    pending: int = 0
    cancelled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsMissed(Event):
    """The hook fell so far behind that events of batches and progress were left out; the run lost nothing."""

    count: int


Hook = Callable[[Event], object]
"""Called with every event, in order, one at a time. A plain function is called on a thread of its own, a
coroutine function is awaited on the run's loop. It may be slow or raise: neither harms the run."""


class Call(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One call that came back, for metrics and spans; made only where somebody listens."""

    batch: int
    devices: int
    attempt: int
    """1-based, of the batch in this process."""
    answer: str
    """One of `Kind`'s values."""
    task_id: str | None
    sent_at: float
    """Unix seconds."""
    elapsed_s: float


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

    def classes(self) -> dict[str, int]:
        """Return devices by class, of the whole run; what is claimed and not settled counts as pending."""
        base = self.base
        if base is None:
            return dict.fromkeys(DEVICE_CLASSES, 0)
        accepted = base.accepted + self.settled.get("accepted", 0)
        rejected = base.rejected + self.settled.get("rejected", 0)
        rest = base.devices - accepted - rejected - self.in_doubt - base.cancelled
        values = (accepted, rejected, self.in_doubt, rest, base.cancelled)
        return dict(zip(DEVICE_CLASSES, values, strict=True))

    def event(self, run: str) -> RunProgressed:
        """Return how it stands now."""
        return RunProgressed(
            run=run,
            **self.classes(),
            calls=self.calls,
            throttled=self.throttled,
            retried=self.retried,
            faults=self.faults,
            in_flight=self.in_flight,
            rate_per_s=round(self.rate_per_s, 3),
            lane_state=self.lane_state,
        )


class Hooks:
    """Hands events to listeners at once, on the loop, and keeps their faults to themselves."""

    def __init__(self, hooks: tuple[Hook, ...] = ()) -> None:
        """Tell `hooks` of events; they must be quick."""
        self._hooks = hooks
        self._calls: tuple[Callable[[Call], object], ...] = ()
        self._complained = False

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def hear_calls(self, hear: Callable[[Call], object]) -> None:
        """Tell `hear`, which must be quick, of every call that comes back; before the run is sent."""
        self._calls = (*self._calls, hear)

    @property
    def hears_calls(self) -> bool:
        """Whether anybody wants to know of calls."""
        return bool(self._calls)

    def emit(self, event: Event) -> None:
        """Tell every hook of `event`."""
        for hook in self._hooks:
            self._tell(hook, event)

    def call(self, call: Call) -> None:
        """Tell of a call that came back."""
        for hear in self._calls:
            self._tell(hear, call)

    def _tell(self, hear: Callable[[Any], object], what: Event | Call) -> None:
        try:
            hear(what)
        except Exception:
            if not self._complained:
                self._complained = True
                log.exception("an event hook raised; it is called on, and the run goes on")


def _words(name: str) -> str:
    """`BatchSettled` → `batch settled`."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


def _short(value: object) -> str:
    """Render a value; of several device ids the first."""
    if not isinstance(value, tuple):
        return str(value)
    return "-" if not value else f"{value[0]}{f' and {len(value) - 1} more' if len(value) > 1 else ''}"
