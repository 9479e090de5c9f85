"""`dispatcher emulator`: the local service, until interrupted."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dispatcher.cli import print_json
from dispatcher.emulator.fleet import AnyFleet, GeneratedFleet, ListedFleet, fleet_id, read_ids, write_fleet
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from dispatcher.emulator.config import Config
    from dispatcher.emulator.faults import FaultPlan
    from dispatcher.emulator.fleet import Fleet
    from dispatcher.emulator.signatures import Signer

__all__ = ["emulator", "fleet_id"]

_DEFAULT = click.core.ParameterSource.DEFAULT
_SAME = (
    *("read_burst", "shared_rate", "quota", "quota_frees_s", "token_window_s", "forget_tokens"),
    *("list_lag_s", "list_keeps_s", "task_keeps_s", "list_newest_first", "page_then_filter"),
    *("max_tags", "max_tag_key", "max_tag_value", "latency_jitter"),
    *("settle_s", "offline", "locked", "reach_out_s", "cancel_lag_s"),
)
"""Settings of `Config` whose options have their name and their form."""
_FILE = click.Path(path_type=Path, dir_okay=False)


class _BadOption(click.ClickException):
    """One line on stderr, exit code 2."""

    exit_code = 2

    def format_message(self) -> str:
        return " ".join(self.message.split())


class _Command(click.Command):
    """A command whose every usage error is one line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise _BadOption(error.format_message()) from error


@click.command(cls=_Command)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port; 0 takes a free one.")
@click.option("--allow-remote", is_flag=True, help="Allow a host that other machines can reach.")
@click.option(
    "--devices", type=click.IntRange(0, 100_000_000), help="Generate N devices. Default: any id exists."
)
@click.option("--fleet", type=_FILE, help="Take the devices from a file of ids or a CSV with an id column.")
@click.option("--bad-ids", type=_FILE, help="Ids that do not exist, whatever the fleet says.")
@click.option("--write-fleet", type=_FILE, help="Write the generated fleet as CSV before serving.")
@click.option("--rate", type=float, help="CreateTask calls admitted per second. Default: all.")
@click.option("--burst", type=float, help="Calls admitted at once. Default: one second's worth.")
@click.option("--read-rate", type=float, help="Other calls admitted per second, together. Default: all.")
@click.option("--read-burst", type=float, help="Other calls admitted at once. Default: one second's worth.")
@click.option("--shared-rate", is_flag=True, help="All operations spend CreateTask's permits.")
@click.option("--quota", type=int, help="Most tasks that may count at once. Default: no quota.")
@click.option("--quota-frees-s", type=float, help="A task stops counting after S seconds. Default: never.")
@click.option("--fault", multiple=True, metavar="NAME=SHARE", help="Share of calls that fail so; repeatable.")
@click.option("--fault-reads", is_flag=True, help="Faults strike every operation, not CreateTask alone.")
@click.option(
    "--outage", metavar="START:LENGTH", help="Reset all calls for LENGTH s, START s after the first."
)
@click.option("--outage-mode", type=click.Choice(["reset", "503"]), default="reset", show_default=True)
@click.option("--deny", multiple=True, metavar="OPERATION", help="Answer AccessDenied; `all`; repeatable.")
@click.option("--seed", default=0, show_default=True, help="Seed of every fault, id and delay.")
@click.option("--latency-ms", default=0.0, help="Mean time to an answer.")
@click.option("--latency-jitter", default=0.0, help="0 to 1: spread around the mean, as a share of it.")
@click.option("--token-window-s", default=28800.0, show_default=True, help="How long client tokens hold.")
@click.option("--forget-tokens", default=0.0, metavar="SHARE", help="Client tokens forgotten at once.")
@click.option(
    "--mismatch",
    type=click.Choice(["validation", "first", "new", "parameters", "conflict"]),
    default="validation",
    show_default=True,
    help="What a known client token with other parameters gets.",
)
@click.option(
    "--bad-target",
    type=click.Choice(["not_found", "validation", "skip", "accept"]),
    default="not_found",
    show_default=True,
    help="What a call with an unknown device gets.",
)
@click.option("--list-lag-s", default=0.0, help="ListTasks shows a task S seconds after it was made.")
@click.option("--list-keeps-s", type=float, help="ListTasks drops a task after S seconds. Default: never.")
@click.option("--task-keeps-s", type=float, help="Every operation drops it after S. Default: never.")
@click.option("--list-newest-first", is_flag=True, help="ListTasks lists the newest task first.")
@click.option("--page-then-filter", is_flag=True, help="A filter leaves short and empty pages.")
@click.option("--max-tags", default=50, show_default=True, help="Most tags of a resource.")
@click.option("--max-tag-key", default=128, show_default=True, help="Most characters of a tag's key.")
@click.option("--max-tag-value", default=256, show_default=True, help="Most characters of a tag's value.")
@click.option("--settle-s", default=10.0, show_default=True, help="Time in which an execution ends.")
@click.option("--ending", multiple=True, metavar="NAME=SHARE", help="Executions that end so; repeatable.")
@click.option("--offline", default=0.0, metavar="SHARE", help="Devices that never pick a task up.")
@click.option("--locked", default=0.0, metavar="SHARE", help="Devices that are locked at first.")
@click.option("--reach-out-s", default=60.0, show_default=True, help="How often an idle device calls home.")
@click.option("--cancel-lag-s", default=0.5, show_default=True, help="A cancel takes effect S seconds later.")
@click.option("--clock-offset-s", default=0.0, help="The service's clock is S seconds ahead.")
@click.option("--verify-signatures", is_flag=True, help="Refuse requests that the key below did not sign.")
@click.option("--access-key", envvar="AWS_ACCESS_KEY_ID", metavar="ID", help="Default: $AWS_ACCESS_KEY_ID.")
@click.option(
    "--secret-key", envvar="AWS_SECRET_ACCESS_KEY", metavar="KEY", help="Default: $AWS_SECRET_ACCESS_KEY."
)
@click.option(
    "--session-token", envvar="AWS_SESSION_TOKEN", metavar="TOKEN", help="Default: $AWS_SESSION_TOKEN."
)
@click.option("--expire-s", type=click.FloatRange(0), help="The credentials expire after S seconds.")
@click.option("--region", default="us-west-2", show_default=True, help="The region that has the fleet.")
@click.option("--account", default="123456789012", show_default=True, help="Account id in ARNs.")
@click.option("--ledger", type=_FILE, help="Append every call and task to FILE as JSON Lines.")
@click.option("--state", type=_FILE, help="Keep fleet, tasks and tags in FILE; go on from it if it is there.")
@click.option("--json", "json_", is_flag=True, help="Print the address as a JSON object.")
@click.option("--duration", type=click.FloatRange(0), help="Stop after S seconds.")
def emulator(**options: Any) -> None:
    """Serve AWS Snow Device Management on this machine, with faults and a ledger at /_ledger.

    Prints its address on standard output and runs until interrupted.

    \b
    dispatcher emulator --port 9000 --devices 2000 --write-fleet fleet.csv
    dispatcher emulator --rate 40 --burst 40 --fault lost_reply=0.02 --ledger ledger.jsonl
    """
    try:
        _refuse_remote(options["host"], is_allowed=options["allow_remote"])
        config = _config(options)
        signer = _signer(options)
        if options["write_fleet"] is not None:
            if options["devices"] is None:
                raise UsageError("--write-fleet needs --devices")
            write_fleet(options["write_fleet"], options["devices"])
        _run(_serve(config, signer, options))
    except UsageError as error:
        raise _BadOption(error.one_line()) from error
    except OSError as error:
        address = f"{options['host']}:{options['port']}"
        raise _BadOption(f"cannot listen on {address}: {error.strerror or error}") from error


def _refuse_remote(host: str, *, is_allowed: bool) -> None:
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local and not is_allowed:
        raise UsageError(f"host {host!r} is not this machine's loopback", hint="use --allow-remote")


def _config(options: dict[str, Any]) -> Config:
    from dispatcher.emulator.config import BadTarget, Config, Mismatch, parse_ending

    return Config(
        **_identity(options),
        **{name: options[name] for name in _SAME},
        read_rate_per_s=options["read_rate"],
        rate_per_s=options["rate"],
        burst=options["burst"],
        mismatch=Mismatch(options["mismatch"]),
        bad_target=BadTarget(options["bad_target"]),
        endings=dict(parse_ending(text) for text in options["ending"]),
        deny=frozenset(options["deny"]),
        faults=_faults(options),
        latency_s=options["latency_ms"] / 1000,
    )


def _identity(options: dict[str, Any]) -> dict[str, Any]:
    """Return what the service is: as its state file says where there is one, else by the options.

    An option that is given beside a state file is taken, and refused if the file says otherwise.
    """
    from dispatcher.emulator.state_file import read_origin

    given: dict[str, Any] = {name: options[name] for name in ("region", "account", "seed")}
    given["bad_ids"] = (
        frozenset(read_ids(options["bad_ids"])) if options["bad_ids"] is not None else frozenset()
    )
    given["fleet"] = _fleet(options["devices"], options["fleet"])
    origin = None if options["state"] is None else read_origin(options["state"])
    if origin is None:
        return given
    sources = {"fleet": ("devices", "fleet")}
    explicit = click.get_current_context().get_parameter_source
    for name in list(given):
        if all(explicit(source) is _DEFAULT for source in sources.get(name, (name,))):
            del given[name]
    return origin.settings() | given


def _signer(options: dict[str, Any]) -> Signer | None:
    if not options["verify_signatures"]:
        if options["expire_s"] is not None:
            raise UsageError("--expire-s needs --verify-signatures")
        return None
    from dispatcher.emulator.signatures import Signer

    expires_at = None
    if options["expire_s"] is not None:
        expires_at = time.time() + options["clock_offset_s"] + options["expire_s"]
    return Signer(
        access_key=options["access_key"] or "",
        secret_key=options["secret_key"] or "",
        session_token=options["session_token"] or None,
        expires_at=expires_at,
    )


def _fleet(count: int | None, path: Path | None) -> Fleet:
    if count is not None and path is not None:
        raise UsageError("--devices and --fleet exclude each other")
    if count is not None:
        return GeneratedFleet(count)
    return ListedFleet(read_ids(path)) if path is not None else AnyFleet()


def _faults(options: dict[str, Any]) -> FaultPlan:
    from dispatcher.emulator.api import load_api
    from dispatcher.emulator.faults import FaultPlan, parse_fault, parse_outage

    struck = frozenset(load_api().operations) if options["fault_reads"] else frozenset({"CreateTask"})
    outage = options["outage"]
    return FaultPlan(
        shares=dict(parse_fault(text) for text in options["fault"]),
        outage=None if outage is None else parse_outage(outage, mode=options["outage_mode"]),
        operations=struck,
    )


def _run(main: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where it is installed."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        asyncio.run(main)
        return
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main)


async def _serve(config: Config, signer: Signer | None, options: dict[str, Any]) -> None:
    from dispatcher.emulator.app import run_emulator

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with run_emulator(
        config,
        host=options["host"],
        port=options["port"],
        ledger_path=options["ledger"],
        state_path=options["state"],
        signer=signer,
        clock_offset_s=options["clock_offset_s"],
    ) as running:
        if options["json_"]:
            print_json({"url": running.url})
        else:
            click.echo(f"emulator listening on {running.url}")
        try:
            await asyncio.wait_for(stopped.wait(), options["duration"])
        except TimeoutError:
            return
