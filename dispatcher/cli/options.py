"""The options that verbs share, and the settings they make."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from dispatcher.cli.output import note
from dispatcher.redact import inert, redacted
from dispatcher.settings import TRANSPORTS, Settings, unknown_variables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_NOT_SETTINGS = ("config", "json_", "verbose", "log_file")

_RUN_OPTIONS = (
    click.option("--endpoint-url", metavar="URL", help="Send here instead of to AWS; http only to loopback."),
    click.option(
        "--region", metavar="NAME", help="Region; default: the manifest's, then AWS's own settings."
    ),
    click.option("--profile", metavar="NAME", help="Profile of the AWS configuration."),
    click.option("--checkpoint", metavar="PATH", help="The run's file; default: RUN.db in the state folder."),
    click.option("--run-key", metavar="KEY", help="Makes this another run of the same manifest."),
    click.option("--rate", "rate_per_s", type=float, metavar="N", help="Ceiling in calls per second."),
    click.option("--burst", type=int, metavar="N", help="Calls that may leave at once after a pause."),
    click.option("--max-in-flight", type=int, metavar="N", help="Calls on the wire at once."),
    click.option(
        "--attempt-timeout", "attempt_timeout_s", type=float, metavar="S", help="One call's deadline."
    ),
    click.option("--max-attempts", type=int, metavar="N", help="Answers in doubt before a batch rests."),
    click.option("--patience", "patience_s", type=float, metavar="S", help="Seconds without a good answer."),
    click.option("--token-window", "token_window_s", type=float, metavar="S", help="A resend is safe for S."),
    click.option("--limit", type=int, metavar="N", help="Send at most N new devices, then stop, resumable."),
    click.option("--transport", type=click.Choice(TRANSPORTS), help="How calls are made."),
    click.option(
        "--rate-control", type=click.Choice(("aimd", "fixed")), help="Learn it, or hold the ceiling."
    ),
    click.option("--accept-removals", type=int, metavar="N", help="Agree to N devices being taken out."),
    click.option("--skip-bad-rows", is_flag=True, default=None, help="Leave rows without a usable id out."),
    click.option("--take-over", is_flag=True, default=None, help="Take the run from a dead host."),
    click.option("--allow-network-fs", is_flag=True, default=None, help="Trust locks on network files."),
    click.option("--yes", "-y", is_flag=True, default=None, help="Do not ask."),
)
_COMMON_OPTIONS = (
    click.option("--config", metavar="FILE", help="Settings file (TOML)."),
    click.option("--json", "json_", is_flag=True, help="Print one JSON object on stdout."),
    click.option("--log-file", metavar="PATH", help="Append events as JSON Lines here."),
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
    log_to_stderr(int(options.get("verbose") or 0))
    for warning in unknown_variables(os.environ):
        note(f"warning: {warning}")
    flags = {key: value for key, value in options.items() if key not in _NOT_SETTINGS}
    return Settings.layered(flags=flags, environment=os.environ, config=options.get("config"))


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
        lines = super().format(record).splitlines()
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
    for name in ("botocore", "aiobotocore", "aiohttp", "asyncio"):
        logging.getLogger(name).setLevel(logging.INFO if verbosity >= 2 else logging.ERROR)
