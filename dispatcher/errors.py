"""Every failure that may leave the library, with the exit code it means.

DispatcherError               .hint says what to do next; .exit_code is the command line's
├─ UsageError                 2  a flag, an environment variable or a settings file is wrong
│  └─ ManifestError           2  the manifest or its inventory is wrong; names file, line or key
├─ RunStopped                 3  a guard stopped the run; everything unsent is still planned
├─ CheckpointError            4  the checkpoint or registry cannot be used as asked
│  ├─ CheckpointLeased        4  another runner holds it
│  ├─ CheckpointCorrupt       4  damaged, or not one of ours
│  ├─ CheckpointIo            4  out of space, read-only, I/O error
│  └─ PlanMismatch            4  another intent, endpoint, region or account
└─ RunInterrupted             130/143  stopped by the operator; resumable

The fate of one batch is a value (`dispatcher.model.Outcome`), never an exception.
Messages are one lower-case sentence that names the thing and its value; what to do is the hint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


class DispatcherError(Exception):
    """A failure the dispatcher foresaw, explained in one sentence."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.run: str | None = None
        """The run it is about, where that is known."""
        self.summary: Any = None
        """The run's `Summary` where counts were known when the run failed."""

    def one_line(self) -> str:
        """Render message and hint as a single line for stderr and for the JSON `error` key."""
        text = f"{self.message}; {self.hint}" if self.hint else self.message
        return " ".join(part.strip() for part in text.splitlines() if part.strip())


class UsageError(DispatcherError):
    """Flags, environment or settings are wrong; nothing was sent."""

    exit_code = 2

    def __init__(
        self, message: str, *, hint: str | None = None, problems: Sequence[str] = (), count: int = 1
    ) -> None:
        """`problems` are the `count` things that are wrong, a line each, where there are several."""
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)
        self.count = count

    @classmethod
    def together(cls, errors: Sequence[UsageError]) -> UsageError:
        """Make one error of several, so that one look tells everything that is to be put right."""
        if len(errors) == 1:
            return errors[0]
        lines = [line for error in errors for line in error.problems or (error.one_line(),)]
        count = sum(error.count for error in errors)
        return cls(f"{count} problems: {'; '.join(lines)}", problems=lines, count=count)


class ManifestError(UsageError):
    """The manifest or its inventory is wrong; nothing was sent."""

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        line: int | None = None,
        key: str | None = None,
        hint: str | None = None,
        problems: Sequence[str] = (),
        count: int = 1,
    ) -> None:
        super().__init__(placed(message, path, line, key), hint=hint, problems=problems, count=count)
        self.path = path
        self.line = line
        self.key = key


def placed(message: str, path: str | None, line: int | None = None, key: str | None = None) -> str:
    """Put the file, line and key that a message is about before it."""
    where = "" if path is None else f"{path}:{line}: " if line is not None else f"{path}: "
    return f"{where}{'' if key is None else f'{key}: '}{message}"


class RunStopped(DispatcherError):
    """A guard stopped the run: lane fault, systemic rejection, patience or quota."""

    exit_code = 3


class CheckpointError(DispatcherError):
    """The checkpoint cannot be used as asked."""

    exit_code = 4


class CheckpointLeased(CheckpointError):
    """Another runner holds the run."""


class CheckpointCorrupt(CheckpointError):
    """The file is damaged or is not a dispatcher checkpoint."""


class CheckpointIo(CheckpointError):
    """The disk is full, read-only or failing; nothing more is sent."""


class PlanMismatch(CheckpointError):
    """The stored plan belongs to another intent, endpoint, region or account."""


class RunInterrupted(DispatcherError):
    """The operator stopped the run; it can be resumed."""

    def __init__(self, message: str, *, exit_code: int = 130, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
