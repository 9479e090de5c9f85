"""`reconcile`: settle doubt against the service."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dispatcher.cli import print_json
from dispatcher.cli.completion import RUN
from dispatcher.cli.options import intake_from, run_options, settings_from
from dispatcher.cli.output import note, result
from dispatcher.errors import RunInterrupted
from dispatcher.hints import again
from dispatcher.manifest_text import SUFFIXES

if TYPE_CHECKING:
    from dispatcher.manifest import Manifest
    from dispatcher.reconciled import Reconciled
    from dispatcher.settings import Settings


@click.command()
@click.argument("run", metavar="RUN|CHECKPOINT|MANIFEST", type=RUN)
@click.option("--dry-run", is_flag=True, help="Show what it would do; write nothing.")
@click.option(
    "--max-pages", type=click.IntRange(min=1), metavar="N", help="Read at most N pages of ListTasks."
)
@run_options
def reconcile(run: str, *, dry_run: bool, max_pages: int | None, **options: Any) -> int:
    """Settle what is in doubt by what the service lists; sends nothing.

    A manifest also rebuilds a lost checkpoint, and settles devices that were taken out while in doubt.

    \b
    dispatcher reconcile nightly-reboot --dry-run
    dispatcher reconcile fleet.yaml
    dispatcher reconcile nightly-reboot --assume-absent    a reboot that is not listed is sent again
    """
    from dispatcher.cli.render_reconcile import reconciled_text

    what: str | Manifest
    if run.endswith(SUFFIXES) and Path(run).is_file():
        settings, what = intake_from(run, options)
    else:
        settings, what = settings_from(options), run
    found = _interruptible(settings, what, dry_run=dry_run, max_pages=max_pages)
    if options["json_"]:
        print_json(found.as_json())
    else:
        result(reconciled_text(found))
    return found.exit


def _interruptible(
    settings: Settings, what: str | Manifest, *, dry_run: bool, max_pages: int | None
) -> Reconciled:
    """Reconcile until done or told to stop: what is written stays, and doing it again goes on."""
    from dispatcher.library import open_dispatcher
    from dispatcher.reconciling import MAX_PAGES

    signals: list[int] = []

    async def work() -> Reconciled:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            signals.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        async with open_dispatcher(settings) as dispatcher:
            return await dispatcher.reconcile(what, dry_run=dry_run, max_pages=max_pages or MAX_PAGES)

    try:
        return asyncio.run(work())
    except asyncio.CancelledError:
        note("stopped; what was settled so far is kept")
        raise RunInterrupted(
            "interrupted", exit_code=128 + signals[0], hint=f"go on with: {again()}"
        ) from None
