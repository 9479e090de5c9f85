"""docs/cli.md as a manual: its synopses, choices and defaults are the parser's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click
import pytest

from tests.unit.test_docs import RUN_OPTIONS, options_of, read, section, table, verbs

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = read("cli.md")
VERBS = dict(verbs())
EMULATOR = "dispatcher emulator"


def rows_of(path: str, command: click.Command) -> Iterator[tuple[click.Option, list[str]]]:
    """Each option of a verb that has a row in a table of its section or of run's, with the row's cells."""
    shared = table(section(TEXT, "Options of plan, run and resume"))
    own = table(section(TEXT, path))
    for option in command.params:
        if isinstance(option, click.Option):
            is_shared = options_of(command)[str(option.name)] == RUN_OPTIONS.get(option.name)
            rows = shared if is_shared and path != EMULATOR else own
            for key, cells in rows.items():
                if re.match(rf"{re.escape(option.opts[0])}\b(?!-)", key):
                    yield option, [key, *cells]


@pytest.mark.parametrize(("path", "command"), VERBS.items())
def test_a_heading_is_the_synopsis_of_its_verb(path: str, command: click.Command) -> None:
    """The heading names the arguments that the parser takes, in order."""
    arguments = command.collect_usage_pieces(click.Context(command))[1:]
    words = ["SHELL" if piece.startswith("{") else piece for piece in arguments]
    assert f"## {' '.join([path, *words])}" in TEXT.splitlines()


@pytest.mark.parametrize(("path", "command"), VERBS.items())
def test_what_an_option_takes_is_told(path: str, command: click.Command) -> None:
    """A row shows a value exactly where the parser wants one, and every choice there is."""
    for option, (key, *cells) in rows_of(path, command):
        takes_a_value = not (option.is_flag or option.count)
        assert bool(re.search(r" \[?[A-Z]", key)) is takes_a_value, key
        if isinstance(option.type, click.Choice):
            assert all(f"`{choice}`" in cells[0] for choice in option.type.choices), key


def test_the_defaults_of_the_emulator_are_told() -> None:
    """The third column is the parser's default, where it has one."""
    emulator = VERBS[EMULATOR]
    assert len(list(rows_of(EMULATOR, emulator))) == len(emulator.params)
    held = 0
    for option, cells in rows_of(EMULATOR, emulator):
        default = option.get_default(click.Context(emulator))
        if isinstance(default, (str, int, float)) and not isinstance(default, bool):
            assert cells[2] == (f"{default:g}" if isinstance(default, float) else str(default)), option.name
            held += 1
    assert held >= 8
