"""How one emulated service behaves: everything the real one leaves undocumented is a setting here."""

from __future__ import annotations

import difflib
import enum
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dispatcher.emulator.api import load_api
from dispatcher.emulator.faults import FaultPlan
from dispatcher.emulator.fleet import AnyFleet, Fleet
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

EVERY_OPERATION = "all"
TAG_PERMISSION = "TagResource"
"""CreateTask with tags needs this permission too (service authorization reference)."""


class Mismatch(enum.StrEnum):
    """What a known client token with other parameters gets."""

    VALIDATION = "validation"  # 400 ValidationException that speaks of the token
    FIRST = "first"  # the first task's id, silently
    NEW = "new"  # a new task, which the token names from then on
    PARAMETERS = "parameters"  # 400 IdempotentParameterMismatchException, as EC2 and SSM have it
    CONFLICT = "conflict"  # 409 ConflictException, as ECS and IoT have it


class BadTarget(enum.StrEnum):
    """What a call with some unknown devices gets."""

    NOT_FOUND = "not_found"  # 404 for the whole call
    VALIDATION = "validation"  # 400 for the whole call
    SKIP = "skip"  # a task for the known ones alone; 404 where there are none
    ACCEPT = "accept"  # a task for all; the unknown ones never pick it up


class Ending(enum.StrEnum):
    """How an execution that a device picked up ends; without a share it succeeds."""

    FAILED = "failed"
    REJECTED = "rejected"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One service. Raises UsageError, naming the setting, for a value that cannot be.

    Rates are per second; durations are seconds; shares are 0 to 1.
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
    read_rate_per_s: float | None = None
    """Other calls admitted per second, together; None admits all."""
    read_burst: float | None = None
    """Permits of their bucket; None means one second's worth, at least 1."""
    shared_rate: bool = False
    """All operations share CreateTask's bucket."""
    quota: int | None = None
    """Tasks that may count at once; None means no quota."""
    quota_frees_s: float | None = None
    """Age at which a task no longer counts against the quota; None means never."""

    token_window_s: float = 8 * 3600.0
    """Age of a task at which its client token is forgotten (8 h: the mode of the sister services)."""
    forget_tokens: float = 0.0
    """Share of client tokens that are forgotten at once: a service that breaks its word."""
    mismatch: Mismatch = Mismatch.VALIDATION
    bad_target: BadTarget = BadTarget.NOT_FOUND
    deny: frozenset[str] = frozenset()
    """Operations answered with AccessDeniedException; `all` for every one."""
    faults: FaultPlan = field(default_factory=FaultPlan)
    latency_s: float = 0.0
    """Mean time from serving a call to answering it."""
    latency_jitter: float = 0.0
    """How far, as a share of the mean, a call's latency may lie from it."""

    list_lag_s: float = 0.0
    """Age at which a task begins to show in ListTasks."""
    list_keeps_s: float | None = None
    """Age at which a task drops out of ListTasks; None means never."""
    task_keeps_s: float | None = None
    """Age at which a task is gone from every operation; None means never."""
    list_newest_first: bool = False
    """ListTasks lists the newest task first."""
    page_then_filter: bool = False
    """Pages are cut before the filter: one may be short, or empty, and have a next token."""
    max_tags: int = 50
    """Tags a resource may have (the general rule of AWS)."""
    max_tag_key: int = 128
    """Characters of a tag's key."""
    max_tag_value: int = 256
    """Characters of a tag's value."""

    settle_s: float = 10.0
    """An execution ends this long after its task was made, or after its device's turn came."""
    endings: Mapping[Ending, float] = field(default_factory=dict)
    """Shares of executions that end other than SUCCEEDED."""
    offline: float = 0.0
    """Share of devices that never pick a task up."""
    locked: float = 0.0
    """Share of devices that are locked before their first task."""
    reach_out_s: float = 60.0
    """How often an idle device calls home."""
    cancel_lag_s: float = 0.5
    """From taking a cancel to its effect: an execution that begins in between runs."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9]{12}", self.account):
            raise UsageError(f"account {self.account!r} is not 12 digits")
        if not re.fullmatch(r"[a-z0-9-]{1,32}", self.region):
            raise UsageError(f"region {self.region!r} is not a region's name")
        for name in ("rate_per_s", "read_rate_per_s", "reach_out_s"):
            _require(name, getattr(self, name), is_positive=True)
        for name in _DURATIONS:
            _require(name, getattr(self, name))
        for name in ("burst", "read_burst", "max_tag_key", "max_tag_value"):
            _require(name, getattr(self, name), low=1)
        for name in ("latency_jitter", "forget_tokens", "offline", "locked"):
            _require(name, getattr(self, name), high=1)
        if not self.token_window_s >= 0:  # endless is allowed
            raise UsageError(f"token_window_s {self.token_window_s:g} is not at least 0")
        if self.burst is not None and self.rate_per_s is None:
            raise UsageError("burst needs a rate")
        if self.read_burst is not None and self.read_rate_per_s is None:
            raise UsageError("read_burst needs a read rate")
        if self.shared_rate and (self.rate_per_s is None or self.read_rate_per_s is not None):
            raise UsageError("shared_rate needs a rate, and no read rate")
        for ending, share in self.endings.items():
            _require(f"share of {ending}", share, high=1)
        if math.fsum(self.endings.values()) > 1 + 1e-9:
            raise UsageError("the shares of endings sum to more than 1")
        known = [*load_api().operations, EVERY_OPERATION]
        for name in sorted(self.deny.difference(known)):
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(f"unknown operation {name!r}", hint=f"did you mean {near[0]}?" if near else None)

    def denies(self, name: str) -> bool:
        """Say whether this operation or permission is denied."""
        return name in self.deny or EVERY_OPERATION in self.deny

    def knows(self, device_id: str) -> bool:
        """Say whether the device exists."""
        return device_id not in self.bad_ids and self.fleet.knows(device_id)


_DURATIONS = (
    "quota",
    "quota_frees_s",
    "latency_s",
    "settle_s",
    "list_lag_s",
    "list_keeps_s",
    "task_keeps_s",
    "cancel_lag_s",
    "max_tags",
)
"""What must be finite and at least 0."""


def _require(
    name: str, value: float | None, *, low: float = 0, high: float = math.inf, is_positive: bool = False
) -> None:
    """Refuse a number that is out of bounds, not finite, or zero where it must be positive."""
    if value is None:
        return
    if not (math.isfinite(value) and value >= low) or (is_positive and value == 0):
        bound = "more than 0" if is_positive else f"at least {low:g} and finite"
        raise UsageError(f"{name} {value:g} is not {bound}")
    if value > high:
        raise UsageError(f"{name} {value:g} is more than {high:g}")


def parse_ending(text: str) -> tuple[Ending, float]:
    """Read `NAME=SHARE`; raises UsageError with a suggestion for an unknown name."""
    name, equals, share_text = text.partition("=")
    names = [ending.value for ending in Ending]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(names)}"
        raise UsageError(f"unknown ending {name!r}", hint=hint)
    try:
        share = float(share_text)
    except ValueError:
        share = math.nan
    if not equals or not 0 <= share <= 1:
        raise UsageError(f"ending {name} needs a share between 0 and 1, not {share_text!r}")
    return Ending(name), share
