"""Plays the documents: runs every `$ ` command of their console blocks and compares what is shown.

A document is one shell session in a home folder of its own, from its first block to its last:

- a ```console block holds commands behind `$ ` (`> ` where one goes on) and below each what it prints;
- a line `...` below a command stands for any number of lines, none included; in a line, for any text;
- a fence that names a file after its language (```yaml night.yaml) is that file, written when it is reached;
- a command that fails is followed by `$ echo $?`, which shows its exit code, unless it is `Killed`;
- a command that ends in `&` is given until what is shown below it has come.

Figures that vary, and no others, are left out of the comparison: times of day, durations, task ids, process
numbers, and how fast a run was (calls, retries, rates). Counts of devices are compared. A comment before a
block says where less is held:

- `<!-- numbers vary -->`: no number in it is compared; for what an interrupted run has done;
- `<!-- needs AWS -->`: it is not run; each of its commands must parse.

`python -m tests.e2e.console PAGE...` writes what commands print now into pages.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.console_shell import Session

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

VARYING = "<!-- numbers vary -->"
NEEDS_AWS = "<!-- needs AWS -->"
BUG = "a bug in the dispatcher"
"""What no page shall show: nothing is written where a command says it."""
ELISION = "..."
_ELIDED = re.escape(ELISION)
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), instead)
    for pattern, instead in (
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
        (r"\b(\d+ h )?(\d+ min )?\d+(\.\d+)? s\b", "DURATION"),
        (r"\bst-[a-z0-9]{16}\b", "TASK"),
        (r"\(process \d+\)", "(process N)"),
        (r'"(elapsed_s|calls_per_s|calls|retried)":[\d.]+', r'"\1":N'),
        # How a run fared depends on the machine; which devices it settled does not.
        (r"^(calls|service|rate) +.*$", r"\1"),
        (r"^(forecast   .*? calls/s; it took DURATION).*$", r"\1"),
    )
)


@dataclass(slots=True)
class Step:
    """One command, what the document shows below it, and what came of it."""

    line: int
    """1-based line of the command in its document."""
    command: str
    shown: list[str] = field(default_factory=list)
    first: int = 0
    """0-based index of the first line shown."""
    varies: bool = False
    needs_aws: bool = False
    code: int = 0
    came: list[str] = field(default_factory=list)

    @property
    def is_background(self) -> bool:
        return self.command.endswith("&")

    def differs(self) -> bool:
        """Whether what came is not what is shown, but for what may vary."""
        return self._match() is None

    def retold(self) -> list[str]:
        """What came, with the lines left out that the document leaves out; all of it where it differs."""
        match = self._match()
        if match is None:
            return self.came
        left, gaps, told = iter(self.came), iter(match.groups()), list[str]()
        for line in self.shown:
            if line == ELISION:
                for _ in range(next(gaps).count("\n")):
                    next(left)
            told.append(line if line == ELISION else _cut_as(line, next(left)))
        return told

    def _match(self) -> re.Match[str] | None:
        def mask(line: str) -> str:
            return masked(line, all_numbers=self.varies) + "\n"

        shown = "".join(
            r"((?:.*\n)*?)" if line == ELISION else re.escape(mask(line)).replace(_ELIDED, ".*")
            for line in _trimmed(self.shown)
        )
        return re.fullmatch(shown, "".join(map(mask, _trimmed(self.came))))


def masked(line: str, *, all_numbers: bool) -> str:
    """Leave out what differs from one true run to the next."""
    for pattern, instead in _RULES:
        line = pattern.sub(instead, line)
    return re.sub(r"\d+(\.\d+)?", "N", line) if all_numbers else line


def _cut_as(shown: str, came: str) -> str:
    return shown if ELISION in shown else came


def _trimmed(lines: list[str]) -> list[str]:
    return "\n".join(lines).rstrip().split("\n") if any(lines) else []


@dataclass(frozen=True, slots=True)
class File:
    """A file that a fence names."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Fence:
    """One fenced block of a page, as lines `start` to `end` (0-based, the end not included)."""

    language: str
    name: str
    """What stands after the language."""
    mark: str
    """The comment right before it, if any."""
    start: int
    end: int


def fences(lines: list[str]) -> Iterator[Fence]:
    """All fenced blocks of a page, in order."""
    index, mark = 0, ""
    while index < len(lines):
        fence = re.match(r"```(\w*)(?: (\S+))?$", lines[index])
        if fence is None:
            mark = lines[index] or mark
        else:
            end = lines.index("```", index + 1)
            yield Fence(fence[1], fence[2] or "", mark, index + 1, end)
            index, mark = end, ""
        index += 1


def parse(text: str) -> list[Step | File]:
    """Read a document's commands and files, in order."""
    found: list[Step | File] = []
    lines = text.split("\n")
    for fence in fences(lines):
        if fence.language == "console":
            found += _steps(lines, fence)
        elif fence.name:
            found.append(File(fence.name, "\n".join([*lines[fence.start : fence.end], ""])))
    return found


def _steps(lines: list[str], fence: Fence) -> list[Step]:
    steps: list[Step] = []
    for index in range(fence.start, fence.end):
        line = lines[index]
        if line.startswith("$ "):
            step = Step(index + 1, line[2:], first=index + 1)
            step.varies, step.needs_aws = fence.mark == VARYING, fence.mark == NEEDS_AWS
            steps.append(step)
        elif not steps:
            raise AssertionError(f"line {index + 1}: a console block begins with a command")
        elif line.startswith("> ") and not steps[-1].shown:
            steps[-1].command += "\n" + line[2:]
            steps[-1].first = index + 1
        else:
            steps[-1].shown.append(line)
    return steps


def play(text: str, *, skip: Container[str] = ()) -> list[Step]:
    """Run a document in a scratch home; return its commands with what came of them."""
    done: list[Step] = []
    home = Path(tempfile.mkdtemp(prefix="console."))
    session = Session(home)
    try:
        for part in parse(text):
            if isinstance(part, File):
                session.write(part.name, part.text)
            elif part.command not in skip and not part.needs_aws:
                until = len(part.shown) if part.is_background else 0
                part.code, part.came = session.run(part.command, until=until)
                done.append(part)
    finally:
        session.close()
        shutil.rmtree(home, ignore_errors=True)
    return done


def complaints(steps: list[Step]) -> list[str]:
    """What is wrong with a document: outputs that are not as shown, failures that are not told."""
    found: list[str] = []
    for step, after in pairwise([*steps, Step(0, "")]):
        came = "".join(f"\n    {line}" for line in step.came)
        if step.differs():
            found.append(f"line {step.line}: {step.command}\n  printed:{came}")
        elif step.code != 0 and after.command != "echo $?" and "Killed" not in step.came:
            found.append(f"line {step.line}: {step.command}\n  ended with {step.code}:{came}")
    return found


def updated(text: str, steps: Iterable[Step]) -> str:
    """Return the document with what came in place of what is shown: all of it, so that one run is told."""
    lines = text.split("\n")
    for step in sorted(steps, key=lambda step: -step.first):
        lines[step.first : step.first + len(step.shown)] = step.retold()
    return "\n".join(lines)


def main(pages: list[str]) -> None:
    """Update pages from what their commands print now."""
    from tests.e2e.test_doc_commands import NOT_RUN

    for page in map(Path, pages):
        text = page.read_text(encoding="utf-8")
        steps = play(text, skip=NOT_RUN)
        if not any(BUG in line for step in steps for line in step.came):
            page.write_text(updated(text, steps), encoding="utf-8")
        print("\n".join([f"{page}: {len(steps)} commands", *complaints(steps)]))


if __name__ == "__main__":
    main(sys.argv[1:])
