"""Every command that README.md and docs/ show runs, exits as they say, and prints what they show."""

from __future__ import annotations

import re
import shlex
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from bench.__main__ import BENCHMARKS
from dispatcher.cli import cli
from tests.e2e.console import File, Step, complaints, fences, masked, parse, play, updated
from tests.e2e.console_shell import HOME

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
CONFIGS = sorted(path for path in (ROOT / "configs").iterdir() if path.suffix in (".yaml", ".toml"))
AT_ONCE = 3
"""Pages played at once: most of a command's time is waiting for the emulator."""

NOT_RUN = {
    "make demo": "takes half a minute, and installs from the network",
    "make test": "it is what runs this",
    ". .venv/bin/activate": "the page is played with the command at hand",
}
"""Commands that are shown and cannot run here, each with the reason."""


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(text: str) -> Iterator[Step]:
    """The commands of a page, in order."""
    return (part for part in parse(text) if isinstance(part, Step))


# ------------------------------------------------------------------------------ console blocks


@pytest.fixture(scope="module")
def played() -> Iterator[dict[Path, Future[list[Step]]]]:
    """All pages with commands, each played once, the longest first."""
    lengths = {path: len(list(commands(text_of(path)))) for path in PAGES}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            path: pool.submit(play, text_of(path), skip=NOT_RUN)
            for path in sorted(PAGES, key=lambda path: -lengths[path])
            if lengths[path]
        }


@pytest.mark.parametrize("path", [path for path in PAGES if "```console" in text_of(path)], ids=name_of)
def test_every_command_does_what_the_page_shows(path: Path, played: dict[Path, Future[list[Step]]]) -> None:
    """Output is as shown but for times and the like; a command that fails is followed by its exit code.

    Where a kill falls depends on the machine: a page that differs is played once more, alone.
    """
    if complaints(played[path].result()):
        for other in played.values():
            other.result()
        found = complaints(play(text_of(path), skip=NOT_RUN))
        assert not found, "\n".join([name_of(path), *found, f"python -m tests.e2e.console {name_of(path)}"])


def test_what_cannot_run_is_still_shown() -> None:
    """A command that is not run stands in a block of some page: the list holds no leftovers."""
    text = "\n".join(map(text_of, PAGES))
    assert all(f"$ {command}\n" in text for command in NOT_RUN)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_stand_in_console_blocks_only(path: Path) -> None:
    """No other fence and no prose has a `$ ` prompt, so none is left unplayed."""
    lines = text_of(path).split("\n")
    inside = {
        i for fence in fences(lines) if fence.language == "console" for i in range(fence.start, fence.end)
    }
    assert not [line for i, line in enumerate(lines) if line.startswith("$ ") and i not in inside]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_what_needs_aws_parses(path: Path) -> None:
    """A block that says that it is not run holds commands of ours only, which click takes."""
    for step in commands(text_of(path)):
        if step.needs_aws:
            assert step.command.startswith("dispatcher "), step
            check_parses(step.command)


def test_every_python_example_of_the_readme_is_run() -> None:
    """Each python block names its file, and a command runs that."""
    text = text_of(ROOT / "README.md")
    names = [fence.name for fence in fences(text.split("\n")) if fence.language == "python"]
    ran = {step.command for step in commands(text)}
    assert names
    assert all(name and f"python {name}" in ran for name in names)


def test_every_figure_of_the_readme_names_the_benchmark_that_prints_it() -> None:
    """Each row of the table of figures has the name of one benchmark, and every benchmark has a row."""
    table = text_of(ROOT / "README.md").split("## Measured\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in rows[0]] == ["what", "`NAME`", "measured", "bar"]
    assert sorted(row[1].strip(" `") for row in rows[1:]) == sorted(BENCHMARKS)


def test_every_target_of_make_that_a_page_names_is_one() -> None:
    """`make X` in prose or in a block is a target of the Makefile."""
    named = set(re.findall(r"(?:`|\$ )make ([a-z]+)", "\n".join(map(text_of, PAGES))))
    targets = set(re.findall(r"^([a-z]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    assert named
    assert named <= targets


def test_the_examples_of_the_configs_parse() -> None:
    """Commands in the comments of configs/ are commands."""
    found = [
        line for path in CONFIGS for line in re.findall(r"^# +(dispatcher .*)$", text_of(path), re.MULTILINE)
    ]
    assert found
    for line in found:
        check_parses(line)


# ----------------------------------------------------------------------------- inline commands

_PLACEHOLDERS = {
    "RUN": "night", "RUN|CHECKPOINT": "night", "CHECKPOINT": "night.db", "MANIFEST": "night.yaml",
    "PATH": "/tmp/x", "FILE": "/tmp/x", "N": "5", "S": "5", "KEY": "tonight", "URL": "http://127.0.0.1:1",
    "SHELL": "bash", "NAME": "night", "PORT": "9100",
}  # fmt: skip


def check_parses(line: str) -> None:
    """Hold one command against click's parser; raise `click.UsageError` where it is none.

    Prose may speak of a verb without its arguments, and of a part of a command.
    """
    line = re.split(r" [|<>&;]|  +", line)[0].replace("\\", "").replace("[", "").replace("]", "")
    words = [_PLACEHOLDERS.get(word, word) for word in shlex.split(line)[1:]]
    command: click.Command = cli
    context = click.Context(cli, info_name="dispatcher")
    while words and isinstance(command, click.Group) and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        if found is None:
            raise click.UsageError(f"{words[0]} is no verb of it")
        command, words = found, words[1:]
    if not words:
        return  # a verb that is spoken of
    try:
        command.make_context("dispatcher", words, parent=context)
    except click.exceptions.Exit:
        return  # --help, --version
    except click.MissingParameter:
        if not words[0].startswith("-"):
            raise


def inline_commands(text: str) -> Iterator[str]:
    """Every `dispatcher …` in code marks, and what fences start that are neither played nor Python."""
    lines = text.split("\n")
    for fence in reversed(list(fences(lines))):
        if fence.language not in ("console", "python"):
            block = "\n".join(lines[fence.start : fence.end])
            yield from re.findall(r"(?:^|[/ =])(dispatcher [a-z].*)$", block, re.MULTILINE)
        del lines[fence.start - 1 : fence.end + 1]
    yield from (" ".join(found.split()) for found in re.findall(r"`(dispatcher\s[^`]+)`", "\n".join(lines)))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_spoken_of_parses(path: Path) -> None:
    """No page names a verb or a flag that does not exist, but for verbs that say that they are to come."""
    for line in inline_commands(text_of(path)):
        try:
            check_parses(line)
        except click.UsageError as error:
            if " is to come; " not in error.message:
                pytest.fail(f"{name_of(path)}: `{line}`: {error.format_message()}")


# ------------------------------------------------------------------------------------ the tool

PAGE = f"""
```yaml a.yaml
port: 9001
```

```console
$ cat a.yaml
port: 9001
$ pwd; echo took 1.5 s > x && cat x
{HOME}
took 0.7 s
$ false
$ echo $?
0
$ cat <<END
> two
> END
two
$ seq 9
1
...
9
$ echo one two three; echo four
one ... three
four
```

<!-- needs AWS -->

```console
$ dispatcher run a.yaml --yes
```
"""


def test_a_page_is_read_as_files_and_commands() -> None:
    """Files keep their name, commands their continuation lines and what is shown."""
    file, *steps = parse(PAGE)
    assert file == File("a.yaml", "port: 9001\n")
    assert [(step.command, step.shown) for step in steps if isinstance(step, Step)][4:] == [
        ("cat <<END\ntwo\nEND", ["two"]),
        ("seq 9", ["1", "...", "9"]),
        ("echo one two three; echo four", ["one ... three", "four"]),
        ("dispatcher run a.yaml --yes", []),
    ]


def test_a_difference_is_seen_and_put_right() -> None:
    """Ports, home and durations do not count; an exit code does; what needs AWS is not run."""
    steps = play(PAGE)
    assert [step.command for step in steps if step.differs()] == ["echo $?"]
    assert [step.code for step in steps] == [0, 0, 1, 0, 0, 0, 0]
    right = PAGE.replace("$ echo $?\n0\n", "$ echo $?\n1\n").replace("0.7 s", "1.5 s")
    assert updated(PAGE, steps) == right
    assert not complaints(play(right))


@pytest.mark.parametrize(
    ("planted", "complaint"),
    [
        ("$ dispatcher plan absent.yaml\n...\n", "ended with 2"),
        ("$ dispatcher plan absent.yaml\n...\n$ echo $?\n4\n", "echo $?"),
        ("$ dispatcher paln a.yaml\n...\n", "ended with 2"),
        ("$ dispatcher runs --jsn\n...\n", "ended with 2"),
        ("$ dispatcher --version\n...\nno such line\n", "--version"),
        ("$ echo 10 accepted\n11 accepted\n", "10 accepted"),
        ("$ echo said\n", "said"),
        ("$ true\nsaid\n", "true"),
        ("$ echo one two four\none ... three\n", "one two four"),
        ("$ no-such-program\n...\n", "ended with 127"),
    ],
)
def test_a_planted_lie_is_complained_of(planted: str, complaint: str) -> None:
    """A wrong verb, file, flag, count, exit code, too much output, too little: each is found, and alone."""
    (found,) = complaints(play(f"```console\n$ echo fine\nfine\n{planted}```\n"))
    assert complaint in found


def test_only_blocks_that_say_so_have_all_numbers_masked() -> None:
    """Counts of devices are compared, unless the block is of an interrupted run."""
    one, other = "devices    20: 10 accepted, 10 pending", "devices    20: 11 accepted, 9 pending"
    assert masked(one, all_numbers=False) != masked(other, all_numbers=False)
    assert masked(one, all_numbers=True) == masked(other, all_numbers=True)


def test_commands_are_found_in_prose_and_in_files() -> None:
    """Between two fences too, and in a unit or a script; not in Python."""
    text = "```console\n$ true\n```\n`dispatcher\nruns`\n```ini\nExecStart=/bin/dispatcher run x\n```\n"
    assert sorted(inline_commands(text + "```python\nfrom dispatcher import x\n```\n")) == [
        "dispatcher run x",
        "dispatcher runs",
    ]


def test_a_flag_that_does_not_exist_is_no_command() -> None:
    """The check of inline commands refuses what click refuses."""
    check_parses("dispatcher report RUN --state rejected,in_doubt")
    for line in ("dispatcher report RUN --sate rejected", "dispatcher repot RUN", "dispatcher run --rate"):
        with pytest.raises(click.UsageError):
            check_parses(line)
