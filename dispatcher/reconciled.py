"""What a reconcile found and did: the object that `reconcile --json` prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from dispatcher.model import Counts


@dataclass(frozen=True, slots=True)
class Broken:
    """Devices that have more than one task of the run: the service did not honour a client token."""

    task_ids: tuple[str, ...]
    devices: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Reconciled:
    """How a reconcile ended. `counts` are of the whole run afterwards (before, for a dry run)."""

    run: str
    dry_run: bool = False
    counts: Counts = field(default_factory=Counts)
    pages: int = 0
    """Pages of ListTasks that were read."""
    listed: int = 0
    """Tasks on them, of whatever run."""
    tasks: int = 0
    """Those of this run; without system tags those with the run's own tags."""
    complete: bool = False
    """Whether the list was read to its end."""
    described: int = 0
    """Tasks of the run that no batch's client token accounts for."""
    behind: bool = False
    """Whether the service knows of sendings that the checkpoint does not."""
    adopted: int = 0
    """Devices whose task was found."""
    released: int = 0
    """Devices that went back to the plan."""
    cancelled: int = 0
    """Devices that have left the manifest, and nothing came of them."""
    history: int = 0
    """Devices of tasks of this run that were in no batch, kept as accepted."""
    contradicted: int = 0
    """Adopted devices that the service had answered *not created* for."""
    unlisted: int = 0
    """Accepted batches whose task the list does not show: it does not tell everything."""
    doubts: dict[str, int] = field(default_factory=dict)
    """Devices that stay in doubt, by reason."""
    twice: int = 0
    """Devices that have more than one task of the run."""
    broken: list[Broken] = field(default_factory=list)
    """The first hundred of them, by their tasks."""
    calls: int = 0
    throttled: int = 0
    elapsed_s: float = 0.0

    @property
    def exit(self) -> int:
        """0 where nothing is in doubt and no device has two tasks, else 1."""
        in_doubt = sum(self.doubts.values()) if self.dry_run else self.counts.in_doubt
        return 1 if in_doubt or self.twice else 0

    def as_json(self) -> dict[str, Any]:
        """Return the documented object."""
        values = asdict(self)
        counts = values.pop("counts")
        values["elapsed_s"] = round(self.elapsed_s, 3)
        run, dry_run = values.pop("run"), values.pop("dry_run")
        return {"run": run, "dry_run": dry_run, **counts, **_apart(values), "exit": self.exit}


def _apart(values: dict[str, Any]) -> dict[str, Any]:
    """Move `cancelled`, which is a class of devices too, out of its way."""
    values["newly_cancelled"] = values.pop("cancelled")
    return values


def account_of(task_arn: str | None) -> str | None:
    """Return the account of `arn:partition:service:region:account:task/id`, or None where it has none."""
    if task_arn is None:
        return None
    parts = task_arn.split(":", 5)
    return parts[4] if len(parts) == 6 and parts[0] == "arn" and parts[4].isdigit() else None
