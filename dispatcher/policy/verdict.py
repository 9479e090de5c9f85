"""What to do with a batch after an answer: one function over the facts. Pure.

The rule that all else serves: **a batch may be split or rejected only if no attempt of it was ever
answered with `unknown`.** A lost reply followed by a 404 must not split: the task of the first attempt may
exist, and the halves would command its devices again.
"""

from __future__ import annotations

import enum

from dispatcher.model import Answer, Created, Kind


class Verdict(enum.Enum):
    """The next step of one batch."""

    ACCEPT = "accept"
    RETRY = "retry"  # same client token, after a backoff
    SPLIT = "split"  # poison among several targets: two halves, each with its own token
    REJECT = "reject"  # poison of one target
    REST = "rest"  # in doubt; this process may try once more at the end
    END = "end"  # in doubt; not again in this process
    PARK = "park"  # in doubt; only a reconcile may settle it


def verdict_for(answer: Answer, *, targets: int, tainted: bool, unknown: int, max_attempts: int) -> Verdict:
    """Return the next step.

    Args:
        answer: what the attempt brought back.
        targets: how many devices the batch holds.
        tainted: whether any attempt, of this process or an earlier one, left doubt; this one included.
        unknown: this process's attempts that left doubt, this one included, probes not.
        max_attempts: how many such attempts a batch may make before it rests.
    """
    created = answer.created
    if created is Created.YES:
        return Verdict.ACCEPT
    if answer.kind is Kind.MISMATCH:
        return Verdict.PARK
    if answer.kind is Kind.POISON:
        if tainted:
            return Verdict.END
        return Verdict.SPLIT if targets > 1 else Verdict.REJECT
    if created is Created.UNKNOWN and unknown >= max_attempts:
        return Verdict.REST
    return Verdict.RETRY
