"""Strikes calls with the configured faults and latency; the one place that remembers fates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dispatcher.emulator.draws import draw
from dispatcher.emulator.faults import BEFORE, SPOILS_200, Fault
from dispatcher.emulator.reply import Reply, denied, error, not_found

if TYPE_CHECKING:
    from dispatcher.emulator.config import Config

_BARE_STATUS = {
    Fault.BARE_429: 429,
    Fault.BARE_503: 503,
    Fault.REDIRECT: 307,
    Fault.RESET_BEFORE: 0,
}


@dataclass(frozen=True, slots=True)
class Fate:
    """What was drawn for one call."""

    fault: Fault | None
    key: str
    """The client token, or a name that the operation's calls without one share."""
    nth: int
    """1-based number of the call among those of its key."""


class Saboteur:
    """Draws the fate of each call and spoils replies accordingly."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._plan = config.faults
        self._is_active = config.latency_jitter > 0 or any(self._plan.shares.values())
        self._calls: Counter[str] = Counter()
        self._cursed: set[str] = set()
        self._first_call_s: float | None = None

    def fate(self, operation: str, client_token: str | None, now_s: float) -> Fate:
        """Draw for the next call of this operation and client token."""
        if self._first_call_s is None:
            self._first_call_s = now_s
        key = client_token if client_token is not None else "#" + operation
        nth = 0
        if self._is_active:
            nth = self._calls[key] = self._calls[key] + 1
        if self._plan.outage is not None and self._plan.outage.covers(now_s - self._first_call_s):
            return Fate(Fault.OUTAGE, key, nth)
        if not self._is_active or operation not in self._plan.operations:
            return Fate(None, key, nth)
        return Fate(self._plan.decide(self._config.seed, key, nth), key, nth)

    def refusal(self, operation: str, fate: Fate) -> Reply | None:
        """Return the reply of a call that a fault keeps from being served, else None."""
        fault = fate.fault
        if fate.key in self._cursed:
            return replace(not_found("the targets of the task"), fault=Fault.LOST_THEN_404)
        if fault is None or fault not in BEFORE:
            return None
        if fault is Fault.DENIED:
            reply = denied(operation)
        elif fault is Fault.ERROR_500:
            reply = _internal_error()
        elif fault is Fault.OUTAGE:
            reply = Reply(503 if self._plan.outage and self._plan.outage.mode == "503" else 0, {})
        else:
            reply = Reply(_BARE_STATUS[fault], {})
        return replace(reply, fault=fault)

    def spoil(self, reply: Reply, fate: Fate) -> Reply:
        """Apply a fault that strikes after the call was served."""
        fault = fate.fault
        if reply.task is not None and self._plan.curses(self._config.seed, fate.key):
            self._cursed.add(fate.key)
            return replace(reply, status=0, fault=Fault.LOST_THEN_404)
        if fault is None or (fault in SPOILS_200 and reply.status != 200):
            return reply
        if fault is Fault.LOST_REPLY:
            return replace(reply, status=0, fault=fault)
        if fault is Fault.ERROR_500_AFTER:
            shown = _internal_error()
            return replace(reply, status=shown.status, code=shown.code, body=shown.body, fault=fault)
        return replace(reply, body={} if fault is Fault.EMPTY_200 else reply.body, fault=fault)

    def delay(self, reply: Reply, fate: Fate) -> Reply:
        """Give the reply its latency and, where a fault has several forms, its form."""
        config = self._config
        if reply.fault is None and not config.latency_s:
            return reply
        spread = 0.0
        if config.latency_jitter:
            spread = config.latency_jitter * (2 * draw(config.seed, "latency", fate.key, fate.nth) - 1)
        chance = draw(config.seed, "form", fate.key, fate.nth) if reply.fault is not None else 0.0
        return replace(reply, delay_s=config.latency_s * (1 + spread), chance=chance)


def _internal_error() -> Reply:
    return error("InternalServerException", "an internal error occurred")
