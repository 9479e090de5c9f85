"""What one seed decides: a fleet, a service, limits, and an explicit list of all that goes wrong.

The list is drawn before anything runs, and nothing else is wrong with the world: so it can be printed,
replayed, and thinned until only what matters is left (`shrink`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

CALL_FAULTS = (
    "refused", "reset_before", "lost_reply", "timeout", "late_arrival", "error_500", "error_500_after",
    "bare_503", "bare_429", "bare_503_after", "proxy_403_after", "truncated", "empty_200", "redirect",
    "proxy_403", "denied", "expired", "vanish", "mismatch", "throttled",
)  # fmt: skip
"""What may befall one call; `_after` and those that spoil a 200 come when the task was made."""
WINDOWS = (
    "denied",
    "refused",
    "reset_before",
    "lost_reply",
    "timeout",
    "bare_503",
    "throttled",
    "quota",
    "expired",
)
"""What may befall every call for a while."""
SLEEP_IO = "sleep_io"
"""A machine that sleeps within an I/O: what was looked at before it is of long ago after it."""
MOMENTS = ("kill_step", "kill_io", "power_io", "power_step", "drain", "stop", "takeover", "sleep", "jump",
           "second", "backup", "stall", "io_eio", "io_enospc", "io_short", "disk_full", SLEEP_IO)  # fmt: skip
"""What may befall a process while it runs, or an operator may do meanwhile."""
BETWEEN = ("gap", "days", "window_passes", "edit", "reorder", "lose", "stale", "move", "move_fresh",
           "move_stale", "limits", "limit", "resume", "power")  # fmt: skip
"""What may happen, or an operator may do, before a process starts."""
FAULTS_OF_IO = {"io_eio": "eio", "io_enospc": "enospc", "io_short": "short_write", "disk_full": "enospc"}


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that goes wrong. `at` is a call's number, a second, a step or an I/O, as `kind` has it."""

    kind: str
    what: str
    life: int = -1
    at: float = 0.0
    value: float = 0.0

    def text(self) -> str:
        return f"{self.kind} {self.what} life={self.life} at={self.at:g} value={self.value:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that a seed decides before the first step."""

    seed: int
    devices: int
    bad: frozenset[int]
    """Devices that the service does not know."""
    is_wrong_region: bool
    is_shuffled: bool
    """Whether ready handles run in any order, or in the order they became ready."""
    command: str
    limits: dict[str, Any]
    latency_s: float
    service_rate_per_s: float | None
    service_window_s: float
    """How long the service remembers a client token."""
    lives: int
    """Processes before the last one, in which nothing goes wrong any more."""
    items: tuple[Item, ...]
    is_wire: bool = False
    """Whether calls go through the wire transport, as bytes."""

    def of_life(self, kind: str, life: int) -> list[Item]:
        return [item for item in self.items if item.kind == kind and item.life == life]

    def without(self, gone: set[int]) -> Scenario:
        return replace(self, items=tuple(item for n, item in enumerate(self.items) if n not in gone))

    def text(self) -> str:
        by = " by wire" if self.is_wire else ""
        head = (
            f"seed {self.seed}: {self.devices} devices, {len(self.bad)} bad, {self.lives} lives,"
            f" {self.command}{by}, window {self.service_window_s:g} s, {self.limits}"
        )
        return "\n".join([head, *(f"  {n:3} {item.text()}" for n, item in enumerate(self.items))])


def draw(seed: int) -> Scenario:
    """Draw the scenario of a seed; only a random subset of what can go wrong does (swarm testing)."""
    rng = random.Random(f"scenario-{seed}")
    devices = rng.choice((1, 7, 10, rng.randint(5, 60), rng.randint(20, 200)))
    # Sleeps within an I/O are drawn apart: all else of a seed stays as it was before there were any.
    kinds = (*CALL_FAULTS, *WINDOWS, *(what for what in MOMENTS if what != SLEEP_IO), *BETWEEN)
    swarm = {name for name in kinds if rng.random() < 0.3}
    if rng.random() < 0.15:
        swarm = set()
    if swarm & {"stale", "move_stale"}:
        swarm.add("backup")
    lives = rng.choice((1, 1, 2, 3, 4))
    bad_share = rng.choice((0.0, 0.0, 0.0, 0.02, 0.1, 0.3, 1.0))
    token_window_s = rng.choice((60.0, 300.0, 600.0, 3600.0))
    if swarm & {"lose", "stale"} and rng.random() < 0.6:
        # A checkpoint is rebuilt only where nothing was cut anew and the window has not passed.
        swarm -= {"limit", "edit", "reorder", "vanish", "window_passes", "days", "gap", "sleep", "stop"}
        swarm -= {"move", "move_fresh", "move_stale", "takeover"}
        bad_share, token_window_s = 0.0, 3600.0
    service_window_s = rng.choice((token_window_s, 8 * 3600.0, 8 * 3600.0))
    if swarm & {"move_fresh", "move_stale"}:
        service_window_s = 48 * 3600.0  # there the client token is all that is left
    limits = {
        "rate_per_s": rng.choice((2.0, 10.0, 10.0, 50.0, 200.0)),
        "burst": rng.choice((1, 3, 10)),
        "max_in_flight": rng.choice((1, 4, 16, 64)),
        "attempt_timeout_s": rng.choice((2.0, 10.0)),
        "max_attempts": rng.choice((1, 2, 3, 8)),
        "patience_s": rng.choice((30.0, 120.0, 600.0, 3600.0)),
        "token_window_s": token_window_s,
        "rate_control": rng.choice(("learn", "fixed")),
    }
    is_tight = service_window_s == token_window_s
    items = [
        *_call_faults(rng, sorted(swarm & set(CALL_FAULTS))),
        *_windows(rng, sorted(swarm & set(WINDOWS))),
        *_moments(rng, sorted(swarm & set(MOMENTS)), lives, is_tight=is_tight),
        *_between(rng, sorted(swarm & set(BETWEEN)), lives, token_window_s),
    ]
    if not swarm & {"lose", "stale"}:  # a rebuilt checkpoint needs its window
        items += _sleeps(random.Random(f"sleep-{seed}"), lives)
    return Scenario(
        seed=seed,
        devices=devices,
        bad=frozenset(n for n in range(devices) if rng.random() < bad_share),
        is_wrong_region=rng.random() < 0.02,
        is_shuffled=rng.random() < 0.5,
        command=rng.choice(("reboot", "unlock")),
        limits=limits,
        latency_s=rng.choice((0.001, 0.02, 0.1, 0.5)),
        service_rate_per_s=rng.choice((None, None, 1.0, 5.0, 20.0)),
        service_window_s=service_window_s,
        lives=lives,
        items=tuple(items),
        is_wire=random.Random(f"wire-{seed}").random() < 0.4,
    )


def _call_faults(rng: random.Random, faults: list[str]) -> list[Item]:
    if not faults:
        return []
    share = rng.choice((0.02, 0.1, 0.3))
    return [Item("call", rng.choice(faults), at=n) for n in range(1, 400) if rng.random() < share]


def _windows(rng: random.Random, modes: list[str]) -> list[Item]:
    return [
        Item("window", mode, at=round(rng.uniform(0, 20), 3), value=round(rng.choice((0.5, 5, 60, 400)), 3))
        for mode in modes
    ]


def _moments(rng: random.Random, kinds: list[str], lives: int, *, is_tight: bool) -> list[Item]:
    items = []
    if rng.random() < 0.5 and "backup" in kinds:
        items.append(Item("moment", "backup", 0, round(rng.uniform(0, 2), 3)))
    for life in range(lives):
        for what in rng.sample(kinds, min(len(kinds), rng.choice((0, 1, 1, 2)))):
            at, value = round(rng.uniform(0, 8), 3), 0.0
            if what.endswith("_step"):
                at = rng.randint(1, rng.choice((30, 300, 3000)))
            elif what.endswith("_io") or what in FAULTS_OF_IO:
                at = rng.randint(1, rng.choice((30, 200, 800)))
            elif what in ("sleep", "stop", "takeover"):
                at, value = round(rng.uniform(0, 20), 3), rng.choice((3.0, 15.0, 100.0, 4000.0, 4000.0))
                if what == "takeover":
                    at /= 10.0  # early, while there is something to send
            elif what == "stall":
                value = rng.choice((0.5, 5.0, 30.0))
            elif what == "jump":
                # Back only where the service remembers for longer: no clock of ours can tell otherwise.
                value = rng.choice((5.0, 700.0, 4000.0) if is_tight else (-700.0, -5.0, 5.0, 700.0, 4000.0))
            items.append(Item("moment", what, life, at, value))
    return items


def _sleeps(rng: random.Random, lives: int) -> list[Item]:
    """One seed in four has a machine that sleeps within I/Os of one process."""
    if rng.random() >= 0.25:
        return []
    life, many = rng.randrange(lives), rng.choice((100, 300, 1000))
    return [
        Item("moment", SLEEP_IO, life, rng.randint(10, many), rng.choice((15.0, 4000.0, 4000.0)))
        for _ in range(rng.choice((1, 3)))
    ]


def _between(rng: random.Random, kinds: list[str], lives: int, token_window_s: float) -> list[Item]:
    items = []
    for life in range(1, lives + 1):
        for what in rng.sample(kinds, min(len(kinds), rng.choice((0, 1, 2, 3)))):
            value = 0.0
            if what == "gap":
                share = rng.random()  # below zero: until so long before the window of the oldest doubt ends
                value = round(token_window_s * share if share > 0.5 else -3.0 * share, 3)
            elif what == "days":
                value = round(rng.uniform(0.25, 3.0) * 86_400, 3)
            elif what == "window_passes":
                value = token_window_s * 1.05
            elif what in ("edit", "reorder", "limits", "power"):
                value = rng.randrange(1 << 30)
            elif what == "limit":
                value = rng.randint(1, 40)
            items.append(Item("between", what, life, 0.0, value))
    order = {what: n for n, what in enumerate(BETWEEN)}
    return sorted(items, key=lambda item: (item.life, order[item.what] if item.what != "power" else -1))
