"""One batch under way: what the engine knows of it between its claim and its outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dispatcher.model import Answer, Batch, BatchState, Created, Outcome, Resend

if TYPE_CHECKING:
    import asyncio


@dataclass(slots=True, eq=False)
class Flight:
    """A claimed batch, its client token and the record of its attempts in this process."""

    batch: Batch
    client_token: str
    claimed_s: float
    """Monotonic instant of the claim, or of the last time the lease was seen to hold."""
    claimed_at: float
    """The same in Unix seconds: a laptop that sleeps stops the one clock and not the other."""
    attempts: int = 0
    unknown: int = 0
    """Attempts that left doubt; probes are not counted."""
    first_sent_at: float | None = None
    """Unix time of the first attempt here, or of the one an earlier process left in doubt."""
    doubt_at: float | None = None
    """Unix time of the first attempt not answered *not created*; None: nothing can have come of it."""
    doubt_s: float | None = None
    """The same as a monotonic instant; None where an earlier process made that attempt."""
    answer: Answer | None = None
    turn: asyncio.Future[Answer | None] | None = None
    """Set while a retry waits for a worker to make its attempt."""

    @property
    def is_tainted(self) -> bool:
        """Whether a task may exist: then this batch may be neither split, rejected nor given back."""
        return self.doubt_at is not None

    def end_turn(self, answer: Answer | None) -> None:
        """Hand the answer to the retry loop that waits for it; None: no attempt was made."""
        if self.turn is not None and not self.turn.done():
            self.turn.set_result(answer)

    def unsent(self, answer: Answer) -> None:
        """Note why no attempt was made, unless an attempt has told more already."""
        self.answer = self.answer or answer

    def returned(self, answer: Answer, *, sent_at: float, sent_s: float, probe: bool) -> None:
        """Note one attempt and its answer."""
        self.attempts += 1
        self.answer = answer
        if self.first_sent_at is None:
            self.first_sent_at = sent_at
        if answer.created is Created.UNKNOWN:
            if self.doubt_at is None:
                self.doubt_at, self.doubt_s = sent_at, sent_s
            if not probe:
                self.unknown += 1

    def outcome(self, state: BatchState, now: float, *, resend: Resend = Resend.ALLOWED) -> Outcome:
        """Return the batch's fate with the evidence of its last answer; `now` is Unix seconds."""
        answer = self.answer
        accepted = state is BatchState.ACCEPTED
        first_sent_at = self.doubt_at if state is BatchState.IN_DOUBT else self.first_sent_at
        return Outcome(
            batch=self.batch.number,
            state=state,
            devices=len(self.batch.targets),
            attempts=self.attempts,
            first_sent_at=first_sent_at,
            settled_at=now,
            task_id=answer.task_id if answer and accepted else None,
            task_arn=answer.task_arn if answer and accepted else None,
            code=answer.code if answer and not accepted else None,
            message=_short(answer.message) if answer and not accepted else None,
            resend=resend,
            targets=self.batch.targets,
        )


def _short(message: str | None) -> str | None:
    """Keep a service's sentence, not its page."""
    return message if message is None or len(message) <= 500 else message[:499] + "…"
