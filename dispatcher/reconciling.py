"""Reconciling by the library: on request, before a resume, and the look before a fresh run."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from dispatcher.checkpoint.base import Lost
from dispatcher.checkpoint.writer import ThreadOffload
from dispatcher.errors import PlanMismatch, RunStopped, UsageError
from dispatcher.lookup import Lookup
from dispatcher.model import Summary
from dispatcher.probe import Probe
from dispatcher.reconcile import Reconciliation
from dispatcher.recover import Recovered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dispatcher.checkpoint.base import Plan
    from dispatcher.clock import Clock
    from dispatcher.prepared import Prepared
    from dispatcher.reconciled import Reconciled
    from dispatcher.settings import Resolved
    from dispatcher.transport.base import Transport

    OpenTransport = Callable[[Plan, Resolved], Awaitable[Transport]]

MAX_PAGES = 100_000
"""Pages of ListTasks that a reconcile reads at the most: ten million tasks."""
ASIDE_S = 10.0
"""What the look before a resume may cost: that many seconds' worth of the ceiling, and of patience."""
ASIDE_PAGES = 100

log = logging.getLogger("dispatcher")


async def reconcile(
    recovered: Recovered,
    settings: Resolved,
    transport: Transport,
    clock: Clock,
    *,
    max_pages: int = MAX_PAGES,
    patience_s: float | None = None,
) -> Reconciled:
    """Settle a run's doubts by what the service lists, blocking work on a thread."""
    offload = ThreadOffload()
    try:
        lookup = Lookup(transport, settings, clock, patience_s=patience_s)
        work = Reconciliation(recovered, settings, lookup, clock, offload=offload)
        return await work.go(max_pages=max_pages)
    except RunStopped as error:
        counts = await asyncio.to_thread(recovered.stored.counts)
        error.summary = Summary(run=recovered.plan.run, counts=counts)
        raise
    finally:
        offload.close()


async def before_resume(
    prepared: Prepared, settings: Resolved, clock: Clock, open_transport: OpenTransport
) -> None:
    """Adopt what may not be sent again and has its task; a service that cannot be asked changes nothing."""
    plan, checkpoint = prepared.plan, prepared.checkpoint
    if not settings.reconcile or not plan.system_tags or not prepared.counts.in_doubt:
        return
    kinds = await asyncio.to_thread(checkpoint.doubt_kinds, clock.wall() - settings.resend_window_s)
    stuck = sum(devices for kind, (devices, _) in kinds.items() if kind != "resendable")
    if not stuck:
        return
    try:
        transport = await open_transport(plan, settings)
        try:
            await check_account(plan.account or checkpoint.standing().account, plan.run, transport)
            found = await reconcile(
                Recovered.of_prepared(prepared),
                settings,
                transport,
                clock,
                max_pages=max(1, min(ASIDE_PAGES, int(ASIDE_S * settings.rate_per_s))),
                patience_s=min(ASIDE_S, settings.patience_s),
            )
        finally:
            await transport.close()
    except (RunStopped, UsageError, PlanMismatch) as error:
        prepared.notes.append(f"what is in doubt could not be looked up: {error.message}")
        return
    finally:
        prepared.counts = await asyncio.to_thread(checkpoint.counts)
    words = f"{found.adopted} devices in doubt have their task"
    if found.released:
        words += f", {found.released} have none and go back to the plan"
    if found.twice:
        words += f", {found.twice} HAVE MORE THAN ONE"
    prepared.notes.append(f"looked up at the service: {words}")
    if found.twice:
        log.warning("the service made more than one task for %d devices of run %s", found.twice, plan.run)


async def before_fresh(prepared: Prepared, settings: Resolved, clock: Clock, transport: Transport) -> None:
    """Ask whether another host has sent this plan; then all of it is in doubt, and asked again as it is.

    Raises `CheckpointError` where asking again could make second tasks.
    """
    checkpoint = prepared.checkpoint
    since = await Probe(transport, prepared.plan, settings, clock, stored=checkpoint).look()
    if since is None:
        return

    def doubt() -> None:
        mark = checkpoint.last_number()
        checkpoint.doubt_up_to(Lost(mark, since), now=clock.wall())
        prepared.marker.reconciled(first_sent_at=since, mark=mark, is_recut=False)

    await asyncio.to_thread(doubt)


async def check_account(expected: str | None, run: str, transport: Transport) -> None:
    """On real endpoints: refuse credentials of another account than the run's."""
    identity = getattr(transport, "identity", None)
    account = await identity() if identity is not None else None
    if account is not None and expected is not None and account != expected:
        raise PlanMismatch(
            f"these credentials are of account {account}, run {run} belongs to {expected}",
            hint="use the credentials it began with (--profile), or run the manifest with another --run-key",
        )
