"""Replay seeds: `python -m tests.simulation --seed N` prints one, `--seeds A:B` runs many."""

from __future__ import annotations

import sys

from tests.simulation.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
