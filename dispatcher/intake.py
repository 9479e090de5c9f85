"""Everything that a run is asked with, read so that all that is wrong with it is told at once.

An operator who mistyped a flag, a key and two rows should learn that from one try and not from four.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispatcher.errors import DispatcherError, UsageError
from dispatcher.inventory import open_inventory
from dispatcher.manifest import InventorySpec, Manifest, sound_inventory
from dispatcher.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping


def intake(
    path: str,
    *,
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    config: str | None = None,
) -> tuple[Settings, Manifest]:
    """Return the settings and the manifest of a run.

    Raises:
        UsageError: with every problem of settings and manifest; where there are any, with those of the
            inventory too. A sound manifest's inventory is left to the run, which reads it anyway.
    """
    wrong: list[UsageError] = []
    settings, manifest = None, None
    try:
        settings = Settings.layered(flags=flags, environment=environment, config=config)
    except UsageError as error:
        wrong.append(error)
    try:
        manifest = Manifest.load(path)
    except UsageError as error:
        wrong.append(error)
    if settings is not None and manifest is not None:
        return settings, manifest
    spec = sound_inventory(path) if manifest is None else manifest.inventory
    skips = flags.get("skip_bad_rows") if settings is None else settings.resolve().skip_bad_rows
    if spec is not None:
        wrong += _problems_of(spec, Path(path).parent, skip_bad_rows=bool(skips))
    raise UsageError.together(wrong)


def _problems_of(spec: InventorySpec, base_dir: Path, *, skip_bad_rows: bool) -> list[UsageError]:
    """Return what is wrong with an inventory, unless it is a stream: that may not end."""
    try:
        if spec.path is not None:
            file = base_dir / spec.path
            if spec.path == "-" or (file.exists() and not stat.S_ISREG(file.stat().st_mode)):
                return []
        with open_inventory(spec, base_dir=base_dir, skip_bad_rows=skip_bad_rows) as inventory:
            inventory.check()
    except UsageError as error:
        return [error]
    except (DispatcherError, OSError, ValueError):
        return []  # what is wrong already is enough to say
    return []
