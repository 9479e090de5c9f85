"""Run the command, and die by SIGKILL (or worse) at one call of one of its functions.

    python killing.py WHERE@NTH[,WHERE@NTH] [WORDS OF THE COMMAND]

WHERE is `before` or `after`, a module, a function of it, and perhaps a word that one argument begins with:
`after:dispatcher.checkpoint.sqlite:SqliteCheckpoint.claim`. With `term` in the place of before, the
process asks itself to end gently at that call and goes on; with `memory` the call finds none left, and with
`stall` the process stands still before it. Nothing of the product knows of this.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import sys
import time
from typing import Any

STALL_S = 5.0


class Trap:
    """Counts the calls, and ends the process at the right one."""

    def __init__(self, when: str, nth: int, word: str | None) -> None:
        self.when, self.left, self.word = when, nth, word

    def meets(self, arguments: tuple[Any, ...]) -> bool:
        if self.word is not None and not any(str(each).startswith(self.word) for each in arguments):
            return False
        self.left -= 1
        return self.left == 0

    def spring(self) -> None:
        match self.when:
            case "term":
                os.kill(os.getpid(), signal.SIGTERM)
            case "memory":
                raise MemoryError
            case "stall":
                time.sleep(STALL_S)
            case _:
                os.kill(os.getpid(), signal.SIGKILL)


def trapped(function: Any, trap: Trap) -> Any:
    """Return the function with the trap before or after it."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*arguments: Any, **named: Any) -> Any:
            due = trap.meets(arguments)
            if due and trap.when != "after":
                trap.spring()
            result = await function(*arguments, **named)
            if due and trap.when == "after":
                trap.spring()
            return result

        return awaited

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        due = trap.meets(arguments)
        if due and trap.when != "after":
            trap.spring()
        result = function(*arguments, **named)
        if due and trap.when == "after":
            trap.spring()
        return result

    return called


def lay(where: str, nth: int) -> None:
    """Put a trap into the product."""
    when, module, name, *word = where.split(":")
    holder: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        holder = getattr(holder, part)
    setattr(holder, last, trapped(getattr(holder, last), Trap(when, nth, word[0] if word else None)))


if __name__ == "__main__":
    for each in sys.argv.pop(1).split(","):
        point, _, nth_call = each.rpartition("@")
        lay(point, int(nth_call))
    from dispatcher.__main__ import main

    main()
