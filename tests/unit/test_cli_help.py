"""`--help` is what people read at night: examples that parse, and every option told."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click
import pytest

from dispatcher.cli import _SUMMARIES, cli

if TYPE_CHECKING:
    from collections.abc import Iterator


def verbs(command: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every verb that does something, with its words."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from verbs(found, (*path, name))
    else:
        yield " ".join(path), command


VERBS = dict(verbs())


@pytest.mark.parametrize("path", VERBS)
def test_every_verb_shows_examples_that_parse(path: str) -> None:
    """At least one line that can be pasted; each parses as this verb."""
    command = VERBS[path]
    text = click.Context(command, info_name=path).get_help() if command.help is None else command.help
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith("dispatcher ")]
    assert examples, path
    for line in examples:
        words = shlex.split(line.split("   ")[0])[1:]
        assert words[: len(path.split())] == path.split()
        command.make_context(path, words[len(path.split()) :], resilient_parsing=False)


@pytest.mark.parametrize("path", VERBS)
def test_every_option_is_explained(path: str) -> None:
    """No option without a word about it."""
    for option in VERBS[path].params:
        if isinstance(option, click.Option):
            assert option.help or option.name in ("outage_mode", "help"), f"{path} {option.name}"


def test_every_verb_takes_json() -> None:
    """So that a script may ask any of them."""
    for path, command in VERBS.items():
        assert any("--json" in option.opts for option in command.params), path


def test_every_verb_is_listed() -> None:
    """The list of `dispatcher --help` has them all."""
    assert set(_SUMMARIES) == {path.split()[0] for path in VERBS}
