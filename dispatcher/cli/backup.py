"""`backup`: a consistent copy of a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dispatcher.cli import print_json
from dispatcher.cli.options import common_options, settings_from
from dispatcher.cli.output import result
from dispatcher.errors import UsageError


@click.command()
@click.argument("run", metavar="RUN|CHECKPOINT")
@click.argument("path")
@click.option("--any-sums", is_flag=True, help="Though another program's SQLite wrote to it.")
@common_options
def backup(run: str, path: str, any_sums: bool, **options: Any) -> int:
    """A consistent copy of a checkpoint, also while its run is live.

    PATH is a new file, or a folder that gets RUN.db. Nothing is ever replaced.

    \b
    dispatcher backup nightly-reboot /mnt/backup
    dispatcher backup nightly-reboot /mnt/backup/nightly-0300.db --json
    """
    from dispatcher.checkpoint.backup import back_up
    from dispatcher.cli.render import counts_text
    from dispatcher.locate import find_checkpoint

    if not path:
        raise UsageError("no place for the copy is named", hint="give a new file's path, or a folder")
    made = back_up(find_checkpoint(run, settings_from(options).resolve()), Path(path), any_sums=any_sums)
    if options["json_"]:
        print_json(asdict(made))
    else:
        result(f"run        {made.run}\n{counts_text(made.counts)}\nbackup     {made.path}")
    return 0
