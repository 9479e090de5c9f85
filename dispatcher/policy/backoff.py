"""How long a failed attempt waits before the next: full jitter, as a pure function.

Full jitter (a uniform share of an exponentially growing span) spreads a crowd of callers that
failed together better than equal or decorrelated jitter, and keeps no state that could leak from
one batch to another: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

_MAX_DOUBLINGS = 1000
"""2.0 ** 1000 is still a float; any cap is reached long before."""


def full_jitter(attempt: int, *, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Return uniform(0, min(cap_s, base_s · 2^(attempt − 1))) seconds to wait after `attempt`.

    Args:
        attempt: the attempt that just failed, 1-based; any size works.
        base_s: the span after the first attempt, in seconds.
        cap_s: the longest span, in seconds.
        rng: where chance comes from; seed it for an exact replay.

    Raises:
        ValueError: an attempt below 1, or a negative span.
    """
    if attempt < 1:
        raise ValueError(f"attempts count from 1, got {attempt}")
    if base_s < 0.0 or cap_s < 0.0:
        raise ValueError(f"spans must not be negative, got base {base_s!r} s and cap {cap_s!r} s")
    span_s = min(cap_s, base_s * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS))
    return rng.random() * span_s
