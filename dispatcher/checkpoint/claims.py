"""Which claim covers which unsettled batch: the bookkeeping both stores share. Pure.

A claim is one row for a run of consecutive batches. It may go when its last batch is settled; when some
of its batches are given back, it is rewritten as the runs that are left, with the instant it had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence


class Span(NamedTuple):
    """Batches `first` to `last` may have been sent since `at`."""

    first: int
    last: int
    at: float


def runs_of(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the maximal runs of consecutive numbers, as (first, last); `numbers` ascend."""
    first = last = None
    for number in numbers:
        if first is None or last is None:
            first = last = number
        elif number == last + 1:
            last = number
        else:
            yield first, last
            first = last = number
    if first is not None and last is not None:
        yield first, last


class ClaimBook:
    """The open claims of this epoch, by the key the store gave each."""

    def __init__(self) -> None:
        self._spans: dict[int, tuple[Span, set[int]]] = {}
        self._key_of: dict[int, int] = {}

    def __copy__(self) -> ClaimBook:
        twin = ClaimBook()
        twin._spans = {key: (span, set(left)) for key, (span, left) in self._spans.items()}
        twin._key_of = dict(self._key_of)
        return twin

    @property
    def numbers(self) -> Container[int]:
        """The batches that are claimed."""
        return self._key_of

    def __contains__(self, number: int) -> bool:
        return number in self._key_of

    def add(self, key: int, span: Span) -> None:
        """Note a claim that was written under `key`."""
        numbers = set(range(span.first, span.last + 1))
        self._spans[key] = (span, numbers)
        self._key_of.update(dict.fromkeys(numbers, key))

    def settle(self, numbers: Iterable[int]) -> list[int]:
        """Note that batches have a durable outcome; return the keys of claims that may go."""
        done: list[int] = []
        for number in numbers:
            key = self._key_of.pop(number, None)
            if key is None:
                continue
            left = self._spans[key][1]
            left.discard(number)
            if not left:
                del self._spans[key]
                done.append(key)
        return done

    def give_back(self, numbers: Sequence[int]) -> tuple[list[int], list[Span]]:
        """Release batches; return the keys of claims to delete and the spans to write instead."""
        strange = [number for number in numbers if number not in self._key_of]
        if strange:
            raise ValueError(f"batch {strange[0]} is not claimed")
        keys: dict[int, None] = {}
        for number in dict.fromkeys(numbers):
            key = self._key_of.pop(number)
            self._spans[key][1].discard(number)
            keys[key] = None
        return list(keys), self._rewritten(keys)

    def uncover(self, number: int) -> tuple[list[int], list[Span]]:
        """Take a settled batch that is planned again out of the claim it lies in; as `give_back`."""
        keys = [key for key, (span, _) in self._spans.items() if span.first <= number <= span.last]
        return keys, self._rewritten(keys)

    def _rewritten(self, keys: Iterable[int]) -> list[Span]:
        """Forget claims; return the runs of what is still open in them."""
        spans: list[Span] = []
        for key in keys:
            span, left = self._spans.pop(key)
            for number in left:
                del self._key_of[number]
            spans.extend(Span(first, last, span.at) for first, last in runs_of(sorted(left)))
        return spans
