"""The state of a lane: may it send, how much at once, and when must it stop? Pure.

A lane is one account and region. What befalls it befalls every batch, so it is judged here and not per
batch: an outage must not taint a fleet with doubt one timed-out batch at a time, and a wrong region must
not be reported as forty thousand bad devices.

    OPEN      everything flows
    SLOWED    several faults in a row: at most 8 calls fly, so that an outage finds few batches in the air
    PROBING   an outage: no new batch; single probes that burn no attempts
    PAUSED    the service's quota is used up: single probes, further apart; or there are no credentials:
              nothing is sent, and each probe begins with a renewal
    DENIED    credentials, signature or permission refused: renew them once, then probe once
    TRIAL     nothing was accepted yet and everything is poison: find out whether it is the request
    STOPPED   for good, in this process

`reason` says why it is not open. All of it but the learned rate lives and dies with the process.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from dispatcher.model import Answer, Kind, Pace

UNPROVEN_WINDOW = 8
"""Calls in flight before a lane's first acceptance (docs/architecture.md "Systemic")."""
SLOWED_AFTER = 5
"""Faults in a row that slow a lane."""
PROBE_AFTER = 20
"""Faults in a row that make an outage (docs/architecture.md "Outage")."""
ODD_LIMIT = 5
"""Answers in a row that no service of this kind gives: redirects, a proxy's 403 with no modelled code."""
HELD_LIMIT = 5
"""Poisoned batches before any acceptance that make one of them a trial."""
_PROBE_S = {"probing": (0.5, 10.0), "paused": (2.0, 60.0), "denied": (0.0, 0.0)}  # (first, longest)
_RENEW_S = (1.0, 30.0)
"""The same for a lane that waits for credentials: an operator who logs in again should see it go on."""


class LaneState(enum.Enum):
    OPEN = "open"
    SLOWED = "slowed"
    PROBING = "probing"
    PAUSED = "paused"
    DENIED = "denied"
    TRIAL = "trial"
    STOPPED = "stopped"


FLOWING = frozenset({LaneState.OPEN, LaneState.SLOWED})

LANE_TRANSITIONS: dict[LaneState, frozenset[LaneState]] = {
    LaneState.OPEN: frozenset(
        {
            LaneState.SLOWED,
            LaneState.PROBING,
            LaneState.PAUSED,
            LaneState.DENIED,
            LaneState.TRIAL,
            LaneState.STOPPED,
        }
    ),
    LaneState.SLOWED: frozenset(
        {
            LaneState.OPEN,
            LaneState.PROBING,
            LaneState.PAUSED,
            LaneState.DENIED,
            LaneState.TRIAL,
            LaneState.STOPPED,
        }
    ),
    LaneState.PROBING: frozenset({LaneState.OPEN, LaneState.PAUSED, LaneState.DENIED, LaneState.STOPPED}),
    LaneState.PAUSED: frozenset({LaneState.OPEN, LaneState.PROBING, LaneState.DENIED, LaneState.STOPPED}),
    LaneState.DENIED: frozenset({LaneState.OPEN, LaneState.PROBING, LaneState.PAUSED, LaneState.STOPPED}),
    LaneState.TRIAL: frozenset({LaneState.OPEN, LaneState.STOPPED}),
    LaneState.STOPPED: frozenset(),
}
"""Every legal move; an absent one raises."""


@dataclass(slots=True)
class LanePolicy:
    """One lane's state; `observe` is told every answer, and the rest are questions."""

    patience_s: float
    """Seconds without an answer that is not throttle, quota or fault, after which the lane stops."""
    max_in_flight: int
    now_s: float
    """Monotonic instant of creation."""
    proven: bool = False
    """Whether this run ever had a task accepted here; until then poison is held back."""
    state: LaneState = LaneState.OPEN
    reason: str | None = None
    """Why the lane is not open, for people; None while it is."""
    lacks_credentials: bool = False
    """Whether nothing can be sent before a renewal succeeds."""
    last_good_s: float = field(init=False)
    faults: int = 0
    probes: int = 0
    next_probe_s: float = 0.0
    _odd: int = 0
    _last: Answer | None = None
    _renewed: bool = False

    def __post_init__(self) -> None:
        self.last_good_s = self.now_s

    @property
    def is_flowing(self) -> bool:
        return self.state in FLOWING

    @property
    def window(self) -> int:
        """Calls that may fly at once."""
        if not self.proven or self.state is LaneState.SLOWED:
            return min(UNPROVEN_WINDOW, self.max_in_flight)
        return self.max_in_flight

    def observe(self, answer: Answer, now_s: float) -> None:
        """Take in one answer of this lane."""
        if self.state is LaneState.STOPPED:
            return
        self._last = answer
        self._odd = self._odd + 1 if answer.kind is Kind.ODD else 0
        if answer.pace is Pace.OK:
            self._good(answer, now_s)
            return
        if answer.kind is Kind.DENIED:
            self._denied(answer, now_s)
        elif answer.kind in (Kind.EXPIRED, Kind.NO_CREDENTIALS):
            self._without_credentials(answer, now_s)
        elif self.lacks_credentials:
            pass  # sent before: what it says of the service will be heard again
        elif answer.pace is Pace.FAULT:
            self._fault(answer, now_s)
        elif self.state is LaneState.TRIAL:
            pass  # a trial waits a throttle or a quota out, as long as there is patience
        elif answer.pace is Pace.QUOTA:
            self._enter(LaneState.PAUSED, now_s, f"the service's quota is used up ({_said(answer)})")
        else:
            self.faults = 0
            self._enter(LaneState.OPEN, now_s)  # it throttles, so it lives
        self.check_patience(answer, now_s)

    def _good(self, answer: Answer, now_s: float) -> None:
        self.last_good_s = now_s
        self.faults = 0
        self._renewed = False
        if answer.kind is Kind.ACCEPTED:
            self.proven = True
        if self.state not in (LaneState.OPEN, LaneState.TRIAL) and not self.lacks_credentials:
            self._enter(LaneState.OPEN, now_s)

    def _fault(self, answer: Answer, now_s: float) -> None:
        self.faults += 1
        if self._odd >= ODD_LIMIT:
            self.stop(f"the service gives answers that are not its own ({_said(answer)})")
        elif self.state is LaneState.TRIAL:
            pass
        elif self.faults >= PROBE_AFTER or not self.is_flowing:
            self._enter(LaneState.PROBING, now_s, f"{self.faults} faults in a row ({_said(answer)})")
        elif self.faults >= SLOWED_AFTER:
            self._enter(LaneState.SLOWED, now_s, f"{self.faults} faults in a row ({_said(answer)})")

    def _denied(self, answer: Answer, now_s: float) -> None:
        self.faults += 1
        if self._renewed:
            self.stop(f"the service refuses our credentials or permissions ({_said(answer)})")
        elif self.state not in (LaneState.DENIED, LaneState.TRIAL):
            self._enter(LaneState.DENIED, now_s, f"refused, so credentials are renewed ({_said(answer)})")

    def _without_credentials(self, answer: Answer, now_s: float) -> None:
        """Wait for credentials: nobody's fault, so no fault of the service is counted."""
        if self.lacks_credentials and not self.is_flowing:
            return  # on its way before the lane was paused; what a renewal says comes after `renewed`
        self.lacks_credentials = True
        reason = answer.message or _said(answer)
        if answer.kind is Kind.EXPIRED:
            reason = f"the service says that the credentials expired ({_said(answer)})"
        if self.state is LaneState.TRIAL:
            self.reason = reason
            return
        self._enter(LaneState.PAUSED, now_s, reason, between_s=_RENEW_S)
        if not self._renewed:
            self.next_probe_s, self.probes = now_s, 0  # the first renewal comes at once

    def renewed(self) -> None:
        """Note that credentials and clock were renewed: the next refusal is final."""
        self._renewed = True
        self.lacks_credentials = False

    def patience_left_s(self, now_s: float) -> float:
        """Return the seconds until the lane stops if nothing good comes."""
        return max(0.0, self.last_good_s + self.patience_s - now_s)

    def check_patience(self, answer: Answer | None, now_s: float) -> None:
        """Stop the lane when nothing good came for `patience_s`."""
        if self.state is not LaneState.STOPPED and self.patience_left_s(now_s) <= 0.0:
            answer = answer or self._last
            last = f" ({_said(answer)})" if answer is not None and answer.pace is not Pace.OK else ""
            self.stop(f"nothing was accepted for {self.patience_s:g} s, the patience_s of this run{last}")

    def begin_trial(self) -> None:
        """Nothing was accepted and enough is poison: one batch will tell why."""
        self._move(LaneState.TRIAL)
        self.reason = "nothing was accepted yet: one batch is tried device by device"

    def end_trial(self, *, accepted: bool, now_s: float, because: str) -> None:
        """Open the lane, or stop it: no device of the tried batch was accepted."""
        if self.state is not LaneState.TRIAL:
            return
        if accepted:
            self.lacks_credentials = False
            self._enter(LaneState.OPEN, now_s)
        else:
            self.stop(because)

    def stop(self, reason: str) -> None:
        """Stop the lane for good."""
        if self.state is not LaneState.STOPPED:
            self._move(LaneState.STOPPED)
            self.reason = reason

    def probe_in_s(self, now_s: float) -> float:
        """Return the seconds until the next probe, never beyond the lane's patience."""
        return min(max(0.0, self.next_probe_s - now_s), self.patience_left_s(now_s))

    def _enter(
        self,
        state: LaneState,
        now_s: float,
        reason: str | None = None,
        *,
        between_s: tuple[float, float] | None = None,
    ) -> None:
        self.reason = reason
        if state in FLOWING:
            self.probes = 0
        elif state is not self.state or now_s >= self.next_probe_s:  # stragglers of the flow are no probes
            first, cap = between_s or _PROBE_S[state.value]
            self.next_probe_s = now_s + min(cap, first * 2.0 ** min(self.probes, 20))
            self.probes += 1
        if state is not self.state:
            self._move(state)

    def _move(self, state: LaneState) -> None:
        if state not in LANE_TRANSITIONS[self.state]:
            raise ValueError(f"a lane cannot go from {self.state.value} to {state.value}")
        self.state = state


def _said(answer: Answer) -> str:
    return ": ".join(part for part in (answer.code, answer.message) if part) or answer.kind.value
