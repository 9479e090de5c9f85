"""`python -m dispatcher`, and the `dispatcher` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from dispatcher.cli import main as cli_main

        cli_main()
    except KeyboardInterrupt:  # while still importing
        sys.exit(130)


if __name__ == "__main__":
    main()
