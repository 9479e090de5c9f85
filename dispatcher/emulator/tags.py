"""Tags of tasks and devices: what a resource was made with, changed since, and the limits of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from dispatcher.emulator.reply import Method, Params, Reply, invalid, not_found, partition_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatcher.emulator.config import Config
    from dispatcher.emulator.tasks import Task, TaskStore

_RESERVED = "aws:"  # the prefix is AWS's own, in any case of letters


class TagChange(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="record", tag="tags"):
    """The tags that a resource has from now on: part of the service's state, not of the ledger."""

    kind: str
    """`task` or `managed-device`."""
    name: str
    tags: dict[str, str]


def problem_of(config: Config, tags: Mapping[str, str], held: Mapping[str, str] | None = None) -> str | None:
    """Say what is wrong with tags that are to join those `held`, None where nothing is."""
    for key, value in tags.items():
        if not 1 <= len(key) <= config.max_tag_key:
            return f"tag keys have 1 to {config.max_tag_key} characters: {key[:200]!r}"
        if len(value) > config.max_tag_value:
            return f"tag values have at most {config.max_tag_value} characters: that of {key!r}"
        if key.lower().startswith(_RESERVED):
            return f"tag keys do not begin with {_RESERVED}: {key!r}"
    if len({**(held or {}), **tags}) > config.max_tags:
        return f"a resource has at most {config.max_tags} tags"
    return None


class TagStore:
    """Changed tags by resource; what was never changed is with the task, or empty."""

    def __init__(self, config: Config, store: TaskStore) -> None:
        self._config = config
        self._tasks = store
        self._changed: dict[tuple[str, str], dict[str, str]] = {}
        self.operations: dict[str, Method] = {
            "ListTagsForResource": self.list_tags_for_resource,
            "TagResource": self.tag_resource,
            "UntagResource": self.untag_resource,
        }

    def of_task(self, task: Task) -> dict[str, str]:
        """Return the task's tags."""
        changed = self._changed.get(("task", task.task_id)) if self._changed else None
        return task.tag_map() if changed is None else changed

    def of_device(self, device_id: str) -> dict[str, str]:
        """Return the device's tags."""
        return self._changed.get(("managed-device", device_id), {})

    def put(self, change: TagChange) -> None:
        """Take down the tags that a resource has now."""
        self._changed[change.kind, change.name] = change.tags

    def list_tags_for_resource(self, params: Params, now_s: float, region: str) -> Reply:
        """Show the tags of a task or device."""
        found = self._find(params["resourceArn"], now_s, region)
        return found if isinstance(found, Reply) else Reply(200, {"tags": self._held(*found)})

    def tag_resource(self, params: Params, now_s: float, region: str) -> Reply:
        """Add tags, or give those there another value."""
        found = self._find(params["resourceArn"], now_s, region)
        if isinstance(found, Reply):
            return found
        held = self._held(*found)
        problem = problem_of(self._config, params["tags"], held)
        return invalid(problem) if problem is not None else self._keep(found, held | params["tags"])

    def untag_resource(self, params: Params, now_s: float, region: str) -> Reply:
        """Take tags off; those that are not there are no error."""
        found = self._find(params["resourceArn"], now_s, region)
        if isinstance(found, Reply):
            return found
        gone = frozenset(params["tagKeys"])
        return self._keep(found, {k: v for k, v in self._held(*found).items() if k not in gone})

    def _keep(self, resource: tuple[str, str], tags: dict[str, str]) -> Reply:
        change = TagChange(kind=resource[0], name=resource[1], tags=tags)
        self.put(change)
        return Reply(200, {}, change=change)

    def _held(self, kind: str, name: str) -> dict[str, str]:
        task = self._tasks.get(name) if kind == "task" else None
        return self.of_device(name) if task is None else self.of_task(task)

    def _find(self, resource_arn: str, now_s: float, region: str) -> tuple[str, str] | Reply:
        """Return (kind, name) of a resource that exists, else why not."""
        parts = resource_arn.split(":", 5)
        kind, slash, name = parts[-1].partition("/")
        is_arn = len(parts) == 6 and parts[0] == "arn" and parts[2] == "snow-device-management"
        if not is_arn or not slash or not name or kind not in {"task", "managed-device"}:
            return invalid(f"not the ARN of a task or managed device: {resource_arn[:200]}")
        here = [partition_of(region), self._config.region, self._config.account]
        is_ours = [parts[1], parts[3], parts[4]] == here and region == self._config.region
        exists = self._config.knows(name) if kind != "task" else self._tasks.visible(name, now_s) is not None
        return (kind, name) if is_ours and exists else not_found(resource_arn)
