"""One check: a verdict, a sentence, and what to do."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any


class Verdict(enum.StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    """A run would go on, and somebody may regret it."""
    FAIL = "fail"
    """A run would stop, or not begin."""
    SKIP = "skip"
    """Cannot be known here, or does not matter here."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    message: str
    hint: str | None = None
    """What to do about it."""


@dataclass(frozen=True, slots=True)
class Checkup:
    """All checks of one manifest."""

    run: str
    checks: tuple[Check, ...]
    policy: dict[str, Any]
    """The IAM policy that this manifest's run needs and no more."""

    @property
    def exit(self) -> int:
        """The exit code: 1 where a check failed."""
        return 1 if self.count(Verdict.FAIL) else 0

    def count(self, verdict: Verdict) -> int:
        """Return how many checks came out so."""
        return sum(check.verdict is verdict for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Return the documented object."""
        checks = [{**asdict(check), "verdict": str(check.verdict)} for check in self.checks]
        return {
            "run": self.run,
            "ok": not self.exit,
            "checks": checks,
            "policy": self.policy,
            "exit": self.exit,
        }


def ok(name: str, message: str) -> Check:
    return Check(name, Verdict.OK, message)


def warn(name: str, message: str, hint: str | None = None) -> Check:
    return Check(name, Verdict.WARN, message, hint)


def fail(name: str, message: str, hint: str | None = None) -> Check:
    return Check(name, Verdict.FAIL, message, hint)


def skip(name: str, message: str, hint: str | None = None) -> Check:
    return Check(name, Verdict.SKIP, message, hint)
