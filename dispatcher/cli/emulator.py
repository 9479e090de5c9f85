"""`dispatcher emulator`: the local service, until interrupted."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
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

__all__ = ["emulator", "fleet_id"]

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
@click.option("--devices", type=click.IntRange(0), help="Generate N devices. Default: any id exists.")
@click.option("--fleet", type=_FILE, help="Take the devices from a file of ids or a CSV with an id column.")
@click.option("--bad-ids", type=_FILE, help="Ids that do not exist, whatever the fleet says.")
@click.option("--write-fleet", type=_FILE, help="Write the generated fleet as CSV before serving.")
@click.option("--rate", type=float, help="CreateTask calls admitted per second. Default: all.")
@click.option("--burst", type=float, help="Calls admitted at once. Default: one second's worth.")
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
@click.option(
    "--mismatch",
    type=click.Choice(["validation", "first", "new"]),
    default="validation",
    show_default=True,
    help="What a known client token with other parameters gets.",
)
@click.option("--settle-s", default=10.0, show_default=True, help="Time in which executions succeed.")
@click.option("--region", default="us-west-2", show_default=True, help="The region that has the fleet.")
@click.option("--account", default="123456789012", show_default=True, help="Account id in ARNs.")
@click.option("--ledger", type=_FILE, help="Append every call and task to FILE as JSON Lines.")
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
        if options["write_fleet"] is not None:
            if options["devices"] is None:
                raise UsageError("--write-fleet needs --devices")
            write_fleet(options["write_fleet"], options["devices"])
        _run(_serve(config, options))
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
    from dispatcher.emulator.config import Config, Mismatch

    bad_ids = frozenset(read_ids(options["bad_ids"])) if options["bad_ids"] is not None else frozenset()
    return Config(
        fleet=_fleet(options["devices"], options["fleet"]),
        bad_ids=bad_ids,
        region=options["region"],
        account=options["account"],
        seed=options["seed"],
        rate_per_s=options["rate"],
        burst=options["burst"],
        quota=options["quota"],
        quota_frees_s=options["quota_frees_s"],
        token_window_s=options["token_window_s"],
        mismatch=Mismatch(options["mismatch"]),
        deny=frozenset(options["deny"]),
        faults=_faults(options),
        latency_s=options["latency_ms"] / 1000,
        latency_jitter=options["latency_jitter"],
        settle_s=options["settle_s"],
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


async def _serve(config: Config, options: dict[str, Any]) -> None:
    from dispatcher.emulator.app import run_emulator

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with run_emulator(
        config, host=options["host"], port=options["port"], ledger_path=options["ledger"]
    ) as running:
        if options["json_"]:
            print_json({"url": running.url})
        else:
            click.echo(f"emulator listening on {running.url}")
        try:
            await asyncio.wait_for(stopped.wait(), options["duration"])
        except TimeoutError:
            return
