"""`status`, `report`, `runs` and `config show`: what the state folder knows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dispatcher.cli import print_json
from dispatcher.cli.completion import FILE, RUN, STATES
from dispatcher.cli.options import common_options, run_options, settings_from
from dispatcher.cli.output import note, result, silence
from dispatcher.errors import UsageError
from dispatcher.model import DEVICE_CLASSES
from dispatcher.redact import inert, inert_json, redacted

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.settings import Resolved

FORMATS = ("text", "json", "jsonl", "csv")


@click.command()
@click.argument("run", metavar="RUN|CHECKPOINT", type=RUN)
@common_options
def status(run: str, **options: Any) -> int:
    """Counts by state, rate and time left; works while the run is live.

    \b
    dispatcher status nightly-reboot
    """
    from dispatcher.cli.render import status_text
    from dispatcher.locate import find_checkpoint
    from dispatcher.status import read_status

    settings = settings_from(options)
    path = find_checkpoint(run, settings.resolve())
    _tell_lost_commits(path, settings.resolve())
    found = read_status(path, settings)
    if options["json_"]:
        print_json(found.as_json())
    else:
        result(status_text(found, asked=run))
    return 0


@click.command()
@click.argument("run", metavar="RUN|CHECKPOINT", type=RUN)
@click.option("--format", "form", type=click.Choice(FORMATS), help="Default: text, or jsonl with --json.")
@click.option("--state", metavar="LIST", type=STATES, help=f"Only these: {', '.join(DEVICE_CLASSES)}.")
@click.option("--output", "-o", metavar="PATH", type=FILE, help="Write here, whole or not at all.")
@common_options
def report(run: str, form: str | None, state: str | None, output: str | None, **options: Any) -> int:
    """One receipt per device.

    \b
    dispatcher report nightly-reboot
    dispatcher report nightly-reboot --format csv --state rejected,in_doubt
    """
    from dispatcher.cli.files import refuse_empty, write_whole
    from dispatcher.locate import find_checkpoint
    from dispatcher.report import open_reader, receipts, render

    settings = settings_from(options).resolve()
    states = _states(state)
    if output is not None:
        refuse_empty(output, "--output")
    path = find_checkpoint(run, settings)
    _tell_lost_commits(path, settings)
    reader = open_reader(path)
    try:
        form = form or ("jsonl" if options["json_"] else "text")
        rows = receipts(reader, states=states)
        if output is None:
            _write_stdout(lambda write: render(rows, form, _inert(form, write)))
        else:
            write_whole(output, "--output", lambda write: render(rows, form, _inert(form, write)))
    finally:
        reader.close()
    return 0


@click.command()
@common_options
def runs(**options: Any) -> int:
    """Known runs and their state.

    \b
    dispatcher runs --json
    """
    from dispatcher.cli.render import runs_text
    from dispatcher.status import read_runs

    settings = settings_from(options)
    found = [one.as_json() for one in read_runs(settings)]
    if options["json_"]:
        print_json(found)
    elif not found:
        result(f"no runs in {settings.resolve().state_dir}")
    else:
        result(runs_text(found))
    return 0


@click.group()
def config() -> None:
    """Effective settings and where each came from."""


@config.command("show")
@click.option("--manifest", metavar="FILE", type=FILE, help="Count a manifest's limits in.")
@run_options
def show(manifest: str | None, **options: Any) -> int:
    """Print every setting, its value and its origin, as a run with the same flags would have them.

    \b
    dispatcher config show
    dispatcher config show --manifest fleet.yaml --json
    """
    from dispatcher.manifest import Manifest

    settings = settings_from(options)
    resolved = settings.resolve(Manifest.load(manifest) if manifest else None)
    rows: dict[str, dict[str, Any]] = {
        name: {"value": redacted(str(value)) if isinstance(value, Path | str) else value, "origin": origin}
        for name, origin in sorted(resolved.origins.items())
        for value in (getattr(resolved, name),)
    }
    if options["json_"]:
        print_json(rows)
    else:
        shown = {
            name: "-" if row["value"] is None else inert(str(row["value"])) for name, row in rows.items()
        }
        width = max(map(len, shown.values()))
        for name, row in rows.items():
            result(f"{name:<18} {shown[name]:<{width}}  {inert(row['origin'])}")
    return 0


def _tell_lost_commits(path: Path, settings: Resolved) -> None:
    """Warn where the checkpoint is not the newest state of its run."""
    from dispatcher.report import read_lost_commits

    lost = read_lost_commits(path, settings.state_dir)
    if lost is not None:
        note(f"warning: {lost}")


def _states(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    states = frozenset(word.strip() for word in text.split(","))
    unknown = sorted(states - set(DEVICE_CLASSES))
    if unknown:
        from dispatcher.manifest_schema import near_miss, shown

        close = near_miss(unknown[0], DEVICE_CLASSES)
        raise UsageError(
            f"--state: {shown(unknown[0])} is no state{close}", hint=f"use {', '.join(DEVICE_CLASSES)}"
        )
    return states


def _inert(form: str, write: Callable[[str], object]) -> Callable[[str], object]:
    """Let nothing through that a terminal would act on; the other formats see to it themselves."""
    return (lambda text: write(inert_json(text))) if form in ("json", "jsonl") else write


def _write_stdout(render: Any) -> None:
    """Write a report to stdout; a reader that has seen enough (`| head`) is no failure."""
    try:
        render(sys.stdout.write)
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as error:
        silence(sys.stdout)
        raise UsageError(f"cannot write to stdout: {error.strerror}") from error
