"""What every run of the suite does, in one process or in several."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Save what `make coverage` saw: a worker that is slow to end is killed."""
    running = sys.modules["coverage"].Coverage.current() if "coverage" in sys.modules else None
    if running is not None and hasattr(session.config, "workerinput"):
        running.save()
