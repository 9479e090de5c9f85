"""What becomes of a batch after an answer: every row of the facts table."""

from __future__ import annotations

import itertools

import pytest

from dispatcher.model import Answer, Created, Kind
from dispatcher.policy.verdict import Verdict, verdict_for

IN_DOUBT = {Verdict.REST, Verdict.END, Verdict.PARK}


def verdict(kind: Kind, *, targets: int = 10, tainted: bool = False, unknown: int = 0) -> Verdict:
    return verdict_for(Answer(kind=kind), targets=targets, tainted=tainted, unknown=unknown, max_attempts=8)


@pytest.mark.parametrize(
    ("kind", "targets", "expected"),
    [
        (Kind.ACCEPTED, 10, Verdict.ACCEPT),
        (Kind.THROTTLED, 10, Verdict.RETRY),
        (Kind.UNREACHABLE, 10, Verdict.RETRY),
        (Kind.QUOTA, 10, Verdict.RETRY),
        (Kind.DENIED, 10, Verdict.RETRY),
        (Kind.POISON, 10, Verdict.SPLIT),
        (Kind.POISON, 2, Verdict.SPLIT),
        (Kind.POISON, 1, Verdict.REJECT),
    ],
)
def test_an_untainted_batch(kind: Kind, targets: int, expected: Verdict) -> None:
    """Where no attempt left doubt: accept, retry, split, or reject a single device."""
    assert verdict(kind, targets=targets) is expected


@pytest.mark.parametrize("kind", [Kind.UNREADABLE, Kind.BARE_THROTTLE, Kind.NO_REPLY, Kind.ODD])
def test_an_unknown_answer_is_sent_again_up_to_the_limit(kind: Kind) -> None:
    """The same token again until `max_attempts` answers left doubt; then the batch rests in doubt."""
    found = [verdict(kind, tainted=True, unknown=unknown) for unknown in range(1, 10)]
    assert found == [Verdict.RETRY] * 7 + [Verdict.REST] * 2


@pytest.mark.parametrize("targets", [1, 2, 10])
@pytest.mark.parametrize("unknown", [0, 1, 8])
def test_poison_after_doubt_ends_the_batch(targets: int, unknown: int) -> None:
    """A lost reply and then a 404 is neither split nor rejected: the task may exist."""
    assert verdict(Kind.POISON, targets=targets, tainted=True, unknown=unknown) is Verdict.END


@pytest.mark.parametrize("tainted", [False, True])
def test_a_token_used_with_other_parameters_is_parked(tainted: bool) -> None:
    """In doubt, never sent again, never poison, whatever came before."""
    assert verdict(Kind.MISMATCH, targets=1, tainted=tainted, unknown=1) is Verdict.PARK


@pytest.mark.parametrize("kind", [Kind.THROTTLED, Kind.UNREACHABLE, Kind.QUOTA, Kind.DENIED])
def test_what_was_not_created_burns_no_attempt(kind: Kind) -> None:
    """A throttle, a quota or an unreachable service is retried, though every attempt was burnt before."""
    assert verdict(kind, tainted=True, unknown=8) is Verdict.RETRY


def test_no_doubt_is_ever_guessed_away() -> None:
    """Over every kind and history: split and reject only untainted, accept only with a task."""
    for kind, targets, tainted, unknown in itertools.product(Kind, (1, 10), (False, True), (0, 3, 8)):
        answer = Answer(kind=kind)
        is_tainted = tainted or unknown > 0 or answer.created is Created.UNKNOWN
        found = verdict(kind, targets=targets, tainted=is_tainted, unknown=unknown)
        assert (found is Verdict.ACCEPT) is (answer.created is Created.YES)
        if found in (Verdict.SPLIT, Verdict.REJECT):
            assert not is_tainted
            assert answer.created is Created.NO
            assert (found is Verdict.SPLIT) is (targets > 1)
        if found in IN_DOUBT:
            assert is_tainted
