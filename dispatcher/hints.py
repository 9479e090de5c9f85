"""The commands that messages print: ready to be pasted into a shell, and meaning the same run.

The command line says once how it was called. Whoever explains a failure then names the exact next command,
with the flags that this one was given; a program that uses the library gets the command without flags.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_FIND = ("config",)
"""What every verb needs to find the state folder again."""
_DRAIN = (
    *("profile", "limit", "transport", "rate_control"),
    *("allow_network_fs", "yes", "log_file", "metrics", "tracing"),
)
"""What a resume needs beside that. Endpoint and region are the plan's, and the run id has the key in it."""
_PLACE = ("endpoint_url", "region")
"""What a manifest may leave to flags, and a stored plan has."""
_LIMITS = (
    *("rate_per_s", "share", "burst", "max_in_flight", "attempt_timeout_s"),
    *("max_attempts", "patience_s", "token_window_s"),
)
"""The plan remembers those of `run`, not those of `resume`."""
_NOT_AGAIN = ("json_", "verbose", "take_over")
"""How it looks is for the moment, and that another host is dead is known of that host alone."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """How this process was called."""

    verb: str
    words: tuple[str, ...]
    """Its arguments."""
    flags: Mapping[str, tuple[str, ...]]
    """What was given by flag: parameter → the words as they are typed."""


_called: list[Invocation] = []
"""At most one: how a process was called is a fact about all of it, its threads included."""


def called(invocation: Invocation | None) -> None:
    """Remember how this process was called."""
    _called[:] = [] if invocation is None else [invocation]


def _invocation() -> Invocation | None:
    return _called[0] if _called else None


def command(verb: str, *words: str) -> str:
    """Return the command that asks `verb` of `words` in the same state folder."""
    return _line(verb, words, _given(_FIND))


def resume(run: str) -> str:
    """Return the command that resumes `run`, an id or a checkpoint's path, as this process ran it."""
    invocation = _invocation()
    also = _LIMITS if invocation is not None and invocation.verb == "resume" else ()
    needed = (*_FIND, *(() if "/" in run else ("checkpoint",)), *_DRAIN, *also)
    return _line("resume", (run,), _given(needed))


def reconcile(run: str | None = None) -> str:
    """Return the command that reconciles `run`, or else what this process was called with."""
    invocation = _invocation()
    words = (run,) if run is not None else invocation.words if invocation is not None else ("MANIFEST",)
    return _line("reconcile", words, _given((*_FIND, "checkpoint", "run_key", "profile", *_PLACE)))


def again(*more: str) -> str | None:
    """Return this process's own command with the flags `more`; None where no command line called."""
    invocation = _invocation()
    if invocation is None:
        return None
    kept = [
        word
        for name, words in invocation.flags.items()
        if name not in _NOT_AGAIN and words[0] not in more
        for word in words
    ]
    return _line(invocation.verb, invocation.words, [*kept, *more])


def adding(*more: str) -> str:
    """Say how to ask for the same with the flags `more`."""
    whole = again(*more)
    return f"add {_quoted(more)}" if whole is None else f"run it again: {whole}"


def _given(names: tuple[str, ...]) -> list[str]:
    invocation = _invocation()
    return [] if invocation is None else [w for name in names for w in invocation.flags.get(name, ())]


def _line(verb: str, words: tuple[str, ...], flags: list[str]) -> str:
    dashes = ["--"] if any(word.startswith("-") and word != "-" for word in words) else []
    if dashes:
        return _quoted(("dispatcher", *verb.split(), *flags, *dashes, *words))
    return _quoted(("dispatcher", *verb.split(), *words, *flags))


def _quoted(words: Iterable[str]) -> str:
    return " ".join(map(quoted, words))


def quoted(word: str) -> str:
    """Quote a word for a shell; control characters as `$'\\n'`, since messages show them escaped."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = "".join(
        c if c.isprintable() and c not in "'\\" else "".join(f"\\x{byte:02x}" for byte in _bytes(c))
        for c in word
    )
    return f"$'{escaped}'"


def _bytes(character: str) -> bytes:
    """Return the bytes that a file name has for it, those that are no UTF-8 included."""
    return character.encode("utf-8", "surrogateescape")
