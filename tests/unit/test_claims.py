"""Which claim covers which batch."""

from __future__ import annotations

import pytest

from dispatcher.checkpoint.claims import ClaimBook, Span, runs_of


@pytest.mark.parametrize(
    ("numbers", "runs"),
    [
        ([], []),
        ([7], [(7, 7)]),
        ([1, 2, 3], [(1, 3)]),
        ([1, 3, 4, 9], [(1, 1), (3, 4), (9, 9)]),
    ],
)
def test_runs_are_maximal(numbers: list[int], runs: list[tuple[int, int]]) -> None:
    """Consecutive numbers make one run, a gap begins the next."""
    assert list(runs_of(numbers)) == runs


def book(*spans: Span) -> ClaimBook:
    made = ClaimBook()
    for key, span in enumerate(spans, 1):
        made.add(key, span)
    return made


def test_a_claim_goes_with_its_last_batch() -> None:
    """A claim is done when every batch of it is settled, in whatever order; strangers are ignored."""
    claims = book(Span(1, 3, 5.0), Span(4, 4, 6.0))
    assert claims.settle([3, 1, 99]) == []
    assert claims.settle([2, 4]) == [1, 2]
    assert 2 not in claims
    assert claims.settle([2]) == []


def test_what_is_left_of_a_claim_keeps_its_instant() -> None:
    """Giving back from several claims rewrites each as its open runs, with the instant it had."""
    claims = book(Span(1, 6, 5.0), Span(7, 8, 6.0), Span(9, 9, 7.0))
    claims.settle([4])
    keys, spans = claims.give_back([8, 2, 7])
    assert sorted(keys) == [1, 2]
    assert spans == [Span(1, 1, 5.0), Span(3, 3, 5.0), Span(5, 6, 5.0)]
    assert [number for number in range(1, 10) if number in claims] == [9]  # the caller adds the new spans


def test_a_stranger_changes_nothing() -> None:
    """Giving back a batch that is not claimed raises before anything is released."""
    claims = book(Span(1, 2, 5.0))
    with pytest.raises(ValueError, match="batch 3 is not claimed"):
        claims.give_back([1, 3])
    assert 1 in claims
    assert claims.give_back([1, 1, 2]) == ([1], [])


def test_an_undone_batch_is_covered_no_more() -> None:
    """A settled batch that is planned again is taken out of the claim that spans it."""
    claims = book(Span(1, 3, 5.0), Span(4, 5, 6.0))
    claims.settle([2])
    assert claims.uncover(2) == ([1], [Span(1, 1, 5.0), Span(3, 3, 5.0)])
    assert claims.uncover(2) == ([], [])
    assert 4 in claims
