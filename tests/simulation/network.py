"""The way to the service: a transport over the emulator's pure core, with latency and with faults.

A call is served in the world's own time: it arrives although its sender died meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from dispatcher.model import Answer, Kind
from dispatcher.plan import SYSTEM_TAG_RUN, SYSTEM_TAG_TOKEN
from dispatcher.transport import aiobotocore, base
from dispatcher.transport.looking import page_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.checkpoint.base import Plan
    from dispatcher.errors import DispatcherError
    from tests.simulation.world import Process, World

NOT_SERVED = frozenset(
    {"refused", "reset_before", "error_500", "bare_503", "bare_429", "redirect", "proxy_403", "denied",
     "expired", "throttled", "quota"}
)  # fmt: skip
"""Faults of the way there: the service never sees the call."""
REFUSALS: dict[str, tuple[int, str | None, str | None]] = {
    "error_500": (500, "InternalServerException", "an internal error occurred"),
    "error_500_after": (500, "InternalServerException", "an internal error occurred"),
    "bare_503": (503, None, None),
    "bare_503_after": (503, None, None),
    "bare_429": (429, None, None),
    "redirect": (307, None, None),
    "proxy_403": (403, None, None),
    "proxy_403_after": (403, None, None),
    "denied": (403, "AccessDeniedException", "not authorized"),
    "expired": (403, "ExpiredTokenException", "the security token has expired"),
    "throttled": (429, "ThrottlingException", "Rate exceeded"),
    "quota": (402, "ServiceQuotaExceededException", "the quota is used up"),
    "mismatch": (400, "ValidationException", "the client token was used with other parameters"),
}


class SimTransport:
    """One process's connection to the simulated service."""

    def __init__(self, world: World, process: Process, plan: Plan, timeout_s: float) -> None:
        self._world = world
        self._process = process
        self._plan = plan
        self._timeout_s = timeout_s
        self._has_credentials = True
        self.refusal: DispatcherError | None = None

    async def create_task(self, targets: Sequence[str], client_token: str) -> Answer:
        world = self._world
        if not self._has_credentials:
            world.count("answer", "no_credentials")
            self._process.permits.append(world.loop.virtual_s)
            return Answer(kind=Kind.NO_CREDENTIALS, code="NoCredentials", message="expired")
        number, fault = world.next_fault()
        departure = world.witness.departed(self._process, client_token, tuple(targets))
        try:
            answer = await self._attempt(number, fault, targets, client_token)
        finally:
            self._process.in_flight -= 1
        world.witness.answered(departure, answer)
        world.count("answer", answer.kind.value)
        world.log(f"{self._process.name} call {number} {client_token[:8]} {fault or '-'} {answer.kind.value}")
        if answer.kind is Kind.EXPIRED:
            self._has_credentials = False
        return answer

    async def _attempt(self, number: int, fault: str | None, targets: Sequence[str], token: str) -> Answer:
        world = self._world
        rng = random.Random(f"call-{world.scenario.seed}-{number}")
        out_s, back_s = (world.scenario.latency_s * rng.expovariate(2.0) for _ in range(2))
        if fault == "refused":
            await asyncio.sleep(0.001)
            return Answer(kind=Kind.UNREACHABLE, code="ConnectionRefused")
        if fault == "late_arrival":
            out_s = rng.uniform(0.5, 0.999) * self._timeout_s
        reply = asyncio.get_running_loop().create_future()
        serve_s = min(out_s, 0.999 * self._timeout_s)
        world.on_its_way(serve_s, lambda: self._serve(reply, fault, list(targets), token))
        try:
            async with asyncio.timeout(self._timeout_s):
                status, body, code = await reply
                await asyncio.sleep(back_s)
        except TimeoutError:
            return Answer(kind=Kind.NO_REPLY, code="Timeout")
        return _read(status, body, code, fault, targets)

    def _serve(self, reply: asyncio.Future[Any], fault: str | None, targets: list[str], token: str) -> None:
        world, plan = self._world, self._plan
        served: tuple[int, Any, str | None] = 0, {}, None
        if fault not in NOT_SERVED:
            tags = dict(plan.tags)
            if plan.system_tags:
                tags |= {SYSTEM_TAG_RUN: plan.run, SYSTEM_TAG_TOKEN: token}
            params = {"targets": targets, "clientToken": token, "command": {plan.command: {}}, "tags": tags}
            if token in world.vanished:
                served = 404, {"message": "resource not found: the device"}, "ResourceNotFoundException"
            else:
                world.witness.arrived(self._process, token)
                got = world.service.handle("CreateTask", params, world.true_s(), region=plan.region)
                served = got.status, got.body, got.code
                world.witness.served(token, got)
            if fault == "vanish":
                world.vanished.add(token)
        if fault not in ("timeout", "late_arrival") and not reply.done():
            reply.set_result(served)

    async def describe_task(self, task_id: str) -> base.TaskView | Answer:
        world = self._world
        world.witness.looked(self._process)
        try:
            await asyncio.sleep(world.scenario.latency_s)
        finally:
            self._process.in_flight -= 1
        task = world.service.tasks.get(task_id)
        if task is None:
            return base.answer_for(404, "ResourceNotFoundException", "no such task")
        return base.TaskView(task.created_at, world.true_s(), tuple(task.device_ids()), tags=task.tag_map())

    async def list_tasks(self, next_token: str | None, limit: int) -> base.TaskPage | Answer:
        world = self._world
        await asyncio.sleep(world.scenario.latency_s)
        is_blind = world.is_amnesiac and world.is_recut  # then a look that fails may command twice: stated
        if world.mode() is not None and not is_blind:  # whatever befalls a call befalls a look
            world.count("look", "failed")
            return Answer(kind=Kind.NO_REPLY, code="ConnectionReset")
        params: dict[str, Any] = {"maxResults": limit}
        if next_token is not None:
            params["nextToken"] = next_token
        reply = world.service.handle("ListTasks", params, world.true_s(), region=self._plan.region)
        world.count("look", "page")
        return page_of(dict(reply.body))

    async def renew(self) -> Answer | None:
        await asyncio.sleep(0.1)
        if self._world.mode() == "expired":
            return Answer(kind=Kind.NO_CREDENTIALS, code="NoCredentials", message="still expired")
        self._has_credentials = True
        return None

    async def close(self) -> None:
        """Nothing to close."""


def _read(status: int, body: Any, code: str | None, fault: str | None, targets: Sequence[str]) -> Answer:
    """Make an answer of what came, by the functions that the real transports use."""
    if fault in ("reset_before", "lost_reply", "vanish"):
        return Answer(kind=Kind.NO_REPLY, code="ConnectionReset")
    if fault in REFUSALS and (fault in NOT_SERVED or status == 200):
        return base.answer_for(*REFUSALS[fault], targets)
    if status != 200:
        return base.answer_for(status, code, str(body.get("message", "")), targets)
    said = {} if fault in ("truncated", "empty_200") else dict(body)
    return aiobotocore.success(said.get("taskId"), said.get("taskArn"))
