"""The command line: parse, build settings, call the library, print. Nothing else.

stdout is results, stderr is progress, notes and errors. Every error is one line, and where a manifest has
several problems one more for each. With `--json` stdout is one JSON object, whatever happens.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from dispatcher.cli.output import has_no_reader, keep_open, note, result, silence, write
from dispatcher.errors import DispatcherError, UsageError
from dispatcher.redact import inert, inert_json, redacted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.shell_completion import CompletionItem

_COMMANDS = {
    "plan": ("dispatcher.cli.run", "plan"),
    "run": ("dispatcher.cli.run", "run"),
    "resume": ("dispatcher.cli.run", "resume"),
    "reconcile": ("dispatcher.cli.reconcile", "reconcile"),
    "doctor": ("dispatcher.cli.doctor", "doctor"),
    "status": ("dispatcher.cli.inspect", "status"),
    "report": ("dispatcher.cli.inspect", "report"),
    "runs": ("dispatcher.cli.inspect", "runs"),
    "backup": ("dispatcher.cli.backup", "backup"),
    "config": ("dispatcher.cli.inspect", "config"),
    "emulator": ("dispatcher.cli.emulator", "emulator"),
    "completion": ("dispatcher.cli.completion", "completion"),
}
_SUMMARIES = {
    "plan": "Show what a run would do; no network, writes nothing.",
    "run": "Start or resume what a manifest asks for.",
    "resume": "Drain a stored plan; reads neither manifest nor inventory.",
    "reconcile": "Settle what is in doubt by what the service lists; sends nothing.",
    "doctor": "Check credentials, permissions, clock and disk before a run.",
    "status": "Counts by state, also while a run is live.",
    "report": "One receipt per device.",
    "runs": "Known runs and their state.",
    "backup": "A consistent copy of a checkpoint, live or not.",
    "config": "Effective settings and where each came from.",
    "emulator": "A local service to rehearse against.",
    "completion": "A script that lets your shell complete commands.",
}
_HELP = {"-h", "--help", "--version"}
"""Nothing is done but printing: a reader that has gone has seen enough."""
_COMPLETES = "_DISPATCHER_COMPLETE"
"""Set by the shell's completion, which wants candidates and nothing else."""
EXIT_BUG = 70
"""sysexits.h's EX_SOFTWARE: something we did not foresee."""


class _BrokenPipe(Exception):
    """Carries an EPIPE past click, which would make it exit code 1 without a word."""


@contextlib.contextmanager
def _pipes_carried() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        raise _BrokenPipe(str(error)) from error


class _Lazy(click.Group):
    """A group that imports a verb's module when the verb is used: `--help` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            from dispatcher.manifest_schema import near_miss

            raise click.UsageError(f"no command is called {cmd_name!r}{near_miss(cmd_name, _COMMANDS)}")
        import importlib

        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _pipes_carried():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _pipes_carried():
            return super().invoke(ctx)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        from click.shell_completion import CompletionItem

        verbs = ((name, text) for name, text in _SUMMARIES.items() if name.startswith(incomplete))
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*(CompletionItem(name, help=text) for name, text in verbs), *options]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_SUMMARIES.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="snow-dispatcher", prog_name="dispatcher")
def cli() -> None:
    """Reboot or unlock a fleet of Snow devices: every device once, with a receipt.

    \b
    dispatcher plan fleet.yaml      see what would happen
    dispatcher run fleet.yaml       do it; the same command resumes it
    dispatcher report NAME          one receipt per device
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit by the contract's codes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    keep_open()
    if _COMPLETES in os.environ:
        import importlib

        completion = importlib.import_module("dispatcher.cli.completion")
        sys.exit(completion.serve(os.environ[_COMPLETES]))
    try:
        code = cli.main(args=arguments, prog_name="dispatcher", standalone_mode=False)
        code = code if isinstance(code, int) else 0
    except DispatcherError as error:
        code = fail(error, as_json="--json" in arguments)
    except click.exceptions.Exit as end:
        code = end.exit_code
    except click.Abort:
        code = fail(_plain("interrupted", 130), as_json="--json" in arguments)
    except click.exceptions.NoArgsIsHelpError as error:
        with contextlib.suppress(OSError):  # nobody reads the help
            write(error.format_message(), sys.stderr)
        code = 2
    except click.UsageError as error:
        verb = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else None
        hint = f"; see `dispatcher {verb} --help`" if verb else ""
        code = fail(_plain(error.format_message().rstrip(".") + hint, 2), as_json="--json" in arguments)
    except click.ClickException as error:
        code = fail(_plain(error.format_message(), 2), as_json="--json" in arguments)
    except Exception as error:
        if isinstance(error, _BrokenPipe) and _HELP & {*arguments} and has_no_reader(sys.stdout):
            silence(sys.stdout)
            sys.exit(0)
        import logging

        logging.getLogger("dispatcher").debug("a bug", exc_info=error)
        code = fail(
            _plain(f"a bug in the dispatcher: {type(error).__name__}: {error}; run again with -vv", EXIT_BUG),
            as_json="--json" in arguments,
        )
    sys.exit(code)


def _plain(message: str, exit_code: int) -> DispatcherError:
    error = DispatcherError(message)
    error.exit_code = exit_code
    return error


def fail(error: DispatcherError, *, as_json: bool) -> int:
    """Print an error as one line, and as the JSON object where that was asked for; return its code."""
    from dispatcher.model import Summary

    line = redacted(inert(error.one_line())) or ""
    if as_json:
        summary: Any = error.summary or Summary(run=error.run or "")
        summary.exit, summary.error = error.exit_code, line
        print_json(summary.as_json())
    if as_json or not isinstance(error, UsageError) or error.count == 1:
        note(f"error: {line}")
        return error.exit_code
    note(f"error: {error.count} problems, nothing was sent:")
    for problem in error.problems:
        note(f"  {problem}")
    return error.exit_code


def print_json(value: object) -> None:
    """Print one JSON object on one line."""
    import msgspec

    result(inert_json(msgspec.json.encode(value).decode()), as_it_is=True)
