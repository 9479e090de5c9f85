"""The options that verbs share, and the settings they make."""

from __future__ import annotations

import copy
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dispatcher.cli.completion import FILE
from dispatcher.cli.output import note
from dispatcher.hints import Invocation, called
from dispatcher.manifest_text import Written
from dispatcher.redact import inert, redacted
from dispatcher.settings import RATE_CONTROLS, TRANSPORTS, Settings, unknown_variables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dispatcher.manifest import Manifest

_NOT_SETTINGS = ("config", "json_", "verbose", "log_file")


class _Choice(click.Choice[str]):
    """A choice that help and completion show; settings check it, together with everything else."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        return value


_RUN_OPTIONS = (
    click.option("--endpoint-url", metavar="URL", help="Send here instead of to AWS; http only to loopback."),
    click.option(
        "--region", metavar="NAME", help="Region; default: the manifest's, then AWS's own settings."
    ),
    click.option("--profile", metavar="NAME", help="Profile of the AWS configuration."),
    click.option(
        "--checkpoint",
        metavar="PATH",
        type=FILE,
        help="The run's file; default: RUN.db in the state folder.",
    ),
    click.option("--run-key", metavar="KEY", help="Another run of the same manifest, NAME@KEY."),
    click.option("--rate", "rate_per_s", metavar="N", help="Ceiling in calls per second."),
    click.option("--share", metavar="PART", help="Use this part of the rate found; 0.5 is half."),
    click.option("--burst", metavar="N", help="Calls that may leave at once after a pause."),
    click.option("--max-in-flight", metavar="N", help="Calls on the wire at once."),
    click.option("--attempt-timeout", "attempt_timeout_s", metavar="S", help="One call's deadline."),
    click.option("--max-attempts", metavar="N", help="Answers in doubt before a batch rests."),
    click.option("--patience", "patience_s", metavar="S", help="Seconds without a good answer."),
    click.option("--token-window", "token_window_s", metavar="S", help="A resend is safe for S."),
    click.option("--limit", metavar="N", help="Send at most N new devices, then stop, resumable."),
    click.option("--transport", type=_Choice(TRANSPORTS), help="How calls are made."),
    click.option("--rate-control", type=_Choice(RATE_CONTROLS), help="Learn it, or hold the ceiling."),
    click.option("--reconcile/--no-reconcile", default=None, help="Ask about what may not be resent."),
    click.option(
        "--assume-absent/--at-most-once", default=None, help="Send again what the service does not list."
    ),
    click.option("--accept-removals", metavar="N", help="Agree to N devices being taken out."),
    click.option("--skip-bad-rows", is_flag=True, default=None, help="Leave rows without a usable id out."),
    click.option("--take-over", is_flag=True, default=None, help="Take the run from a dead host."),
    click.option("--allow-network-fs", is_flag=True, default=None, help="Trust locks on network files."),
    click.option("--metrics", metavar="[HOST:]PORT", help="Serve Prometheus metrics; 0 takes a free port."),
    click.option("--tracing", is_flag=True, default=None, help="Make OpenTelemetry spans; see OTEL_*."),
    click.option("--yes", "-y", is_flag=True, default=None, help="Do not ask."),
)
_COMMON_OPTIONS = (
    click.option("--config", metavar="FILE", type=FILE, help="Settings file (TOML)."),
    click.option("--json", "json_", is_flag=True, help="Print one JSON object on stdout."),
    click.option("--log-file", metavar="PATH", type=FILE, help="Append events as JSON Lines here."),
    click.option("--verbose", "-v", count=True, help="Say more on stderr; twice for the SDK's own log."),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of plan, run and resume."""
    for option in reversed((*_RUN_OPTIONS, *_COMMON_OPTIONS)):
        command = option(command)
    return command


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every verb takes."""
    for option in reversed((_COMMON_OPTIONS[0], _COMMON_OPTIONS[1], _COMMON_OPTIONS[3])):
        command = option(command)
    return command


def settings_from(options: dict[str, Any]) -> Settings:
    """Build settings from parsed options and the environment, and set the log up."""
    return Settings.layered(flags=_flags(options), environment=os.environ, config=options.get("config"))


def intake_from(manifest: str, options: dict[str, Any]) -> tuple[Settings, Manifest]:
    """Do so, and load a manifest: one error tells what is wrong with either, and with the inventory."""
    from dispatcher.intake import intake

    flags = _flags(options)
    return intake(manifest, flags=flags, environment=os.environ, config=options.get("config"))


def _flags(options: dict[str, Any]) -> dict[str, Any]:
    """Set the log up, warn of variables that are no settings, and return the options that are."""
    log_to_stderr(int(options.get("verbose") or 0))
    context = click.get_current_context(silent=True)
    if context is not None:
        _remember_call(context)
    for warning in unknown_variables(os.environ):
        note(f"warning: {warning}")
    return {
        key: Written(value) if isinstance(value, str) else value
        for key, value in options.items()
        if key not in _NOT_SETTINGS
    }


def _remember_call(context: click.Context) -> None:
    """Let hints name the exact next command: this one's flags, as they were typed."""
    flags: dict[str, tuple[str, ...]] = {}
    words: list[str] = []
    for parameter in context.command.params:
        name = str(parameter.name)
        value = context.params.get(name)
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = max(parameter.opts, key=len)
            flags[name] = (option,) if isinstance(value, bool) else (option, str(value))
    verb = context.command_path.partition(" ")[2]
    called(Invocation(verb, tuple(words), flags))
    context.call_on_close(lambda: called(None))


def ignored_endpoints(environment: Mapping[str, str]) -> list[str]:
    """Say which of the SDK's endpoint variables are set: they could redirect signed calls unseen."""
    return [
        f"{name} is ignored; --endpoint-url or the manifest's endpoint_url says where to send"
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SNOW_DEVICE_MANAGEMENT")
        if environment.get(name)
    ]


class _Redacting(logging.Formatter):
    """Log lines without secrets or control characters."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        record.msg, record.args = inert(record.getMessage()), ()
        first, *rest = super().format(record).splitlines()
        lines = [first, *(f"    {line}" for line in rest)]  # of a traceback; none can pass for a new entry
        return "\n".join(redacted(inert(line)) or "" for line in lines)


def log_to_stderr(verbosity: int) -> None:
    """Send our own log to stderr by `-v`; the SDK's never below INFO, since DEBUG prints headers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.raiseExceptions = False  # a log line that cannot be written is lost, and nothing else
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if verbosity >= 2 else logging.WARNING)
    ours = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.getLogger("dispatcher").setLevel(ours)
    for name in ("botocore", "aiobotocore", "aiohttp", "asyncio", "opentelemetry"):
        logging.getLogger(name).setLevel(logging.INFO if verbosity >= 2 else logging.ERROR)
