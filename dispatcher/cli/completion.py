"""`completion`, and what the shell completes: files, runs, states of devices."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ShellComplete,
    add_completion_class,
    get_completion_class,
    shell_complete,
    split_arg_string,
)

from dispatcher.cli.output import result

if TYPE_CHECKING:
    from pathlib import Path

    Items = list[CompletionItem[str]]

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_DISPATCHER_COMPLETE"
"""What the script sets to ask for candidates."""
_NAME = "dispatcher"
_RECORD = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*(?:@[A-Za-z0-9._-]+)?)\.json")


class _File(click.ParamType[str]):
    """A path as text: the shell completes it, and whoever opens it says what is wrong with it."""

    name = "file"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:  # noqa: ARG002
        return [CompletionItem(incomplete, type="file")]


class _Run(click.ParamType[str]):
    """A run id of the state folder, or a path."""

    name = "run"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:  # noqa: ARG002
        found = [one for one in known_runs(state_dir(ctx.params.get("config"))) if one.startswith(incomplete)]
        if found and os.sep not in incomplete:
            return [CompletionItem(one) for one in found]
        return [CompletionItem(incomplete, type="file")]


class _States(click.ParamType[str]):
    """A comma-separated list of states."""

    name = "states"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:  # noqa: ARG002
        from dispatcher.model import DEVICE_CLASSES

        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        left = [one for one in DEVICE_CLASSES if one not in given and one.startswith(last)]
        return [CompletionItem(f"{before}{comma}{one}") for one in left]


@add_completion_class
class _Bash(BashComplete):
    """Bash, where a word may hold what bash takes words apart at: the `@` of a run id, the `=` of an option.

    Bash replaces only what stands behind the last of them, so a candidate comes without what is before it.
    """

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' response type value
    response=$(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1")
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done <<< "$response"
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Take the line apart, up to the cursor."""
        words = split_arg_string(os.environ.get("COMP_LINE", "") + "x")  # also where a word just begins
        self._incomplete = words.pop()[:-1]
        here = [at for at, word in enumerate(words) if word.rpartition("/")[2] == _NAME]
        return words[here[0] + 1 if here else 1 :], self._incomplete

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Leave out what bash keeps."""
        breaks = [c for c in "@=:" if c in os.environ.get("COMP_WORDBREAKS", "")]
        kept = max((self._incomplete.rfind(c) + 1 for c in breaks), default=0)
        return f"{item.type},{str(item.value).removeprefix(self._incomplete[:kept])}"


FILE = _File()
RUN = _Run()
STATES = _States()


def state_dir(config: str | None) -> Path | None:
    """Return the state folder as a command with this settings file finds it; None where it is unclear."""
    from dispatcher.errors import DispatcherError
    from dispatcher.settings import Settings

    try:
        return Settings.layered(flags={}, environment=os.environ, config=config).resolve().state_dir
    except DispatcherError:
        return None


def known_runs(folder: Path | None) -> list[str]:
    """Return the run ids that the state folder remembers, by name alone: nothing is opened."""
    if folder is None:
        return []
    try:
        names = [path.name for path in (folder / "registry").iterdir()]
    except OSError:
        return []
    return sorted(found[1] for name in names if (found := _RECORD.fullmatch(name)))


def script(shell: str) -> str:
    """Return what `shell` is to run once, so that it asks us for candidates."""
    from dispatcher.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    # Not its own `source`: bash's starts a bash to ask for its version, and warns on stderr.
    return ShellComplete.source(kind(cli, {}, _NAME, VARIABLE)).strip()


def serve(instruction: str) -> int:
    """Answer a completion script; nobody would see why there are no candidates."""
    from dispatcher.cli import cli

    with contextlib.suppress(Exception):
        return shell_complete(cli, {}, _NAME, VARIABLE, instruction)
    return 1


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.option("--json", "json_", is_flag=True, help="Print an object with `shell` and `script`.")
def completion(shell: str, **options: Any) -> int:
    """Print a script that lets your shell complete verbs, options, choices, files and run ids.

    To have it in every shell, put a line into a file:

    \b
    bash    ~/.bashrc                    eval "$(dispatcher completion bash)"
    zsh     ~/.zshrc, after compinit     eval "$(dispatcher completion zsh)"
    fish    ~/.config/fish/config.fish   dispatcher completion fish | source

    \b
    dispatcher completion bash
    dispatcher completion zsh --json
    """
    from dispatcher.cli import print_json

    if options["json_"]:
        print_json({"shell": shell, "script": script(shell)})
    else:
        result(script(shell), as_it_is=True)
    return 0
