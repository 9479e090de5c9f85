"""The emulated AWS Snow Device Management: `f(state, call, now_s) → reply`, no I/O, no clock.

Faults of the way there (outage, proxy, redirect, denied) strike first. Then, as in AWS services:

1. authorization: a denied operation is refused before its parameters are read;
2. validation, from the model's shapes;
3. throttling (CreateTask): a call that fails 1 or 2 costs no permit, nor does a throttled one; a replay
   costs one, as it does in a real front end that knows nothing of client tokens;
4. region: another region has no devices, no tasks and no memory of client tokens;
5. replay: a known client token within its window answers with its task, whatever became of the devices
   or the quota since (least astonishment: a late duplicate is answered as the original was);
6. existence: one unknown target refuses the whole call;
7. quota, and the task is made.

Chance comes from the seed alone (`draws`): equal calls get equal replies, in any interleaving.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dispatcher.emulator.api import load_api
from dispatcher.emulator.config import TAG_PERMISSION, Config, Mismatch
from dispatcher.emulator.reads import Reads
from dispatcher.emulator.reply import Method, Params, Reply, arn, denied, error, not_found
from dispatcher.emulator.sabotage import Saboteur
from dispatcher.emulator.tasks import TaskStore, is_same_request
from dispatcher.emulator.validation import sentence

if TYPE_CHECKING:
    from dispatcher.emulator.tasks import Task


@dataclass(slots=True)
class PermitBucket:
    """Admits or refuses; unlike the client's bucket it never queues. Any T admits ≤ rate·T + burst."""

    rate_per_s: float
    burst: float
    level: float
    as_of_s: float

    def admits(self, now_s: float) -> bool:
        """Take a permit if there is one."""
        if now_s > self.as_of_s:
            self.level = min(self.burst, self.level + (now_s - self.as_of_s) * self.rate_per_s)
            self.as_of_s = now_s
        if self.level < 1:
            return False
        self.level -= 1
        return True


class Service:
    """One service with one fleet in one region; `handle` is its only verb."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.api = load_api()
        self.tasks = TaskStore(config)
        self._saboteur = Saboteur(config)
        self._bucket: PermitBucket | None = None
        self._operations: dict[str, Method] = {
            "CreateTask": self._create_task,
            **Reads(config, self.tasks).operations,
        }

    def handle(self, operation: str, params: Params, now_s: float, *, region: str | None = None) -> Reply:
        """Serve one call; `params` are members by name, `now_s` is Unix time.

        `region` is the one the request was signed for; None means the service's own. Raises KeyError for
        an operation that the model does not have.
        """
        token = params.get("clientToken")
        fate = self._saboteur.fate(operation, token if isinstance(token, str) else None, now_s)
        reply = self._saboteur.refusal(operation, fate)
        if reply is None:
            reply = self._serve(operation, params, now_s, region or self.config.region)
            reply = self._saboteur.spoil(reply, fate)
        return self._saboteur.delay(reply, fate)

    def _serve(self, operation: str, params: Params, now_s: float, region: str) -> Reply:
        if self.config.denies(operation):
            return denied(operation)
        problems: list[str] = []
        self.api.operations[operation].check(params, "", problems)
        if problems:
            return error("ValidationException", sentence(problems))
        method = self._operations.get(operation)
        if method is None:
            return Reply(501, {"message": f"{operation} is not emulated"}, "NotImplementedException")
        return method(params, now_s, region)

    def _create_task(self, params: Params, now_s: float, region: str) -> Reply:
        if params.get("tags") and self.config.denies(TAG_PERMISSION):
            return denied(TAG_PERMISSION)
        if not self._admits(now_s):
            return error("ThrottlingException", "Rate exceeded")
        targets: list[str] = params["targets"]
        if region != self.config.region:
            return not_found(targets[0])
        token: str | None = params.get("clientToken")
        return self._replay(params, token, now_s) or self._create(params, targets, token, now_s)

    def _replay(self, params: Params, token: str | None, now_s: float) -> Reply | None:
        """Answer for a client token that has a task; None where a task is to be made."""
        task = self.tasks.by_token(token, now_s)
        if task is None:
            return None
        if self.config.mismatch is Mismatch.FIRST or is_same_request(task, params):
            return self._made(task, replayed=True)
        if self.config.mismatch is Mismatch.NEW:
            return None
        return error("ValidationException", "the client token was already used with different parameters")

    def _create(self, params: Params, targets: list[str], token: str | None, now_s: float) -> Reply:
        knows, bad_ids = self.config.fleet.knows, self.config.bad_ids
        for device_id in targets:
            if device_id in bad_ids or not knows(device_id):
                return not_found(device_id)
        if not self.tasks.has_quota(now_s):
            text = f"the account's quota of {self.config.quota} tasks is reached"
            return error("ServiceQuotaExceededException", text)
        return self._made(self.tasks.add(params, token, now_s), replayed=False)

    def _made(self, task: Task, *, replayed: bool) -> Reply:
        body = {"taskArn": arn(self.config, "task", task.task_id), "taskId": task.task_id}
        return Reply(200, body, task=task, created=not replayed, replayed=replayed)

    def _admits(self, now_s: float) -> bool:
        rate_per_s = self.config.rate_per_s
        if rate_per_s is None:
            return True
        if self._bucket is None:  # full when the first call comes
            burst = self.config.burst if self.config.burst is not None else max(1.0, rate_per_s)
            self._bucket = PermitBucket(rate_per_s, burst, level=burst, as_of_s=now_s)
        return self._bucket.admits(now_s)
