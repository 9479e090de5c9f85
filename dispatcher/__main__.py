"""`python -m dispatcher`, and the `dispatcher` command."""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit with its code."""
    from dispatcher.cli import main as cli_main

    cli_main()


if __name__ == "__main__":
    main()
