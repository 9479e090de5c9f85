"""Summaries and previews for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.redact import inert

if TYPE_CHECKING:
    from dispatcher.model import Counts, Summary
    from dispatcher.preview import Preview

LAST_WORD = "Tasks were created; that a device has acted on its task is not known here."


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
    if summary.replayed:
        lines.append(
            f"warning    {summary.replayed} devices got a task that is older than this plan: somebody sent"
            " them before; give --run-key to command them again"
        )
    if summary.counts.in_doubt:
        lines.append(
            f"in doubt   dispatcher report {summary.run} --state in_doubt; `dispatcher reconcile` (to come)"
            " will settle them"
        )
    if summary.counts.accepted:
        lines.append(LAST_WORD)
    return "\n".join(lines)


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
        f"batches    {found.batches}, so {found.calls} calls",
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
