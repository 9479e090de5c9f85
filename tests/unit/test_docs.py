"""What the documents say is what the code does: verbs, options, keys, states, tests and links."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from dispatcher.checkpoint.statements import load_schema
from dispatcher.cli import EXIT_BUG, cli
from dispatcher.cli.options import common_options, run_options
from dispatcher.emulator.faults import Fault
from dispatcher.errors import DispatcherError
from dispatcher.manifest import _INVENTORY, _MANIFEST, LIMITS, Manifest
from dispatcher.model import (
    DEVICE_CLASSES,
    RECONCILE_MOVES,
    TRANSITIONS,
    BatchState,
    Command,
    Kind,
    Summary,
)
from dispatcher.policy.lane import LANE_TRANSITIONS, LaneState
from dispatcher.report import COLUMNS
from dispatcher.settings import (
    _DEFAULTS,
    _SCHEMA,
    ASSUME_ABSENT,
    ENV_PREFIX,
    TOKEN_WINDOW_S,
    Settings,
    read_config,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MARKDOWN = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
TEXT_SUFFIXES = {".py", ".md", ".sql", ".toml", ".yaml", ".yml", ".json", ".csv", ".txt", ""}
TREE = ("dispatcher", "tests", "bench", "configs", "docs", ".ci")


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """The text under a heading, up to the next one of its own level or above."""
    start = re.search(rf"^(#+) {re.escape(heading)}\b.*$", text, re.MULTILINE)
    assert start is not None, f"no heading {heading!r}"
    end = re.search(rf"^#{{1,{len(start[1])}}} ", text[start.end() :], re.MULTILINE)
    return text[start.end() : start.end() + end.start()] if end else text[start.end() :]


def table(text: str) -> dict[str, list[str]]:
    """All table rows of a text: first cell → the others, code marks taken off."""
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and not re.fullmatch(r"[-| ]+", line):
            rows[cells[0].strip("`")] = cells[1:]
    return rows


def verbs(command: click.Command = cli, path: str = "dispatcher") -> Iterator[tuple[str, click.Command]]:
    """Every verb that does something, with its full name."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from verbs(found, f"{path} {name}")
    else:
        yield path, command


def options_of(command: click.Command) -> dict[str, list[str]]:
    """Options of a verb: parameter name → its spellings."""
    return {str(p.name): [*p.opts] for p in command.params if isinstance(p, click.Option)}


def shared(decorate: Callable[[Callable[..., None]], Callable[..., None]]) -> dict[str, list[str]]:
    """The options that a decorator adds."""

    def nothing(**options: Any) -> None:
        """Carry the options."""

    return options_of(click.command()(decorate(nothing)))


RUN_OPTIONS = shared(run_options)
COMMON_OPTIONS = shared(common_options)


# ------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(("path", "command"), list(verbs()))
def test_every_verb_and_option_is_documented(path: str, command: click.Command) -> None:
    """docs/cli.md has a section for each verb, and each option in its section or in a shared one."""
    text = read("cli.md")
    own = section(text, path)
    common = section(text, "Options of every verb")
    runs = section(text, "Options of plan, run and resume") + common
    for name, spellings in options_of(command).items():
        where = own
        if spellings == RUN_OPTIONS.get(name):
            where = runs
        if spellings == COMMON_OPTIONS.get(name):
            where = common
        for spelling in spellings:
            assert re.search(rf"`{re.escape(spelling)}[ `]", where), f"{path} {spelling}"


def test_no_option_is_documented_that_does_not_exist() -> None:
    """Every option that docs/cli.md lists in a table is one of some verb."""
    known = {
        spelling for _, command in verbs() for found in options_of(command).values() for spelling in found
    }
    listed = set(re.findall(r"^\| `(-[-\w]+)", read("cli.md"), re.MULTILINE))
    assert listed
    assert listed <= known


def test_no_verb_is_documented_that_does_not_exist() -> None:
    """Every `dispatcher VERB` is a verb."""
    known = {path.split()[1] for path, _ in verbs()}
    for path in MARKDOWN:
        text = path.read_text(encoding="utf-8")
        for verb in re.findall(r"(?:^\$ |`)dispatcher ([a-z]+)", text, re.MULTILINE):
            assert verb in known, f"{path.name}: dispatcher {verb}"


def test_the_shape_of_json_is_documented() -> None:
    """Keys of the summary, fields of a receipt and classes of devices, each by its name."""
    text = read("cli.md")
    summary = Summary(run="x", error="y")
    for word in (*summary.as_json(), *COLUMNS, *DEVICE_CLASSES):
        assert f"`{word}`" in text, word


def exit_codes() -> set[int]:
    """Every code that the tree of errors, success, doubt, bugs and signals can end with."""

    def below(kind: type[DispatcherError]) -> Iterator[int]:
        yield kind.exit_code
        for child in kind.__subclasses__():
            yield from below(child)

    return {0, EXIT_BUG, 130, 143, *below(DispatcherError)}


@pytest.mark.parametrize("name", ["cli.md", "operations.md", "../README.md"])
def test_every_exit_code_is_documented(name: str) -> None:
    """The three tables of codes know them all, and no other (137 is the shell's word for a kill)."""
    rows = [line for line in read(name).splitlines() if re.match(r"\| (\d+(, \d+)*|killed \(137\)) \|", line)]
    listed = {int(code) for line in rows for code in re.findall(r"\d+", line.split("|")[1])} - {137}
    assert listed == exit_codes()


def said_by(source: Path) -> Iterator[str]:
    """Every text of a module; what an f-string fills in is a gap."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("heading", ["Exit 3", "The checkpoint", "Another runner"])
def test_messages_are_quoted_as_they_are(heading: str) -> None:
    """The sentences that docs/operations.md explains are those that the code says."""
    said = "\n".join(text for path in (ROOT / "dispatcher").rglob("*.py") for text in said_by(path))
    rows = [
        row
        for row in table(section(read("operations.md"), heading))
        if row not in ("the line says", "you see")
    ]
    assert len(rows) > 2
    for row in rows:
        for part in re.split(r"\b[A-Z]+\b|\.\.\.|[/:()]", row):
            assert part.strip(" ") in said, f"{row}: {part}"


def test_every_fault_of_the_emulator_is_documented() -> None:
    """docs/cli.md names what `--fault` takes."""
    text = section(read("cli.md"), "dispatcher emulator")
    assert all(f"`{fault}`" in text for fault in Fault if fault is not Fault.OUTAGE)


# --------------------------------------------------------------------- settings and manifest


def shown(name: str) -> str:
    """A default as docs/settings.md writes it."""
    if name == "token_window_s":
        return ", ".join(f"{TOKEN_WINDOW_S[command]:g} ({command})" for command in Command)
    if name == "assume_absent":
        return ", ".join(f"{str(ASSUME_ABSENT[command]).lower()} ({command})" for command in Command)
    value = _DEFAULTS.get(name)
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, (bool, str)) else f"{value:g}"


def test_every_setting_is_documented() -> None:
    """docs/settings.md has each setting with its default, variable and flag, and no other."""
    rows = table(read("settings.md"))
    del rows["setting"]
    assert rows.keys() == _SCHEMA.rules.keys()
    for name, (default, variable, flag, meaning) in rows.items():
        assert default == shown(name), name
        assert variable == f"`{ENV_PREFIX}{name.upper()}`"
        assert flag == (f"`{RUN_OPTIONS[name][0]}`" if name in RUN_OPTIONS else "–"), name
        assert meaning


def test_the_default_token_windows_are_those_that_hold() -> None:
    """What the documents call the default is what `resolve` gives."""
    for command in Command:
        assert Settings().resolve(command=command).token_window_s == TOKEN_WINDOW_S[command]


def test_every_manifest_key_is_documented() -> None:
    """docs/manifest.md has a row for every key of manifest, inventory and limits, and no other."""
    rows = table(section(read("manifest.md"), "Keys"))
    headings = {"key", "key of `inventory", "key of `limits"}
    assert rows.keys() - headings == {*_MANIFEST.rules, *_INVENTORY.rules, *LIMITS.rules}
    assert {key for key, cells in rows.items() if cells[0] == "yes"} == set(_MANIFEST.required)


@pytest.mark.parametrize(
    "path", sorted(p for p in (ROOT / "configs").glob("*") if p.suffix in (".yaml", ".toml", ".json"))
)
def test_every_example_loads(path: Path) -> None:
    """The files under configs/ are manifests, or a settings file."""
    if path.name == "settings.toml":
        assert read_config(path)
    else:
        assert Manifest.load(path).name


def test_the_manifest_of_the_documents_loads(tmp_path: Path) -> None:
    """So do the YAML examples of docs/manifest.md."""
    examples = re.findall(r"```yaml\n(.*?)```", read("manifest.md"), re.DOTALL)
    assert len(examples) == 2
    for text in examples:
        (tmp_path / "example.yaml").write_text(text, encoding="utf-8")
        assert Manifest.load(tmp_path / "example.yaml").command is Command.REBOOT


# ------------------------------------------------------------------------------ architecture


def moves(heading: str) -> dict[str, set[str]]:
    """A table of moves: from → to."""
    rows = table(section(read("architecture.md"), heading).partition("| reconcile: from |")[0])
    del rows["from"]
    return {state: {word.strip() for word in cells[0].split(",")} - {"–"} for state, cells in rows.items()}


def test_the_states_of_a_batch_agree() -> None:
    """The table in the documents, the table in code and the CHECK in SQL are one."""
    assert moves("States of a batch") == {
        state.value: {other.value for other in others} for state, others in TRANSITIONS.items()
    }
    (found,) = re.findall(r"state IN \(([^)]*)\)", load_schema())
    stored = {BatchState(word.strip(" '")) for word in found.split(",")}
    assert stored == set(BatchState) - {BatchState.PLANNED, BatchState.SENT}


def test_the_moves_of_a_reconcile_agree() -> None:
    """The second table of the documents is the one in code."""
    text = section(read("architecture.md"), "States of a batch")
    rows = table(text[text.index("| reconcile: from |") :])
    del rows["reconcile: from"]
    assert {state: {word.strip() for word in cells[0].split(",")} for state, cells in rows.items()} == {
        state.value: {other.value for other in others} for state, others in RECONCILE_MOVES.items()
    }


def test_the_states_of_a_lane_agree() -> None:
    """The lane's table in the documents is the one in code."""
    assert moves("States of a lane") == {
        state.value: {other.value for other in LANE_TRANSITIONS[state]} for state in LaneState
    }


def test_the_facts_of_answers_agree() -> None:
    """Every kind of answer is documented with its two facts."""
    rows = table(section(read("architecture.md"), "Two facts in every answer"))
    del rows["kind"]
    assert {kind: (cells[1], cells[2]) for kind, cells in rows.items()} == {
        kind.value: (kind.created.value, kind.pace.value) for kind in Kind
    }


# ----------------------------------------------------------------------- promises and links


def names_in(path: Path) -> set[str]:
    """Functions, classes and assigned names of a test file."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def test_every_promise_names_tests_that_exist() -> None:
    """Nine promises, each with a test at least; every test that the page names is there."""
    text = read("invariants.md")
    numbers = re.findall(r"^### (\d+)\. ", text, re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 10)]
    for number in numbers:
        assert re.search(r"`tests/\S+::\w+`", section(text, f"{number}. "))
    known: dict[str, set[str]] = {}
    for file, name in re.findall(r"`(tests/\S+?)::(\w+)`", text):
        known.setdefault(file, names_in(ROOT / file))
        assert name in known[file], f"{file}::{name}"


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_relative_links_resolve(path: Path) -> None:
    """A link into the tree leads to a file or folder that is there."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def sources() -> Iterator[tuple[Path, str]]:
    """The text files of the tree."""
    files = [path for folder in TREE for path in (ROOT / folder).rglob("*")]
    for path in [*files, *ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]:
        if path.is_file() and path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts:
            yield path, path.read_text(encoding="utf-8", errors="replace")


def test_documents_that_code_points_to_exist() -> None:
    """A comment that names a page, a decision or a heading of the architecture names one that is there."""
    headings = set(re.findall(r"^#+ (.+)$", read("architecture.md"), re.MULTILINE))
    for path, text in sources():
        for number in re.findall(r"docs/adr/(\d{4})", text):
            assert list((DOCS / "adr").glob(f"{number}-*.md")), f"{path}: decision {number}"
        for page in re.findall(r"docs/(\w+\.md)", text):
            assert (DOCS / page).exists(), f"{path}: docs/{page}"
        for heading in re.findall(r'docs/architecture\.md "([^"]+)"', text):
            assert heading in headings, f"{path}: {heading}"


def test_decisions_are_numbered_and_shaped_alike() -> None:
    """Each number once; a title that carries the number; context, decision, consequence."""
    paths = sorted((DOCS / "adr").glob("*.md"))
    assert len({path.name[:4] for path in paths}) == len(paths)
    for path in paths:
        text = path.read_text(encoding="utf-8")
        number = int(path.name[:4])
        assert text.startswith(f"# {number}. ")
        parts = re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequence"], path.name


@pytest.mark.parametrize(
    "word",
    [
        "/work" + "/main",
        "/work" + "/shared",
        "/tmp" + "/h/",
        *(f"{w}.md" for w in ("DESIGN", "FAULTS", "STYLE", "SERVICE", "FEATURES")),
    ],
)
def test_no_file_mentions_a_place_outside_the_tree(word: str) -> None:
    """Paths and pages that a reader of this repository cannot open have no place in it."""
    here = Path(__file__).name
    assert not [str(path) for path, text in sources() if word in text and path.name != here]
