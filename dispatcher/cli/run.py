"""`plan`, `run` and `resume`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from dispatcher.cli import fail, print_json
from dispatcher.cli.completion import FILE, RUN
from dispatcher.cli.event_log import EventLog
from dispatcher.cli.options import ignored_endpoints, intake_from, run_options, settings_from
from dispatcher.cli.output import note, result
from dispatcher.errors import DispatcherError, RunInterrupted, UsageError
from dispatcher.hints import adding, again
from dispatcher.hints import resume as resume_command

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from dispatcher.diff import Diff
    from dispatcher.library import Dispatcher
    from dispatcher.manifest import Manifest
    from dispatcher.model import Summary
    from dispatcher.observe import Event
    from dispatcher.run import Run
    from dispatcher.settings import Settings

TYPED_CONFIRMATION = 100
"""From this many devices on, the operator types the count instead of `y`."""


@click.command()
@click.argument("manifest", type=FILE)
@run_options
def plan(manifest: str, **options: Any) -> int:
    """Show what a run would do: no network, writes nothing.

    \b
    dispatcher plan fleet.yaml
    dispatcher plan fleet.yaml --json
    """
    from dispatcher.cli.render import preview_text
    from dispatcher.preview import preview

    settings, loaded = intake_from(manifest, options)
    found = preview(loaded, settings.resolve(loaded))
    if options["json_"]:
        print_json(found.as_json())
    else:
        result(preview_text(found))
    return 0


@click.command()
@click.argument("manifest", type=FILE)
@run_options
def run(manifest: str, **options: Any) -> int:
    """Start or resume what a manifest asks for: the same command for both.

    \b
    dispatcher run fleet.yaml
    dispatcher run fleet.yaml --limit 50            a canary by hand; run again for the rest
    dispatcher run fleet.yaml --run-key tonight     do it once more, as another run
    """
    settings, loaded = intake_from(manifest, options)
    session = _Session(settings, options)
    return session.drive(lambda dispatcher: session.run(dispatcher, loaded))


@click.command()
@click.argument("run", metavar="RUN|CHECKPOINT", type=RUN)
@run_options
def resume(run: str, **options: Any) -> int:
    """Drain a stored plan; reads neither manifest nor inventory.

    \b
    dispatcher resume nightly-reboot
    dispatcher resume /var/lib/dispatcher/nightly-reboot.db
    """
    session = _Session(settings_from(options), options)
    return session.drive(lambda dispatcher: session.resume(dispatcher, run))


class _Session:
    """One `run` or `resume` at a terminal or in a script."""

    def __init__(self, settings: Settings, options: dict[str, Any]) -> None:
        self._settings = settings
        self._again = f"run it again: {again()}"
        self._json = bool(options["json_"])
        self._log_path = options["log_file"]
        self._verbose = int(options["verbose"] or 0)
        self._signals = 0
        self._stdout = sys.stdout
        self._asking: Run | None = None
        """The planned run, while the operator is told and asked."""
        self._live: Run | None = None
        self._stack = contextlib.ExitStack()

    def drive(self, work: Callable[[Dispatcher], Coroutine[None, None, Summary]]) -> int:
        """Run `work` on an event loop, with signals handled, and print what came of it."""
        with self._stack, asyncio.Runner(loop_factory=_loop_factory()) as runner:
            try:
                summary = runner.run(self._supervised(work))
            except DispatcherError as error:
                return self._failed(error)
            except click.Abort:  # end of file instead of an answer
                return self._failed(self._unsent(130))
            except asyncio.CancelledError:
                stopped = RunInterrupted("stopped at once", exit_code=self._signals, hint=self._next())
                stopped.summary = self._live.summary() if self._live else None
                return self._failed(stopped)
            self._print(summary)
            return summary.exit

    async def _supervised(self, work: Callable[[Dispatcher], Coroutine[None, None, Summary]]) -> Summary:
        from dispatcher.library import open_dispatcher

        if self._settings.resolve().tracing:
            self._export_spans()
        async with open_dispatcher(self._settings) as dispatcher:
            if dispatcher.metrics_url is not None:
                note(f"metrics are served at {dispatcher.metrics_url}")
            task = asyncio.ensure_future(work(dispatcher))
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._on_signal, number, dispatcher, task)
            try:
                return await task
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(number)
                    # All is decided and on disk; an impatient Ctrl-C must not change the exit code now.
                    signal.signal(number, signal.SIG_IGN)

    def _export_spans(self) -> None:
        """Send spans where the environment says; the last ones leave when all is told."""
        from dispatcher.tracing import export_by_environment

        provider = export_by_environment(os.environ)
        if provider is not None:
            self._stack.callback(provider.shutdown)

    def _on_signal(self, number: signal.Signals, dispatcher: Dispatcher, task: asyncio.Task[Summary]) -> None:
        code = 128 + number
        if self._live is None:
            # Still planning or asking, in a thread that cannot be stopped: nothing was sent, and a plan that
            # is not committed binds nothing.
            sys.stdout = self._stdout  # click points it at stderr while it asks
            self._failed(self._unsent(code))
            if self._asking is not None:
                self._asking.abandon()
            os._exit(code)
        if self._signals:
            self._signals = code
            task.cancel()
            return
        self._signals = code
        dispatcher.drain(exit_code=code)
        note("stopping: calls in flight come home first; again to stop at once")

    def _unsent(self, code: int) -> RunInterrupted:
        """Say that the operator ended it before a call was made."""
        asking = self._asking
        when = "while planning" if asking is None else "before sending"
        stopped = RunInterrupted(f"interrupted {when}", exit_code=code, hint=self._again)
        if asking is not None:
            stopped.summary = asking.summary()
            stopped.summary.elapsed_s = 0.0
        return stopped

    def _failed(self, error: DispatcherError) -> int:
        if error.summary is not None and not self._json:
            from dispatcher.cli.render import summary_text

            result(summary_text(error.summary))
        return fail(error, as_json=self._json)

    def _next(self) -> str | None:
        return f"resume it with: {resume_command(self._live.plan.run)}" if self._live else None

    async def run(self, dispatcher: Dispatcher, manifest: Manifest) -> Summary:
        return await self._shown(
            dispatcher.run(manifest, on_event=self._hook(), confirm=self._confirm_edit, before=self._before)
        )

    async def resume(self, dispatcher: Dispatcher, run: str) -> Summary:
        return await self._shown(dispatcher.resume(run, on_event=self._hook(), before=self._before))

    async def _shown(self, work: Coroutine[None, None, Summary]) -> Summary:
        """Await `work` with the progress shown beside it."""
        from dispatcher.cli.progress import show

        shower = asyncio.create_task(
            show(lambda: self._live, is_planning=lambda: self._asking is None), name="progress"
        )
        try:
            return await work
        finally:
            shower.cancel()
            await asyncio.wait({shower})  # whatever befell it: a terminal that is gone is no news

    def _hook(self) -> Callable[[Event], None] | None:
        """Return what listens to events: the log file, and stderr with -v."""
        log = None if self._log_path is None else self._stack.enter_context(EventLog(self._log_path))
        if log is None and not self._verbose:
            return None

        def hear(event: Event) -> None:
            if log is not None:
                log.append(event.json())
            if self._verbose:
                note(event.text())

        return hear

    # Asking

    def _before(self, run: Run) -> None:
        """Tell what will happen, and ask where that is due; called on a thread."""
        self._asking = run
        for sentence in (*run.notes, *ignored_endpoints(os.environ)):
            note(sentence)
        plan = run.plan
        counts = run.counts
        to_send = counts.pending + counts.in_doubt
        doubts = f" and {counts.in_doubt} in doubt" if counts.in_doubt else ""
        where = f"endpoint {plan.endpoint_url}" if plan.endpoint_url else "AWS"
        verb = "resuming" if run.is_resumed else "starting"
        note(
            f"{verb} {plan.run}: {plan.command}, {counts.pending} pending{doubts} of {counts.devices}"
            f" devices, region {plan.region}, {where}, at most {run.settings.rate_per_s:g} calls/s"
        )
        if plan.endpoint_url is None and not run.settings.yes:
            _ask(plan.command, to_send)
        self._live = run

    def _confirm_edit(self, run: str, found: Diff) -> None:
        """Show an edited manifest's difference; ask on a terminal."""
        from dispatcher.diff import edit_words

        note(f"{run}: the manifest was edited: {edit_words(found)}")
        if self._settings.yes or found.removals <= (self._settings.accept_removals or 0):
            return
        if not _is_terminal():
            raise UsageError(
                f"the edited manifest takes out {found.removals} devices that were still to be sent",
                hint=f"if that is meant, {adding('--yes')}",
            )
        if not click.confirm("Apply this?", err=True):
            raise UsageError("declined; nothing was sent and nothing changed")

    def _print(self, summary: Summary) -> None:
        for sentence in summary.notes:
            note(sentence)
        if self._json:
            print_json(summary.as_json())
            return
        from dispatcher.cli.render import summary_text

        result(summary_text(summary))


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask(command: str, devices: int) -> None:
    """Ask before real devices are commanded; raise `UsageError` where the answer is no."""
    if not _is_terminal():
        raise UsageError(
            f"this would {command} {devices} real devices, and there is no terminal to ask at",
            hint=f"if that is meant, {adding('--yes')}",
        )
    if devices >= TYPED_CONFIRMATION:
        typed = click.prompt(
            f"Type the number of devices to {command}", default="", show_default=False, err=True
        )
        agreed = typed.strip().replace(",", "") == str(devices)
    else:
        agreed = click.confirm(f"{command.capitalize()} {devices} devices?", err=True)
    if not agreed:
        raise UsageError("declined; nothing was sent")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
