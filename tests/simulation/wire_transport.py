"""The real wire transport on the simulated network: only what the SDK does for it is a stand-in."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

from dispatcher.model import Answer, Kind
from dispatcher.transport.credentials import Found
from dispatcher.transport.wire import WireTransport
from tests.simulation.network import SimTransport
from tests.simulation.wire_network import CALL, Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.checkpoint.base import Plan
    from dispatcher.settings import Resolved
    from dispatcher.transport import base
    from tests.simulation.world import Process, World

_AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=AKIASIM/20270115/{}/snow-device-management/aws4_request, SignedHeaders=host"
)
"""What an SDK would send, as far as the transport learns from it."""


class _Key(NamedTuple):
    access_key: str
    secret_key: str
    token: str


async def open_transport(
    world: World, process: Process, plan: Plan, resolved: Resolved
) -> SimTransport | SimWireTransport:
    """Return the connection of a process: by objects or by bytes, as the seed has it."""
    if world.wire is None:
        return SimTransport(world, process, plan, resolved.attempt_timeout_s)
    transport = SimWireTransport(world, process, plan, resolved)
    await transport.open()
    return transport


class SimWireTransport(WireTransport):
    """One process's connection: CreateTask as in earnest, look-ups as by `network`."""

    _is_local = True  # no proxy of this machine is asked for

    def __init__(self, world: World, process: Process, plan: Plan, resolved: Resolved) -> None:
        timeout_s = resolved.attempt_timeout_s
        super().__init__(plan, max_in_flight=resolved.max_in_flight, attempt_timeout_s=timeout_s)
        self._world = world
        self._process = process
        self._looks = SimTransport(world, process, plan, timeout_s)

    async def open(self) -> None:
        network = self._world.wire
        assert network is not None
        await self._keeper.renew()
        await self._learn(
            SimpleNamespace(
                method="POST",
                url=f"http://snow-device-management.{self._plan.region}.amazonaws.com/task",
                headers={
                    "Authorization": _AUTHORIZATION.format(self._plan.region),
                    "User-Agent": "simulation",
                },
            )
        )
        assert self._pool is not None
        self._pool._resolver = network

    async def _find_credentials(self) -> Found:
        """Issue new credentials; while all are called expired there is nobody to issue any."""
        network = self._world.wire
        assert network is not None
        if self._keeper.current is not None:
            await asyncio.sleep(0.1)
            network.serial += self._world.mode() != "expired"
        return Found(_Key("AKIASIM", "simulated", f"session-{network.serial}"), "simulated")

    async def identity(self) -> str | None:
        """Whose the credentials are, nobody says."""
        return None

    async def create_task(self, targets: Sequence[str], client_token: str) -> Answer:
        world, process = self._world, self._process
        call = Call(process, client_token, tuple(targets), self._timeout_s)
        CALL.set(call)
        try:
            answer = await super().create_task(targets, client_token)
        finally:
            process.in_flight -= call.departure is not None
        world.count("answer", answer.kind.value)
        if call.departure is None:
            assert answer.kind is Kind.NO_CREDENTIALS, answer
            process.permits.append(world.loop.virtual_s)
            return answer
        assert world.wire is not None
        world.wire.answered(call, answer)
        world.log(
            f"{process.name} call {call.number} {client_token[:8]} {call.fault or '-'} ({call.form})"
            f" {answer.kind.value}"
        )
        return answer

    def _body(self, targets: Sequence[str], client_token: str) -> bytes:
        """Note the departure: there are credentials, and nothing is awaited any more before the pool."""
        call = CALL.get()
        assert call is not None
        assert self._world.wire is not None
        self._world.wire.departs(call)
        return super()._body(targets, client_token)

    async def describe_task(self, task_id: str) -> base.TaskView | Answer:
        return await self._looks.describe_task(task_id)

    async def list_tasks(self, next_token: str | None, limit: int) -> base.TaskPage | Answer:
        return await self._looks.list_tasks(next_token, limit)
