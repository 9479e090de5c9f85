"""What a call gets, as facts, and the modelled errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dispatcher.emulator.api import load_api

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatcher.emulator.config import Config
    from dispatcher.emulator.faults import Fault
    from dispatcher.emulator.tags import TagChange
    from dispatcher.emulator.tasks import Cancel, Task

Params = dict[str, Any]
"""An operation's members by name, as routed and decoded."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call gets; how a fault looks on the wire is the shell's business."""

    status: int
    """HTTP status; 0 where the connection drops without an answer."""
    body: Mapping[str, object]
    code: str | None = None
    task: Task | None = None
    """The task that exists because of this call or of the one it replays."""
    created: bool = False
    replayed: bool = False
    change: Cancel | TagChange | None = None
    """What else the call changed, for whoever keeps the state."""
    fault: Fault | None = None
    delay_s: float = 0.0
    """Latency before the answer leaves."""
    chance: float = 0.0
    """In [0, 1): which of its forms a fault takes."""


Method = Callable[[Params, float, str], Reply]
"""(validated parameters, Unix time, region of the request) → reply."""


def error(code: str, message: str) -> Reply:
    """Build a modelled error with the status that the model gives its code."""
    return Reply(load_api().statuses[code], {"message": message}, code)


def not_found(resource: str) -> Reply:
    """Build the 404 for a task or a device."""
    return error("ResourceNotFoundException", f"resource not found: {resource}")


def invalid(message: str) -> Reply:
    """Build the 400 for parameters that are well-formed and yet impossible."""
    return error("ValidationException", message)


def denied(action: str) -> Reply:
    """Build the 403 for an operation or permission."""
    text = f"User is not authorized to perform: snow-device-management:{action}"
    return error("AccessDeniedException", text)


def partition_of(region: str) -> str:
    """Return the partition that a region's ARNs name."""
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


def arn(config: Config, kind: str, name: str) -> str:
    """Return the ARN of a `task` or a `managed-device`."""
    partition = partition_of(config.region)
    return f"arn:{partition}:snow-device-management:{config.region}:{config.account}:{kind}/{name}"
