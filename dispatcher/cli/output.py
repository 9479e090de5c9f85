"""Writing to streams whose reader may be gone: that must never change what a run does or returns."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shutil
import sys
import textwrap
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


_LABEL = 11
"""Columns of the label that begins a line of results; what wraps goes on under its text."""
_COMMANDS = re.compile(r"(?<=: )(?=dispatcher |chmod |chown |ulimit )")
_COLOURS = {"error: ": "red", "warning: ": "yellow"}


def note(text: str) -> None:
    """Say something to the operator on stderr, without secrets or control characters."""
    with contextlib.suppress(OSError):
        write(_coloured(_fitted(redacted(inert(text)) or "", sys.stderr)), sys.stderr)


def _fitted(text: str, stream: TextIO) -> str:
    """Wrap at words on a terminal, and give a command a line of its own: that can be copied whole.

    Programs get every line as it is.
    """
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(fitted(line, width) for line in text.split("\n"))


def fitted(line: str, width: int) -> str:
    """Wrap one line to `width` columns; an error stays one line wherever it is shown."""
    if len(line) <= width or line.startswith("error: ") or " " not in line[_LABEL:]:
        return line
    indent = " " * (_LABEL if line[:_LABEL].endswith(" ") and line[:1] != " " else 2)
    first, *commands = _COMMANDS.split(line)
    lines = textwrap.wrap(
        first, max(width, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join([*lines, *(indent + command for command in commands)])


def _coloured(text: str) -> str:
    """Colour the first word of an error or a warning, on a terminal whose user wants colours."""
    for word, colour in _COLOURS.items():
        if text.startswith(word) and has_colours(sys.stderr):
            return click.style(word.rstrip(), fg=colour) + text[len(word) - 1 :]
    return text


def has_colours(stream: TextIO) -> bool:
    """Whether to colour: a terminal that is not dumb, and no NO_COLOR (no-color.org: set and not empty)."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and stream.isatty()


def result(text: str, *, as_it_is: bool = False) -> None:
    """Print a result on stdout; where that fails the exit code stands, since what is on disk is complete.

    What is for a program, JSON or a script, is not wrapped: `as_it_is`.
    """
    try:
        write(text if as_it_is else _fitted(text, sys.stdout), sys.stdout)
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


def has_no_reader(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose other end was closed."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # errors and hang-ups are always told
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return False


def silence(stream: TextIO) -> None:
    """Let a stream that nobody reads go nowhere, so that the interpreter's last flush cannot fail either."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # no descriptor at all: nothing is left to fail
        pass
