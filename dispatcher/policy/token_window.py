"""How long a resend under the same client token is safe.

Only while the service remembers the token does a second call return the first call's task instead
of creating another. Nobody publishes for how long, so the window is a setting, and its age is
measured pessimistically. Wall time survives a crash but may be stepped; monotonic time cannot be
stepped but may stand still while a laptop sleeps and means nothing after a restart. The larger of
the two ages counts, and an age below zero proves that a clock moved, so it counts as expired.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenWindow:
    """The span within which a batch in doubt may be sent again under its client token."""

    window_s: float
    """Seconds since the first attempt that was not answered *not created*; 0 means never resend."""

    def __post_init__(self) -> None:
        if not self.window_s >= 0.0:
            raise ValueError(f"the token window must not be negative, got {self.window_s!r} s")

    def is_open(
        self, first_unanswered_at: float | None, now_wall_s: float, elapsed_mono_s: float | None
    ) -> bool:
        """Tell whether sending (again) under the token is safe now.

        Args:
            first_unanswered_at: Unix time of the first attempt that was not answered *not created*,
                or after a crash of its claim; None if nothing is in doubt, which is always safe.
            now_wall_s: Unix time now.
            elapsed_mono_s: monotonic seconds since that attempt, None if another process made it.
        """
        if first_unanswered_at is None:
            return True
        # Comparisons that a NaN fails leave the window closed: doubt about time is no permission.
        wall_is_young = 0.0 <= now_wall_s - first_unanswered_at < self.window_s
        mono_is_young = elapsed_mono_s is None or 0.0 <= elapsed_mono_s < self.window_s
        return wall_is_young and mono_is_young
