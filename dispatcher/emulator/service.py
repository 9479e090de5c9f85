"""The emulated AWS Snow Device Management: `f(state, call, now_s) → reply`, no I/O, no clock.

Faults of the way there (outage, proxy, redirect, denied) strike first. Then, as in AWS services:

1. authorization: a denied operation is refused before its parameters are read;
2. validation, from the model's shapes;
3. throttling: a call that fails 1 or 2 costs no permit, nor does a throttled one; a replay costs one, as it
   does in a real front end that knows nothing of client tokens. CreateTask has a bucket and the others
   have one, or all share it; the tag operations model no throttling;
4. region: another region has no devices, no tasks and no memory of client tokens;
5. replay: a known client token within its window answers with its task, whatever became of the devices
   or the quota since (least astonishment: a late duplicate is answered as the original was);
6. existence: one unknown target refuses the whole call, or does as `BadTarget` says;
7. quota, and the task is made.

Chance comes from the seed alone (`draws`): equal calls get equal replies, in any interleaving.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dispatcher.emulator.api import load_api
from dispatcher.emulator.config import TAG_PERMISSION, BadTarget, Config, Mismatch
from dispatcher.emulator.device_calls import DeviceCalls
from dispatcher.emulator.life import Life
from dispatcher.emulator.reply import Method, Params, Reply, arn, denied, error, invalid, not_found
from dispatcher.emulator.sabotage import Saboteur
from dispatcher.emulator.tags import TagStore, problem_of
from dispatcher.emulator.task_calls import TaskCalls
from dispatcher.emulator.tasks import Cancel, Task, TaskStore, is_same_request
from dispatcher.emulator.validation import sentence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dispatcher.emulator.tags import TagChange

_CREATE = "CreateTask"
_MISMATCH_TEXT = "the client token was already used with different parameters"
_MISMATCHES = {
    Mismatch.PARAMETERS: (400, "IdempotentParameterMismatchException"),
    Mismatch.CONFLICT: (409, "ConflictException"),
}
"""Answers to a mismatch that this service's model does not have, and its sisters' do."""


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
        self.tags = TagStore(config, self.tasks)
        self._life = Life(config, self.tasks)
        self._saboteur = Saboteur(config)
        self._bucket = _bucket(config.rate_per_s, config.burst)
        self._other_bucket = _bucket(config.read_rate_per_s, config.read_burst)
        if config.shared_rate:
            self._other_bucket = self._bucket
        self._operations: dict[str, Method] = {
            _CREATE: self._create_task,
            **TaskCalls(config, self.tasks, self._life, self.tags).operations,
            **DeviceCalls(config, self._life, self.tags).operations,
            **self.tags.operations,
        }

    def restore(self, records: Iterable[Task | Cancel | TagChange]) -> None:
        """Take back tasks and changes, in the order in which they came about, before the first call.

        Raises ValueError for a record that does not follow from those before it.
        """
        for record in records:
            if isinstance(record, Task):
                if record.number != len(self.tasks):
                    raise ValueError(f"task {record.number} comes where {len(self.tasks)} should")
                self.tasks.put(record, record.device_ids())
            elif isinstance(record, Cancel):
                if not 0 <= record.number < len(self.tasks):
                    raise ValueError(f"a cancel of task {record.number}, which is not there")
                self.tasks.cancel(record)
            else:
                self.tags.put(record)

    def handle(
        self,
        operation: str,
        params: Params,
        now_s: float,
        *,
        region: str | None = None,
        refusal: Reply | None = None,
    ) -> Reply:
        """Serve one call; `params` are members by name, `now_s` is Unix time and never steps back.

        `region` is the one the request was signed for; None means the service's own. A `refusal` is what
        the front end answers to a bad signature: faults of the way come before it, nothing after it is
        reached. Raises KeyError for an operation that the model does not have.
        """
        token = params.get("clientToken")
        fate = self._saboteur.fate(operation, token if isinstance(token, str) else None, now_s)
        reply = self._saboteur.refusal(operation, fate)
        if reply is None:
            reply = refusal or self._serve(operation, params, now_s, region or self.config.region)
            reply = self._saboteur.spoil(reply, fate)
        return self._saboteur.delay(reply, fate)

    def _serve(self, operation: str, params: Params, now_s: float, region: str) -> Reply:
        if self.config.denies(operation):
            return denied(operation)
        problems: list[str] = []
        self.api.operations[operation].check(params, "", problems)
        if problems:
            return error("ValidationException", sentence(problems))
        if operation != _CREATE and not self._admits_other(operation, now_s):
            return error("ThrottlingException", "Rate exceeded")
        return self._operations[operation](params, now_s, region)

    def _create_task(self, params: Params, now_s: float, region: str) -> Reply:
        if params.get("tags") and self.config.denies(TAG_PERMISSION):
            return denied(TAG_PERMISSION)
        tags = params.get("tags")
        problem = problem_of(self.config, tags) if tags else None
        if problem is not None:
            return invalid(problem)
        if self._bucket is not None and not self._bucket.admits(now_s):
            return error("ThrottlingException", "Rate exceeded")
        sent: list[str] = params["targets"]
        if region != self.config.region:
            return not_found(sent[0])
        targets = self._known(sent)
        token: str | None = params.get("clientToken")
        return self._replay(params, targets, token, now_s) or self._create(
            params, sent, targets, token, now_s
        )

    def _known(self, targets: list[str]) -> list[str]:
        """Return the targets that exist; all of them, uncopied, in the usual case."""
        knows, bad_ids = self.config.fleet.knows, self.config.bad_ids
        for device_id in targets:
            if not knows(device_id) or device_id in bad_ids:
                return [other for other in targets if self.config.knows(other)]
        return targets

    def _replay(self, params: Params, known: list[str], token: str | None, now_s: float) -> Reply | None:
        """Answer for a client token that has a task; None where a task is to be made."""
        task = self.tasks.by_token(token, now_s)
        if task is None:
            return None
        mode = self.config.mismatch
        targets = known if self.config.bad_target is BadTarget.SKIP else params["targets"]
        if mode is Mismatch.FIRST or is_same_request(task, params, targets):
            return self._made(task, replayed=True)
        if mode is Mismatch.NEW:
            return None
        if mode is Mismatch.VALIDATION:
            return invalid(_MISMATCH_TEXT)
        status, code = _MISMATCHES[mode]
        return Reply(status, {"message": _MISMATCH_TEXT}, code)

    def _create(
        self, params: Params, sent: list[str], targets: list[str], token: str | None, now_s: float
    ) -> Reply:
        if len(targets) < len(sent):
            mode = self.config.bad_target
            if mode is BadTarget.ACCEPT:
                targets = sent
            elif mode is not BadTarget.SKIP or not targets:
                bad = next(device_id for device_id in sent if not self.config.knows(device_id))
                return invalid(f"no such device: {bad}") if mode is BadTarget.VALIDATION else not_found(bad)
        if not self.tasks.has_quota(now_s):
            text = f"the account's quota of {self.config.quota} tasks is reached"
            return error("ServiceQuotaExceededException", text)
        return self._made(self.tasks.add(params, targets, token, now_s), replayed=False)

    def _made(self, task: Task, *, replayed: bool) -> Reply:
        body = {"taskArn": arn(self.config, "task", task.task_id), "taskId": task.task_id}
        return Reply(200, body, task=task, created=not replayed, replayed=replayed)

    def _admits_other(self, operation: str, now_s: float) -> bool:
        if self._other_bucket is None or "ThrottlingException" not in self.api.operations[operation].errors:
            return True
        return self._other_bucket.admits(now_s)


def _bucket(rate_per_s: float | None, burst: float | None) -> PermitBucket | None:
    """Return a bucket that is full when the first call comes, None where all are admitted."""
    if rate_per_s is None:
        return None
    size = burst if burst is not None else max(1.0, rate_per_s)
    return PermitBucket(rate_per_s, size, level=size, as_of_s=-math.inf)
