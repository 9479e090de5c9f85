"""Seeded chance without order: a draw depends on what is decided, never on which call came first.

A `random.Random` gives the n-th caller the n-th number, so two runs of one seed differ as soon as two
connections race. A keyed hash gives the same client token the same fate in every interleaving.
"""

from __future__ import annotations

from hashlib import blake2b

from dispatcher.emulator.fleet import base32


def _bits(seed: int, parts: tuple[object, ...], size: int) -> int:
    text = "\0".join((str(seed), *map(str, parts)))
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()
    return int.from_bytes(digest, "big")


def draw(seed: int, *parts: object) -> float:
    """Return a number in [0, 1) that is a pure function of the seed and the parts."""
    return (_bits(seed, parts, 8) >> 11) / (1 << 53)


def name_of(seed: int, *parts: object) -> str:
    """Return 16 lower-case letters and digits that are a pure function of the seed and the parts."""
    return base32(_bits(seed, parts, 10))
