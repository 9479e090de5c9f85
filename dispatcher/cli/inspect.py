"""`status`, `report`, `runs` and `config show`: what the state folder knows."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from dispatcher.cli import print_json
from dispatcher.cli.options import common_options, settings_from
from dispatcher.cli.output import result, silence
from dispatcher.errors import CheckpointError, DispatcherError, UsageError
from dispatcher.model import DEVICE_CLASSES

if TYPE_CHECKING:
    from dispatcher.checkpoint.base import Standing
    from dispatcher.checkpoint.reading import SqliteReader
    from dispatcher.settings import Resolved

RATE_WINDOW_S = 10.0
FORMATS = ("text", "json", "jsonl", "csv")


@click.command()
@click.argument("run", metavar="RUN|CHECKPOINT")
@common_options
def status(run: str, **options: Any) -> int:
    """Counts by state, rate and time left; works while the run is live.

    \b
    dispatcher status nightly-reboot
    """
    settings = settings_from(options).resolve()
    from dispatcher.locate import find_checkpoint

    found = _status_of(find_checkpoint(run, settings), settings)
    if options["json_"]:
        print_json(found)
    else:
        result(_status_text(found))
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

    settings = settings_from(options).resolve()
    found = [
        _status_or_error(record.run, Path(record.checkpoint), settings)
        for record in Registry(settings.state_dir).all()
    ]
    if options["json_"]:
        print_json(found)
    elif not found:
        result(f"no runs in {settings.state_dir}")
    else:
        for one in found:
            result(f"{one['run']:<32} {one['state']:<12} {_counts_line(one)}")
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
        for name, row in rows.items():
            value = "-" if row["value"] is None else row["value"]
            result(f"{name:<18} {value!s:<40} {row['origin']}")
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


def _status_or_error(run: str, path: Path, settings: Resolved) -> dict[str, Any]:
    try:
        return _status_of(path, settings)
    except DispatcherError as error:
        return {"run": run, "state": "unreadable", "checkpoint": str(path), "error": error.one_line()}


def _status_of(path: Path, settings: Resolved) -> dict[str, Any]:
    """Read how a run stands from its checkpoint, live or not."""
    from dispatcher.checkpoint.lease import is_locked, lock_paths
    from dispatcher.report import instant, open_reader

    reader = open_reader(path)
    try:
        plan, standing, counts = reader.plan(), reader.standing(), reader.counts()
        if plan is None:
            raise CheckpointError(f"{path} holds no committed plan", hint="run its manifest")
        live = any(is_locked(lock) for lock in lock_paths(path, settings.state_dir, plan.run))
        left = -(-counts.pending // 10)
        rate = _recent_rate(reader, standing)
        return {
            "run": plan.run,
            "state": _state_word(live=live, counts=counts),
            "command": plan.command,
            "checkpoint": str(path),
            "devices": counts.devices,
            "accepted": counts.accepted,
            "rejected": counts.rejected,
            "in_doubt": counts.in_doubt,
            "pending": counts.pending,
            "cancelled": counts.cancelled,
            "batches": counts.batches,
            "split": counts.split,
            "rate_per_s": round(rate, 2) if live else None,
            "learned_rate_per_s": standing.learned_rate,
            "eta_s": round(left / rate, 1) if live and rate and left else None,
            "heartbeat_at": instant(standing.heartbeat_at or None),
            "planned_at": instant(plan.planned_at),
            "finished_at": instant(standing.finished_at),
            "exit": standing.exit_code,
        }
    finally:
        reader.close()


def _recent_rate(reader: SqliteReader, standing: Standing) -> float:
    """Return settled batches per second of late: in the last 10 s, or since its process began."""
    from dispatcher.checkpoint.lease import Holder

    age_s = RATE_WINDOW_S
    if standing.holder is not None:
        with contextlib.suppress(msgspec.DecodeError):
            began_at = msgspec.json.decode(standing.holder, type=Holder).since
            age_s = standing.heartbeat_at - began_at
    return reader.calls_per_s(standing.heartbeat_at, window_s=min(RATE_WINDOW_S, max(0.1, age_s)))


def _state_word(*, live: bool, counts: Any) -> str:
    if live:
        return "running"
    if counts.pending:
        return "resumable" if counts.accepted or counts.in_doubt else "planned"
    return "in_doubt" if counts.in_doubt else "finished"


def _counts_line(found: dict[str, Any]) -> str:
    if "error" in found:
        return str(found["error"])
    return (
        ", ".join(f"{found[name]} {name.replace('_', ' ')}" for name in DEVICE_CLASSES if found[name]) or "-"
    )


def _status_text(found: dict[str, Any]) -> str:
    lines = [
        f"run        {found['run']} ({found['state']})",
        f"devices    {found['devices']}: {_counts_line(found)}",
    ]
    if found["rate_per_s"] is not None:
        eta = f", {found['eta_s']:.0f} s left" if found["eta_s"] else ""
        lines.append(f"rate       {found['rate_per_s']} calls/s{eta}")
    lines.append(f"checkpoint {found['checkpoint']}")
    if found["state"] == "resumable":
        lines.append(f"resume it with: dispatcher resume {found['run']}")
    return "\n".join(lines)
