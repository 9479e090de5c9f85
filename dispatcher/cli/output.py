"""Writing to streams whose reader may be gone: that must never change what a run does or returns."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TextIO

import click

from dispatcher.redact import inert, redacted


def keep_open() -> None:
    """Open what was closed before we began (`2>&-`) onto nothing: no socket or file may take its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def note(text: str) -> None:
    """Say something to the operator on stderr, without secrets or control characters."""
    with contextlib.suppress(OSError):
        write(redacted(inert(text)) or "", sys.stderr)


def result(text: str) -> None:
    """Print a result on stdout; where that fails the exit code stands, since what is on disk is complete."""
    try:
        write(text, sys.stdout)
    except OSError as error:
        if error.errno != errno.EPIPE:
            note(f"warning: cannot write to stdout: {error.strerror}")


def write(text: str, stream: TextIO) -> None:
    """Write a line; what fails is raised, and the stream goes nowhere from then on."""
    try:
        click.echo(text, file=stream)
    except OSError:
        silence(stream)
        raise


def silence(stream: TextIO) -> None:
    """Let a stream that nobody reads go nowhere, so that the interpreter's last flush cannot fail either."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # no descriptor at all: nothing is left to fail
        pass
