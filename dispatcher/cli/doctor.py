"""`doctor`: every check as a row, and what to do about it."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import click

from dispatcher.cli import print_json
from dispatcher.cli.completion import FILE
from dispatcher.cli.options import ignored_endpoints, intake_from, run_options
from dispatcher.cli.output import has_colours, note, result, write
from dispatcher.redact import inert, redacted

if TYPE_CHECKING:
    from dispatcher.doctor.base import Check, Checkup

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_WIDEST = 100


@click.command()
@click.argument("manifest", type=FILE)
@click.option("--policy", is_flag=True, help="Print the least IAM policy and nothing else; ask nobody.")
@run_options
def doctor(manifest: str, policy: bool, **options: Any) -> int:
    """Check manifest, credentials, permissions, clock and disk before a run.

    Asks and looks, and changes nothing: no task, no file. Exit 1 where a check failed.

    \b
    dispatcher doctor fleet.yaml
    dispatcher doctor fleet.yaml --policy
    """
    settings, loaded = intake_from(manifest, options)
    resolved = settings.resolve(loaded)
    from dispatcher.doctor.examine import Case, examine  # imports the SDK

    if policy:
        _print_policy(Case.of(loaded, resolved).policy(), indent=0 if options["json_"] else 2)
        return 0
    ignored = [line.split(" ", 1)[0] for line in ignored_endpoints(os.environ)]
    found = examine(loaded, resolved, ignored=ignored)
    if options["json_"]:
        print_json(found.as_json())
    else:
        width = max(60, min(_WIDEST, shutil.get_terminal_size((80, 24)).columns))
        _print(checkup_text(found, width, coloured=has_colours(sys.stdout)))
    return found.exit


def _print_policy(policy: dict[str, Any], *, indent: int) -> None:
    import msgspec

    result(msgspec.json.format(msgspec.json.encode(policy), indent=indent or -1).decode())


def _print(text: str) -> None:
    """Print rows that are wrapped already: colours count as columns where lines are measured."""
    try:
        write(text, sys.stdout)
    except BrokenPipeError:
        pass
    except OSError as error:
        note(f"warning: cannot write to stdout: {error.strerror}")


def checkup_text(found: Checkup, width: int, *, coloured: bool = False) -> str:
    """Render all checks in at most `width` columns, and how many came out badly."""
    label = max(len(check.name) for check in found.checks)
    rows = [row for check in found.checks for row in _rows(check, label, width, coloured=coloured)]
    return "\n".join([*rows, _end(found)])


def _rows(check: Check, label: int, width: int, *, coloured: bool) -> list[str]:
    verdict = f"{check.verdict:<4}"
    indent = " " * (4 + 2 + label + 2)
    lines = _wrapped(check.message, width, f"{verdict}  {check.name:<{label}}  ", indent)
    if coloured and check.verdict in _COLOURS:
        lines[0] = click.style(verdict, fg=_COLOURS[check.verdict]) + lines[0][len(verdict) :]
    if check.hint is not None:
        lines += _wrapped(check.hint, width, f"{indent}-> ", f"{indent}   ")
    return lines


def _wrapped(text: str, width: int, first: str, then: str) -> list[str]:
    return textwrap.wrap(
        redacted(inert(text)) or "",
        width,
        initial_indent=first,
        subsequent_indent=then,
        break_on_hyphens=False,
    )


def _end(found: Checkup) -> str:
    from dispatcher.doctor.base import Verdict

    failed, doubtful = found.count(Verdict.FAIL), found.count(Verdict.WARN)
    if failed:
        return f"{found.run}: {failed} failed, {doubtful} to look at; put right what failed before you run it"
    return f"{found.run}: nothing failed" + (f", {doubtful} to look at" if doubtful else "")
