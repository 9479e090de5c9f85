"""The seam to the service: one protocol, and the one place where an answer becomes facts.

Above this line nobody reads a status, an error code or a message to decide anything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dispatcher.model import Answer, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dispatcher.errors import DispatcherError

MAX_BODY_BYTES = 1 << 20
"""What is read of one answer at the most; a CreateTask answer has some hundred bytes."""

_POISON_CODES = frozenset({"ValidationException", "ResourceNotFoundException"})
_DENIED_CODES = frozenset(
    {
        "AccessDeniedException", "AccessDenied", "UnauthorizedException", "UnauthorizedOperation",
        "UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId", "AuthFailure",
        "RequestExpired", "RequestTimeTooSkewed",
        "InvalidSignatureException", "SignatureDoesNotMatch", "IncompleteSignature",
        "IncompleteSignatureException", "MissingAuthenticationToken", "MissingAuthenticationTokenException",
        "OptInRequired", "NotAuthorized",
    }
)  # fmt: skip
"""Refusals of the caller, not of the request (AWS's common errors, botocore's own lists)."""
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException"})
_TOKEN_REUSED = re.compile(r"idempoten|\btoken\b|client[ _-]?token", re.IGNORECASE)


class TaskView(NamedTuple):
    """What DescribeTask says of a task."""

    created_at: float
    """Unix seconds by the service's clock."""
    service_now: float | None
    """The service's clock when it answered, from the Date header; None where it sent none."""
    targets: tuple[str, ...]
    description: str | None = None
    tags: Mapping[str, str] = {}


class TaskSummary(NamedTuple):
    """What ListTasks says of one task."""

    task_id: str
    task_arn: str | None
    tags: Mapping[str, str]


class TaskPage(NamedTuple):
    """One page of ListTasks."""

    tasks: tuple[TaskSummary, ...]
    next_token: str | None
    """Where the next page begins; None at the end."""


class Transport(Protocol):
    """Calls of one lane. Never raises for what the network or the service does."""

    @property
    def refusal(self) -> DispatcherError | None:
        """Why nothing may ever be sent here again: the credentials became another account's."""

    async def create_task(self, targets: Sequence[str], client_token: str) -> Answer:
        """Make one attempt, once, within the attempt's deadline.

        `Kind.NO_CREDENTIALS` alone means that nothing was sent.
        """

    async def describe_task(self, task_id: str) -> TaskView | Answer:
        """Look a task up, once; an answer where it cannot be had says why (`Kind.POISON`: no such task)."""

    async def list_tasks(self, next_token: str | None, limit: int) -> TaskPage | Answer:
        """Read one page of at most `limit` tasks, once, from `next_token` on; an answer says why not."""

    async def renew(self) -> Answer | None:
        """Fetch credentials anew and correct the clock; None, or why there are no credentials to send with.

        That is NO_CREDENTIALS where waiting may help, and DENIED where it cannot.
        """

    async def close(self) -> None: ...


def answer_for(status: int, code: str | None, message: str | None, targets: Sequence[str] = ()) -> Answer:
    """Classify an answer that is not a success, by status and code: the facts table.

    Args:
        status: the HTTP status.
        code: the service's error code where the body or the headers named one.
        message: its text; read here only to tell a reused client token from a bad device.
        targets: the batch's ids, which the text may quote.
    """
    kind = _kind_for(status, code, message, targets)
    return Answer(kind=kind, code=clean(code, 128) or f"HTTP {status}", message=clean(message, 1_000))


def clean(text: str | None, limit: int) -> str | None:
    """Make a service's string fit to be written down: no lone surrogates, at most `limit` characters."""
    if text is None or (text.isascii() and len(text) <= limit):
        return text
    return text[:limit].encode("utf-8", "replace").decode()


def _kind_for(status: int, code: str | None, message: str | None, targets: Sequence[str]) -> Kind:
    refused = 400 <= status < 500
    if refused and code in _DENIED_CODES:
        return Kind.DENIED
    if refused and code in _EXPIRED_CODES:
        return Kind.EXPIRED
    if refused and _speaks_of_reused_token(code, message, targets):
        return Kind.MISMATCH
    if refused and code == "ThrottlingException":
        return Kind.THROTTLED
    if refused and code == "ServiceQuotaExceededException":
        return Kind.QUOTA
    if refused and code in _POISON_CODES:
        return Kind.POISON
    if status in (429, 503):
        return Kind.BARE_THROTTLE
    if status >= 500:
        return Kind.NO_REPLY
    return Kind.UNREADABLE if status == 200 else Kind.ODD


def _speaks_of_reused_token(code: str | None, message: str | None, targets: Sequence[str]) -> bool:
    """Tell whether a refusal is about the client token: no service of this family has an own code for it.

    Erring towards yes is safe: the batch stays in doubt, and nothing is sent again.
    """
    if code and _TOKEN_REUSED.search(code):
        return True
    if code in ("ThrottlingException", "ServiceQuotaExceededException") or not message:
        return False
    if targets:
        # The text may quote the devices, and an id may contain the very words that are looked for.
        longest_first = sorted(map(re.escape, targets), key=len, reverse=True)
        message = re.sub(rf"(?<![\w-])(?:{'|'.join(longest_first)})(?![\w-])", "", message)
    return _TOKEN_REUSED.search(message) is not None
