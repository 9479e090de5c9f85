"""Summaries and previews for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dispatcher.hints import command, resume
from dispatcher.model import DEVICE_CLASSES
from dispatcher.redact import inert

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.model import Counts, Summary
    from dispatcher.preview import Preview
    from dispatcher.status import Doubt, Status

LAST_WORD = "Tasks were created; that a device has acted on its task is not known here."

FORECAST_SLACK = 1.1
FORECAST_SLACK_S = 2.0
"""A run that took no longer than this beyond its forecast needs no explanation."""


def summary_text(summary: Summary) -> str:
    """Say how a run stands, ending with what acceptance does not mean."""
    lines = [f"run        {summary.run}", counts_text(summary.counts)]
    if summary.already_complete:
        lines.append(f"already complete since {summary.completed_at}; to do it again give --run-key")
    else:
        lines.append(
            f"calls      {summary.calls} in {duration(summary.elapsed_s)}"
            f" ({summary.throttled} throttled, {summary.retried} retried)"
        )
        if summary.error is None and summary.forecast_s:
            lines.append(f"forecast   {forecast_text(summary)}")
    if summary.replayed:
        lines.append(
            f"warning    {summary.replayed} devices got a task that is older than this plan: somebody sent"
            " them before; give --run-key to command them again"
        )
    if summary.counts.in_doubt:
        lines.append(f"in doubt   list them with: {command('report', summary.run)} --state in_doubt")
        lines.append(f"           ask the service with: {command('reconcile', summary.run)}")
    if summary.counts.accepted:
        lines.append(LAST_WORD)
    return "\n".join(lines)


def forecast_text(summary: Summary) -> str:
    """Say what was forecast, what came, and where that is known, why."""
    forecast_s = summary.forecast_s or 0.0
    took = duration(summary.elapsed_s)
    text = f"{duration(forecast_s)} at {summary.ceiling_per_s:g} calls/s; it took {took}"
    if summary.elapsed_s < FORECAST_SLACK * forecast_s + FORECAST_SLACK_S:
        return text
    if summary.throttled and summary.allowed_per_s < summary.ceiling_per_s:
        return f"{text}: the service allows about {summary.allowed_per_s:.3g} calls/s"
    if summary.throttled:
        return f"{text}: the service throttled {summary.throttled} calls"
    return f"{text}: {summary.faults} calls met faults" if summary.faults else text


def counts_text(counts: Counts) -> str:
    """Render the classes, which sum to the devices."""
    parts = [f"{counts.accepted} accepted"]
    parts += [
        f"{number} {name}"
        for name, number in (
            ("rejected", counts.rejected),
            ("in doubt", counts.in_doubt),
            ("pending", counts.pending),
            ("cancelled", counts.cancelled),
        )
        if number
    ]
    return f"devices    {counts.devices}: {', '.join(parts)}"


def preview_text(found: Preview) -> str:
    """Render a plan for people."""
    limits = found.limits
    region = found.region or "from the AWS configuration"
    left_out = (
        (found.duplicates, "duplicates folded"),
        (found.bad_rows, "bad rows"),
        (found.filtered, "filtered"),
    )
    notes = ", ".join(f"{number} {what}" for number, what in left_out if number)
    pace = f"{limits['rate_per_s']:g} calls/s, burst {limits['burst']}, {limits['max_in_flight']} in flight"
    lines = [
        f"run        {found.run}",
        f"command    {found.command}, region {region}, {found.endpoint_url or 'AWS'}",
        f"devices    {found.devices}{f' ({notes})' if notes else ''}",
        f"batches    {found.batches}, so {found.calls} call{'' if found.calls == 1 else 's'}",
        f"limits     {pace}",
        f"forecast   {duration(found.forecast_s)} at that rate",
    ]
    lines += [f"bad row    line {bad.line}: {inert(bad.reason)}" for bad in found.bad_samples]
    if found.diff is not None:
        changed = ", ".join(f"{number} {name}" for name, number in found.diff.items() if number)
        lines.append(f"difference to the stored plan: {changed}")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Render seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def status_text(found: Status, *, asked: str | None = None) -> str:
    """Say how a run stands, live or not; `asked` is the name it was asked for by."""
    lines = [
        f"run        {found.run} ({found.state}){_since(found)}",
        f"devices    {found.devices}: {classes_text(asdict(found))}",
    ]
    if found.rate_per_s is not None:
        left = "" if found.eta_s is None else f", {duration(found.eta_s)} left"
        lines.append(f"rate       {found.rate_per_s:g} calls/s{left}")
    if found.process is not None:
        lines.append(f"service    {_service_text(found.process)}")
        state, reason = found.process["lane_state"], found.process["lane_reason"]
        if state != "open":
            lines.append(f"lane       {state}{f': {inert(reason)}' if reason else ''}")
    if found.in_doubt:
        lines.append(f"in doubt   {_doubt_text(found.doubt)}")
    lines.append(f"checkpoint {inert(found.checkpoint)}")
    if found.state == "resumable":
        lines.append(f"resume it with: {resume(asked or found.run)}")
    return "\n".join(lines)


def _since(found: Status) -> str:
    if found.state == "running" and found.process is not None:
        return f" since {found.process['began_at']}"
    return f" since {found.finished_at}" if found.finished_at else ""


def _service_text(process: dict[str, Any]) -> str:
    """Say how fast the last process went and why no faster, and what it met."""
    plain = f"{process['rate_per_s']:.3g} calls/s, ceiling {process['ceiling_per_s']:g}/s"
    why = inert(process["rate_why"]).removeprefix("service ") or plain
    return (
        f"{why}; {process['calls']} calls: {process['throttled']} throttled,"
        f" {process['retried']} retried, {process['faults']} faults"
    )


def _doubt_text(doubt: Doubt) -> str:
    """Say what may become of what is in doubt."""
    parts = []
    if doubt.unanswered:
        parts.append(f"{doubt.unanswered} claimed or on the wire")
    if doubt.resendable:
        parts.append(f"{doubt.resendable} asked again until {doubt.resend_until}")
    if doubt.expired:
        parts.append(f"{doubt.expired} past the token window")
    if doubt.held:
        parts.append(f"{doubt.held} held for reconcile")
    return ", ".join(parts)


def runs_text(found: Sequence[dict[str, Any]]) -> str:
    """Render a list of runs: status objects, or those of runs that cannot be read."""
    width = max(len(one["run"]) for one in found)
    return "\n".join(
        f"{one['run']:<{width}}  {one['state']:<10}  {one['error'] if 'error' in one else classes_text(one)}"
        for one in found
    )


def classes_text(found: dict[str, Any]) -> str:
    """Render the classes that are not empty."""
    named = (f"{found[name]} {name.replace('_', ' ')}" for name in DEVICE_CLASSES if found[name])
    return ", ".join(named) or "-"
