"""What `plan` tells: reads the manifest and its inventory, writes nothing, asks no network."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dispatcher.checkpoint.reading import SqliteReader
from dispatcher.diff import diff
from dispatcher.inventory import open_inventory
from dispatcher.model import MAX_TARGETS
from dispatcher.plan import Fold
from dispatcher.spool import SortedSpool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatcher.inventory_rows import BadRow
    from dispatcher.manifest import Manifest
    from dispatcher.settings import Resolved


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A plan before there is one."""

    run: str
    command: str
    region: str | None
    endpoint_url: str | None
    devices: int
    duplicates: int
    bad_rows: int
    bad_samples: tuple[BadRow, ...]
    filtered: int
    batches: int
    lanes: int
    waves: int
    calls: int
    limits: dict[str, Any]
    forecast_s: float
    """Wall time if nothing fails and the service allows the ceiling."""
    diff: dict[str, int] | None
    """What would change in the stored plan, in devices; None where nothing is stored."""

    def as_json(self) -> dict[str, Any]:
        """Return the contract's object."""
        return {**asdict(self), "bad_samples": [list(row) for row in self.bad_samples]}


def preview(manifest: Manifest, settings: Resolved) -> Preview:
    """Read everything and say what a run would do. Raises `ManifestError` as a run would."""
    fold = Fold()
    run = manifest.run_id(settings.run_key)
    with (
        open_inventory(
            manifest.inventory, base_dir=manifest.base_dir, skip_bad_rows=settings.skip_bad_rows
        ) as inventory,
        SortedSpool() as spool,
    ):
        report = inventory.read_into(spool)
        changes = _against_stored(fold.distinct(spool.sorted_blocks()), run, settings)
    batches = math.ceil(fold.devices / MAX_TARGETS)
    return Preview(
        run=run,
        command=str(manifest.command),
        region=settings.region,
        endpoint_url=settings.endpoint_url,
        devices=fold.devices,
        duplicates=fold.duplicates,
        bad_rows=report.bad_rows,
        bad_samples=report.bad_samples,
        filtered=report.filtered,
        batches=batches,
        lanes=1,
        waves=1,
        calls=batches,
        limits=settings.limits(),
        forecast_s=round(forecast_s(batches, settings), 1),
        diff=changes,
    )


def forecast_s(calls: int, settings: Resolved) -> float:
    """Return the seconds that `calls` take at the ceiling; the bucket starts empty."""
    return calls / settings.rate_per_s


def _against_stored(new: Iterator[list[str]], run: str, settings: Resolved) -> dict[str, int] | None:
    """Compare with the stored plan, if one is committed; either way, drain `new` so that it is counted."""
    path = settings.checkpoint_of(run)
    if path.exists() and path.stat().st_size:
        reader = SqliteReader.open(path, read_only=True)
        try:
            if reader.plan() is not None:
                found = diff(new, reader.rows())
                found.close()
                return found.as_json()
        finally:
            reader.close()
    for _ in new:
        pass
    return None
