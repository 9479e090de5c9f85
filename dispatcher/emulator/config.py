"""How one emulated service behaves: everything the real one leaves undocumented is a setting here."""

from __future__ import annotations

import difflib
import enum
import math
import re
from dataclasses import dataclass, field

from dispatcher.emulator.api import load_api
from dispatcher.emulator.faults import FaultPlan
from dispatcher.emulator.fleet import AnyFleet, Fleet
from dispatcher.errors import UsageError

EVERY_OPERATION = "all"
TAG_PERMISSION = "TagResource"
"""CreateTask with tags needs this permission too (service authorization reference)."""


class Mismatch(enum.StrEnum):
    """What a known client token with other parameters gets."""

    VALIDATION = "validation"  # 400 ValidationException that speaks of the token
    FIRST = "first"  # the first task's id, silently
    NEW = "new"  # a new task, which the token names from then on


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One service. Raises UsageError, naming the setting, for a value that cannot be.

    Rates are per second; durations are seconds.
    """

    fleet: Fleet = field(default_factory=AnyFleet)
    bad_ids: frozenset[str] = frozenset()
    """Ids that do not exist, whatever the fleet says."""
    region: str = "us-west-2"
    """The one region that has the fleet; calls for another see none of it."""
    account: str = "123456789012"
    seed: int = 0
    rate_per_s: float | None = None
    """CreateTask calls admitted per second; None admits all."""
    burst: float | None = None
    """Permits the bucket holds; None means one second's worth, at least 1."""
    quota: int | None = None
    """Tasks that may count at once; None means no quota."""
    quota_frees_s: float | None = None
    """Age at which a task no longer counts against the quota; None means never."""
    token_window_s: float = 8 * 3600.0
    """Age of a task at which its client token is forgotten (8 h: the mode of the sister services)."""
    mismatch: Mismatch = Mismatch.VALIDATION
    deny: frozenset[str] = frozenset()
    """Operations answered with AccessDeniedException; `all` for every one."""
    faults: FaultPlan = field(default_factory=FaultPlan)
    latency_s: float = 0.0
    """Mean time from serving a call to answering it."""
    latency_jitter: float = 0.0
    """0 to 1: how far, as a share of the mean, a call's latency may lie from it."""
    settle_s: float = 10.0
    """Every execution has succeeded this long after its task was made."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9]{12}", self.account):
            raise UsageError(f"account {self.account!r} is not 12 digits")
        if not re.fullmatch(r"[a-z0-9-]{1,32}", self.region):
            raise UsageError(f"region {self.region!r} is not a region's name")
        _require("rate_per_s", self.rate_per_s, is_positive=True)
        _require("burst", self.burst, low=1)
        _require("quota", self.quota)
        _require("quota_frees_s", self.quota_frees_s)
        _require("latency_s", self.latency_s)
        _require("latency_jitter", self.latency_jitter)
        _require("settle_s", self.settle_s)
        if not self.token_window_s >= 0:  # endless is allowed
            raise UsageError(f"token_window_s {self.token_window_s:g} is not at least 0")
        if self.latency_jitter > 1:
            raise UsageError(f"latency_jitter {self.latency_jitter:g} is more than 1")
        if self.burst is not None and self.rate_per_s is None:
            raise UsageError("burst needs a rate")
        known = [*load_api().operations, EVERY_OPERATION]
        for name in sorted(self.deny.difference(known)):
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(f"unknown operation {name!r}", hint=f"did you mean {near[0]}?" if near else None)

    def denies(self, name: str) -> bool:
        """Say whether this operation or permission is denied."""
        return name in self.deny or EVERY_OPERATION in self.deny


def _require(name: str, value: float | None, *, low: float = 0, is_positive: bool = False) -> None:
    """Refuse a number that is below `low`, not finite, or zero where it must be positive."""
    if value is None:
        return
    if not (math.isfinite(value) and value >= low) or (is_positive and value == 0):
        bound = "more than 0" if is_positive else f"at least {low:g} and finite"
        raise UsageError(f"{name} {value:g} is not {bound}")
