"""What a reconcile found, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.cli.render import counts_text, duration
from dispatcher.hints import command
from dispatcher.redact import inert

if TYPE_CHECKING:
    from dispatcher.reconciled import Reconciled

SHOWN = 10
"""Broken words told one by one; `--json` has a hundred."""


def reconciled_text(found: Reconciled) -> str:
    """Say what was looked at, what came of it, and what to do next."""
    end = "" if found.complete else ", not to its end"
    lines = [
        f"run        {found.run}{' (dry run: nothing was written)' if found.dry_run else ''}",
        f"listed     {found.listed} tasks in {found.pages} calls{end}; {found.tasks} of this run",
    ]
    verb = "would be " if found.dry_run else ""
    for count, words in (
        (found.adopted, f"{verb}accepted: their task was found"),
        (found.contradicted, "of them had been answered *not created*"),
        (found.released, f"{verb}back in the plan: they have no task"),
        (found.cancelled, f"{verb}cancelled: out of the manifest, and without a task"),
        (found.history, f"{verb}kept as accepted: in no batch, but they have a task of this run"),
    ):
        if count:
            lines.append(f"           {count} devices {words}")
    lines += [f"in doubt   {count} devices: {why}" for why, count in sorted(found.doubts.items())]
    if found.unlisted:
        lines.append(f"           {found.unlisted} tasks that are known to exist are not listed")
    if found.behind:
        lines.append("           the service knows of sendings that this checkpoint does not")
    if found.twice:
        lines.append(f"TWICE      {found.twice} devices have more than one task of this run:")
        for broken in found.broken[:SHOWN]:
            tasks, devices = ", ".join(broken.task_ids), " ".join(broken.devices)
            lines.append(f"           {inert(tasks)}: {inert(devices)}")
    lines.append(counts_text(found.counts))
    lines.append(f"calls      {found.calls} in {duration(found.elapsed_s)} ({found.throttled} throttled)")
    if found.counts.in_doubt and not found.dry_run:
        lines.append(f"in doubt   list them with: {command('report', found.run)} --state in_doubt")
    if found.counts.pending and not found.dry_run:
        lines.append(f"pending    send them with: {command('resume', found.run)}")
    return "\n".join(lines)
