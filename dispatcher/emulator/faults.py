"""What the emulated service does wrong, and when: pure decisions, one seed.

A fault strikes either before the call is served (nothing is made) or after it (the task exists, the
answer is spoilt). Faults of the second kind are what put a client in doubt. A spoilt 200 needs a 200 to
spoil: a call that was refused is answered truthfully, unless the whole reply is lost.
"""

from __future__ import annotations

import difflib
import enum
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dispatcher.emulator.draws import draw
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Fault(enum.StrEnum):
    """One way to fail. `outage` is scheduled, never drawn."""

    RESET_BEFORE = "reset_before"  # connection reset, nothing made
    BARE_429 = "bare_429"  # a proxy's 429: no code, an HTML body, nothing made
    BARE_503 = "bare_503"  # a proxy's 503, nothing made
    REDIRECT = "redirect"  # 307 to elsewhere, nothing made
    DENIED = "denied"  # AccessDeniedException, nothing made
    ERROR_500 = "error_500"  # InternalServerException, nothing made
    LOST_REPLY = "lost_reply"  # served, connection dropped without an answer
    ERROR_500_AFTER = "error_500_after"  # served, then InternalServerException
    TRUNCATED = "truncated"  # served, 200 with a body cut short
    EMPTY_200 = "empty_200"  # served, 200 with {}
    ENDLESS = "endless"  # served, 200 whose body never stops
    DRIP = "drip"  # served, the body comes one byte at a time
    LOST_THEN_404 = "lost_then_404"  # first call of a token as lost_reply, later ones 404
    OUTAGE = "outage"


BEFORE = frozenset(
    {
        Fault.RESET_BEFORE,
        Fault.BARE_429,
        Fault.BARE_503,
        Fault.REDIRECT,
        Fault.DENIED,
        Fault.ERROR_500,
        Fault.OUTAGE,
    }
)
"""Faults that strike before the call is served."""

SPOILS_200 = frozenset({Fault.ERROR_500_AFTER, Fault.TRUNCATED, Fault.EMPTY_200, Fault.ENDLESS})
"""Faults after serving that apply to a 200 only."""

DRAWN = tuple(fault for fault in Fault if fault not in {Fault.LOST_THEN_404, Fault.OUTAGE})
"""Faults of which at most one strikes a call; their shares sum to at most 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A stretch of time in which every call fails before it is served."""

    start_s: float
    """Seconds after the first call."""
    length_s: float
    mode: Literal["reset", "503"] = "reset"

    def covers(self, since_first_s: float) -> bool:
        """Say whether a call this many seconds after the first falls into the outage."""
        return self.start_s <= since_first_s < self.start_s + self.length_s


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """Shares of calls (0 to 1) that each fault strikes.

    Raises UsageError for a share outside 0 to 1, shares that sum to more than 1, or a drawn outage.
    """

    shares: Mapping[Fault, float] = field(default_factory=dict)
    outage: Outage | None = None
    operations: frozenset[str] = frozenset({"CreateTask"})
    """The operations that faults strike; an outage strikes all."""

    def __post_init__(self) -> None:
        for fault, share in self.shares.items():
            if not 0 <= share <= 1:
                raise UsageError(f"fault share {fault}={share:g} is not between 0 and 1")
        if Fault.OUTAGE in self.shares:
            raise UsageError("an outage is scheduled, it has no share", hint="use --outage START:LENGTH")
        total = math.fsum(self.shares.get(fault, 0.0) for fault in DRAWN)
        if total > 1 + 1e-9:
            raise UsageError(f"fault shares sum to {total:g}, more than 1")

    def decide(self, seed: int, key: str, nth: int) -> Fault | None:
        """Draw the fault of the `nth` (1-based) call with this key, the same for the same three values."""
        chance = draw(seed, "fault", key, nth)
        for fault in DRAWN:
            chance -= self.shares.get(fault, 0.0)
            if chance < 0:
                return fault
        return None

    def curses(self, seed: int, client_token: str) -> bool:
        """Say whether `lost_then_404` is this client token's fate."""
        share = self.shares.get(Fault.LOST_THEN_404, 0.0)
        return share > 0 and draw(seed, "curse", client_token) < share


def parse_fault(text: str) -> tuple[Fault, float]:
    """Read `NAME=SHARE`; raises UsageError with a suggestion for an unknown name."""
    name, equals, share_text = text.partition("=")
    names = [fault.value for fault in Fault if fault is not Fault.OUTAGE]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(names)}"
        raise UsageError(f"unknown fault {name!r}", hint=hint)
    try:
        share = float(share_text)
    except ValueError:
        share = math.nan
    if not equals or not 0 <= share <= 1:
        raise UsageError(f"fault {name} needs a share between 0 and 1, not {share_text!r}")
    return Fault(name), share


def parse_outage(text: str, *, mode: Literal["reset", "503"] = "reset") -> Outage:
    """Read `START:LENGTH`, both in seconds; raises UsageError."""
    start_text, _, length_text = text.partition(":")
    try:
        start_s, length_s = float(start_text), float(length_text)
    except ValueError:
        start_s = length_s = math.nan
    if not (0 <= start_s < math.inf and length_s > 0):
        raise UsageError(f"outage {text!r} is not START:LENGTH in seconds")
    return Outage(start_s=start_s, length_s=length_s, mode=mode)
