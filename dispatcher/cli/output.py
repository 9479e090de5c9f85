"""Writing to streams whose reader may be gone: that must never change what a run does or returns."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import click

from dispatcher.redact import inert, redacted


def note(text: str) -> None:
    """Say something to the operator on stderr, without secrets or control characters."""
    _write(redacted(inert(text)) or "", sys.stderr)


def result(text: str) -> None:
    """Print a result on stdout."""
    _write(text, sys.stdout)


def _write(text: str, stream: TextIO) -> None:
    try:
        click.echo(text, file=stream)
    except OSError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Let a stream that nobody reads go nowhere, so that the interpreter's last flush cannot fail either."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # no descriptor at all: nothing is left to fail
        pass
