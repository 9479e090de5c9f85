"""`status`, `report`, `runs` and `config show`: what the state folder knows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dispatcher.cli import print_json
from dispatcher.cli.options import common_options, settings_from
from dispatcher.cli.output import result, silence
from dispatcher.errors import DispatcherError, UsageError
from dispatcher.model import DEVICE_CLASSES

if TYPE_CHECKING:
    from dispatcher.checkpoint.registry import Record
    from dispatcher.settings import Settings

FORMATS = ("text", "json", "jsonl", "csv")


@click.command()
@click.argument("run", metavar="RUN|CHECKPOINT")
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
    found = read_status(find_checkpoint(run, settings.resolve()), settings)
    if options["json_"]:
        print_json(found.as_json())
    else:
        result(status_text(found))
    return 0


@click.command()
@click.argument("run", metavar="RUN|CHECKPOINT")
@click.option("--format", "form", type=click.Choice(FORMATS), help="Default: text, or jsonl with --json.")
@click.option("--state", metavar="LIST", help=f"Only these, comma-separated: {', '.join(DEVICE_CLASSES)}.")
@click.option("--output", "-o", metavar="PATH", help="Write here, whole or not at all; default: stdout.")
@common_options
def report(run: str, form: str | None, state: str | None, output: str | None, **options: Any) -> int:
    """One receipt per device.

    \b
    dispatcher report nightly-reboot
    dispatcher report nightly-reboot --format csv --state rejected,in_doubt
    """
    from dispatcher.locate import find_checkpoint
    from dispatcher.report import open_reader, receipts, render

    settings = settings_from(options).resolve()
    states = _states(state)
    reader = open_reader(find_checkpoint(run, settings))
    try:
        form = form or ("jsonl" if options["json_"] else "text")
        rows = receipts(reader, states=states)
        if output is None:
            _write_stdout(lambda write: render(rows, form, write))
        else:
            _write_file(Path(output), lambda write: render(rows, form, write))
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
    from dispatcher.checkpoint.registry import Registry
    from dispatcher.cli.render import runs_text

    settings = settings_from(options)
    state_dir = settings.resolve().state_dir
    found = [_status_or_error(record, settings) for record in Registry(state_dir).all()]
    if options["json_"]:
        print_json(found)
    elif not found:
        result(f"no runs in {state_dir}")
    else:
        result(runs_text(found))
    return 0


@click.group()
def config() -> None:
    """Effective settings and where each came from."""


@config.command("show")
@click.option("--manifest", metavar="FILE", help="Count a manifest's limits in.")
@common_options
def show(manifest: str | None, **options: Any) -> int:
    """Print every setting, its value and its origin.

    \b
    dispatcher config show
    dispatcher config show --manifest fleet.yaml --json
    """
    from dispatcher.manifest import Manifest

    settings = settings_from(options)
    resolved = settings.resolve(Manifest.load(manifest) if manifest else None)
    rows = {
        name: {"value": str(value) if isinstance(value, Path) else value, "origin": origin}
        for name, origin in sorted(resolved.origins.items())
        for value in (getattr(resolved, name),)
    }
    if options["json_"]:
        print_json(rows)
    else:
        shown = {name: "-" if row["value"] is None else str(row["value"]) for name, row in rows.items()}
        width = max(map(len, shown.values()))
        for name, row in rows.items():
            result(f"{name:<18} {shown[name]:<{width}}  {row['origin']}")
    return 0


def _states(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    states = frozenset(word.strip() for word in text.split(","))
    unknown = sorted(states - set(DEVICE_CLASSES))
    if unknown:
        raise UsageError(f"--state: {unknown[0]!r} is no state", hint=f"use {', '.join(DEVICE_CLASSES)}")
    return states


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


def _write_file(path: Path, render: Any) -> None:
    """Write a report privately and atomically: it names devices and tasks."""
    import os
    import tempfile

    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                render(file.write)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _status_or_error(record: Record, settings: Settings) -> dict[str, Any]:
    from dispatcher.status import read_status

    try:
        return read_status(Path(record.checkpoint), settings).as_json()
    except DispatcherError as error:
        return {
            "run": record.run,
            "state": "unreadable",
            "checkpoint": record.checkpoint,
            "error": error.one_line(),
        }
