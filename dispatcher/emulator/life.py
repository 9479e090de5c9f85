"""What devices do with their tasks: pure functions of task, device, seed and time.

No device has a timer or a row that changes. An execution's two instants follow from the task's creation,
two seeded draws and the task before it on the same device, since a device runs one task at a time, in
the order they were made. So ten million devices and a million tasks cost nothing to advance; what is
looked at is worked out, and remembered until a cancel changes what is behind it.

What has happened never changes afterwards: a task made later runs later, and a cancelled one gives its
device free no earlier than its cancel takes effect.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from dispatcher.emulator.config import BadTarget, Ending
from dispatcher.emulator.draws import draw
from dispatcher.model import Command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatcher.emulator.config import Config
    from dispatcher.emulator.tasks import Task, TaskStore

_MAX_REMEMBERED = 100_000  # spans; about 20 MB
_LOST_AT = 1_735_689_600.0  # 2025-01-01: offline devices were last seen in the day before it


class Span(NamedTuple):
    """One execution in time; instants are Unix time, infinite where they never come."""

    begins_at: float
    ends_at: float
    free_at: float
    """From here on the device can run its next task."""
    canceled_at: float | None
    """When the cancel took effect; None where it ran, or will."""
    ending: str
    """SUCCEEDED, FAILED, REJECTED or TIMED_OUT, once it has ended."""

    def state(self, now_s: float) -> str:
        """Return the execution's state."""
        if self.canceled_at is not None and now_s >= self.canceled_at:
            return "CANCELED"
        if now_s < self.begins_at or self.canceled_at is not None:
            return "QUEUED"
        return "IN_PROGRESS" if now_s < self.ends_at else self.ending

    def changes(self) -> Iterator[float]:
        """Yield the instants at which the state changes."""
        if self.canceled_at is not None:
            yield self.canceled_at
        else:
            yield self.begins_at
            yield self.ends_at


class Life:
    """The lives of one service's devices."""

    def __init__(self, config: Config, store: TaskStore) -> None:
        self._config = config
        self._tasks = store
        self._spans: dict[tuple[int, str], Span] = {}
        self._ends_by_itself = config.offline == 0 and config.bad_target is not BadTarget.ACCEPT

    def forget(self) -> None:
        """Drop what was worked out: a cancel changes what is behind it."""
        self._spans.clear()

    def is_offline(self, device_id: str) -> bool:
        """Say whether the device never picks a task up."""
        share = self._config.offline
        if not self._ends_by_itself and not self._config.knows(device_id):
            return True
        return share > 0 and draw(self._config.seed, "offline", device_id) < share

    def span(self, task: Task, device_id: str) -> Span:
        """Return when the device begins and ends this task, by what is known of cancels."""
        known = self._spans.get((task.number, device_id))
        if known is not None:
            return known
        chain = [task]  # newest first, down to the first that needs no other
        before = self._tasks.before(task, device_id)
        while before is not None and (before.number, device_id) not in self._spans:
            chain.append(before)
            before = self._tasks.before(before, device_id)
        free_at = -math.inf if before is None else self._spans[before.number, device_id].free_at
        if len(self._spans) + len(chain) > _MAX_REMEMBERED:
            self._spans.clear()
        span = None
        for link in reversed(chain):
            span = self._spans[link.number, device_id] = self._span_after(link, device_id, free_at)
            free_at = span.free_at
        assert span is not None
        return span

    def _span_after(self, task: Task, device_id: str, free_at: float) -> Span:
        config = self._config
        seed, key = config.seed, task.task_id
        begins_at, ends_at = math.inf, math.inf
        ending = "SUCCEEDED"
        if not self.is_offline(device_id):
            waits_s = config.settle_s * 0.4 * draw(seed, "begins", key, device_id)
            share = 0.1 + 0.5 * draw(seed, "runs", key, device_id)
            chance = draw(seed, "ends", key, device_id) if config.endings else 1.0
            for name in Ending:
                chance -= config.endings.get(name, 0.0)
                if chance < 0:
                    ending, share = name.name, 0.6 if name is Ending.TIMED_OUT else share
                    break
            begins_at = max(task.created_at + waits_s, free_at)
            ends_at = begins_at + config.settle_s * share
        canceled_at = self._tasks.canceled_at(task)
        if canceled_at is not None and canceled_at + config.cancel_lag_s < begins_at:
            canceled_at += config.cancel_lag_s
            return Span(begins_at, ends_at, max(free_at, canceled_at), canceled_at, ending)
        return Span(begins_at, ends_at, ends_at, None, ending)

    def spans(self, task: Task) -> dict[str, Span]:
        """Return the task's executions by device."""
        return {device_id: self.span(task, device_id) for device_id in task.device_ids()}

    def task_state(self, task: Task, now_s: float) -> str:
        """Return IN_PROGRESS until every execution has ended, CANCELED where a cancel stopped one."""
        canceled_at = self._tasks.canceled_at(task)
        is_plain = canceled_at is None and self._ends_by_itself and not self._tasks.has_before(task)
        # Spares the draws for all but the newest tasks of devices that had nothing else to do.
        if is_plain and now_s - task.created_at >= self._config.settle_s:
            return "COMPLETED"
        spans = self.spans(task).values()
        states = [span.state(now_s) for span in spans]
        if "CANCELED" in states:
            return "CANCELED"
        return "IN_PROGRESS" if "QUEUED" in states or "IN_PROGRESS" in states else "COMPLETED"

    def completed_at(self, task: Task) -> float:
        """Return the Unix time of the last change of any execution, infinite where one never ends."""
        return max(moment for span in self.spans(task).values() for moment in span.changes())

    def last_change_at(self, task: Task, now_s: float) -> float:
        """Return the Unix time of the latest change up to now, creation included."""
        moments = (moment for span in self.spans(task).values() for moment in span.changes())
        return max((moment for moment in moments if moment <= now_s), default=task.created_at)

    def device_state(self, device_id: str, now_s: float) -> str:
        """Return UNLOCKED, LOCKED or UNLOCKING: a reboot locks, an unlock unlocks, others change nothing."""
        task = self._tasks.last_of(device_id)
        while task is not None:
            state = self.span(task, device_id).state(now_s)
            if task.command == Command.REBOOT and state in {"IN_PROGRESS", "SUCCEEDED"}:
                return "LOCKED"
            if task.command == Command.UNLOCK and state == "SUCCEEDED":
                return "UNLOCKED"
            if task.command == Command.UNLOCK and state == "IN_PROGRESS":
                return "UNLOCKING"
            task = self._tasks.before(task, device_id)
        share = self._config.locked
        is_locked = share > 0 and draw(self._config.seed, "locked", device_id) < share
        return "LOCKED" if is_locked else "UNLOCKED"

    def last_reached_out_at(self, device_id: str, now_s: float) -> float:
        """Return when the device last called home: every `reach_out_s`, and at every step of a task.

        An offline device did so long ago; one that reboots is silent until it is back.
        """
        config = self._config
        phase = draw(config.seed, "reaches", device_id)
        if self.is_offline(device_id):
            return min(now_s, _LOST_AT - 86_400 * phase)
        task, step_at = self._tasks.last_of(device_id), -math.inf
        while task is not None:
            span = self.span(task, device_id)
            state = span.state(now_s)
            if state not in {"QUEUED", "CANCELED"}:
                step_at = span.begins_at if state == "IN_PROGRESS" else span.ends_at
                if state == "IN_PROGRESS" and task.command == Command.REBOOT:
                    return step_at
                break
            task = self._tasks.before(task, device_id)
        beats = math.floor(now_s / config.reach_out_s - phase)
        return max((beats + phase) * config.reach_out_s, step_at)
