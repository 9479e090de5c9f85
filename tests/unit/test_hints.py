"""Commands that messages print: quoted, and with the flags that make them mean the same."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import click
import pytest

from dispatcher.cli import cli
from dispatcher.cli.options import settings_from
from dispatcher.errors import DispatcherError
from dispatcher.hints import Invocation, adding, again, called, command, quoted, resume

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _afterwards() -> Iterator[None]:
    called(None)
    yield
    called(None)


def call(*words: str) -> None:
    """Parse a command line as the command does, up to where its settings are made."""
    group = click.Context(cli, info_name="dispatcher")
    verb = cli.get_command(group, words[0])
    assert verb is not None
    context = verb.make_context(words[0], list(words[1:]), parent=group)
    with context.scope(cleanup=False):
        options = {key: value for key, value in context.params.items() if key not in ("run", "manifest")}
        settings_from({**options, "config": None})


def test_a_library_names_the_bare_command() -> None:
    """Without a command line there are no flags to carry, and nothing to repeat."""
    assert resume("night@to") == "dispatcher resume night@to"
    assert command("status", "night") == "dispatcher status night"
    assert again() is None
    assert adding("--accept-removals", "5") == "add --accept-removals 5"


def test_a_resume_carries_what_a_run_was_given() -> None:
    """Where it is and how it goes; not what the plan remembers, nor what names the run."""
    call(
        *("run", "my fleet.yaml", "--config", "my settings.toml", "--profile", "ops", "--rate", "5"),
        *("--limit", "50", "--run-key", "to", "-y", "--json", "-vv", "--region", "us-west-2"),
    )
    assert resume("fleet@to") == (
        "dispatcher resume fleet@to --config 'my settings.toml' --profile ops --limit 50 --yes"
    )
    assert command("report", "fleet@to") == "dispatcher report fleet@to --config 'my settings.toml'"


def test_a_resume_carries_the_pace_of_a_resume() -> None:
    """The plan remembers the limits of `run`; those of `resume` hold for one process."""
    call("resume", "night", "--rate", "5", "--checkpoint", "a b.db")
    assert resume("night") == "dispatcher resume night --checkpoint 'a b.db' --rate 5"
    assert resume("/x/y.db") == "dispatcher resume /x/y.db --rate 5"


def test_the_same_again_has_every_flag_but_those_of_the_moment() -> None:
    """What was agreed to is replaced, not repeated; another host is not dead for ever."""
    call("run", "f.yaml", "--rate", "5", "--accept-removals", "3", "--json", "-v", "--take-over")
    assert again() == "dispatcher run f.yaml --rate 5 --accept-removals 3"
    assert adding("--accept-removals", "9") == (
        "run it again: dispatcher run f.yaml --rate 5 --accept-removals 9"
    )
    called(Invocation("run", ("-f.yaml",), {"yes": ("--yes",)}))
    assert again() == "dispatcher run --yes -- -f.yaml"


@pytest.mark.parametrize(
    "word", ["plain", "two  spaces", "it's", "$(id)", "a\nb\x1b[31m", "ü b", "\u202ex'\\"]
)
def test_quoted_words_survive_a_shell(word: str) -> None:
    """Byte for byte, without a character that a message would show escaped."""
    shown = quoted(word)
    assert shown.isprintable()
    assert len(DispatcherError("x", hint=shown).one_line()) == len(shown) + 3
    assert subprocess.check_output(["bash", "-c", f"printf %s {shown}"]) == word.encode()
