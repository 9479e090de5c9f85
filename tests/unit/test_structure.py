"""The shape of the source, read from the source: layers, sizes, and what the pure parts may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import dispatcher

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dispatcher"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("model", "errors", "hints", "clock", "redact", "forking"),
    ("policy", "plan", "spool", "observe"),
    (
        *("settings", "manifest", "manifest_schema", "manifest_text"),
        *("inventory", "inventory_jsonl", "inventory_rows", "inventory_source", "inventory_table"),
        "intake",
    ),
    ("admission", "gate", "checkpoint", "transport"),
    ("engine", "flow", "feed", "flight", "sender", "trial"),
    ("delivery", "metrics", "tracing"),
    (
        *("listening", "run", "pulse", "prepare", "prepared", "preview", "report", "diff", "intent"),
        *("locate", "status", "reconcile", "reconciled", "reconciling", "recover", "lookup", "tasks_of_run"),
        "probe",
    ),
    ("library", "doctor"),
    ("cli",),
    ("__main__",),
)
"""From the bottom up; docs/architecture.md has them from the top. Imports go to the own layer or below."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
PURE = ("policy", "plan", "model")
IMPURE = {"asyncio", "time", "os", "socket", "logging", "pathlib", "threading", "subprocess"}
SDK = {"aiobotocore", "botocore", "boto3"}
MAX_LINES = 400
MAX_FUNCTION_LINES = 60


class Import(NamedTuple):
    """One import of a module."""

    name: str
    for_types_only: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports_of(node: ast.AST, *, for_types_only: bool = False) -> Iterator[Import]:
    """Every import below `node`, those inside functions too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, for_types_only)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                yield Import(full if full in MODULES else str(child.module), for_types_only)
        else:
            guard = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from imports_of(child, for_types_only=for_types_only or guard)


def top_of(module: str) -> str:
    """`dispatcher.checkpoint.sqlite` → `checkpoint`."""
    return module.split(".")[1] if "." in module else ""


def is_under(module: str, *names: str) -> bool:
    return top_of(module) in names


def ours(module: str, *, types: bool = False) -> list[str]:
    """Modules of the package that `module` imports at runtime, or also for its types."""
    return [
        found.name
        for found in imports_of(TREES[module])
        if found.name.startswith("dispatcher.") and (types or not found.for_types_only)
    ]


def test_every_module_has_a_layer() -> None:
    """A new module is put into the table, here and in docs/architecture.md."""
    tops = {top_of(module) for module in MODULES} - {""}
    assert tops == {*LEVEL, "emulator"}


@pytest.mark.parametrize("module", [name for name in MODULES if top_of(name) not in ("", "emulator")])
def test_imports_point_downward(module: str) -> None:
    """At runtime a module imports from its own layer or below; the emulator is the command line's alone."""
    for name in ours(module):
        if is_under(name, "emulator"):
            assert is_under(module, "cli"), f"{module} imports {name}"
        else:
            assert LEVEL[top_of(name)] <= LEVEL[top_of(module)], f"{module} imports {name}"


def test_there_is_no_circle() -> None:
    """Runtime imports form no circle, within a layer either."""
    graph = {module: {name for name in ours(module) if name != module} for module in MODULES}
    done: set[str] = set()
    while ready := [module for module, needs in graph.items() if module not in done and needs <= done]:
        done.update(ready)
    assert done == set(MODULES)


@pytest.mark.parametrize("module", [name for name in MODULES if is_under(name, *PURE)])
def test_decisions_are_pure(module: str) -> None:
    """Policy, plan and model import no clock, loop, file, socket or log."""
    assert not {found.name.split(".")[0] for found in imports_of(TREES[module])} & IMPURE


def test_the_engine_knows_protocols_only() -> None:
    """Engine, admission and policy never import a store or a transport, only what those promise."""
    engine = [module for module in MODULES if is_under(module, *LAYERS[4], "admission", "policy", "plan")]
    for module in engine:
        assert not {
            name
            for name in ours(module, types=True)
            if is_under(name, "checkpoint", "transport")
            and name
            not in ("dispatcher.checkpoint.base", "dispatcher.checkpoint.writer", "dispatcher.transport.base")
        }, module


def test_the_emulator_stands_beside() -> None:
    """It imports the vocabulary and nothing else of the package, so that it can judge the rest."""
    for module in (name for name in MODULES if is_under(name, "emulator")):
        assert all(is_under(name, "emulator", "model", "errors") for name in ours(module)), module


def test_the_sdk_is_imported_in_one_place() -> None:
    """Only the transports and the emulator's reading of the service model import it."""
    users = {
        module
        for module in MODULES
        if {found.name.split(".")[0] for found in imports_of(TREES[module]) if not found.for_types_only} & SDK
    }
    assert {module for module in users if not is_under(module, "emulator")} == {
        "dispatcher.transport.aiobotocore",
        "dispatcher.transport.chain",
        "dispatcher.transport.inspecting",
        "dispatcher.transport.wire",
    }


def test_the_command_line_starts_without_the_sdk() -> None:
    """The help of every verb but the emulator's needs neither SDK, HTTP client nor database."""
    program = (
        "import sys, dispatcher.cli as c\n"
        "try: c.main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'aiobotocore', 'botocore', 'aiohttp', 'apsw', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_too_long(module: str) -> None:
    """No file has over 400 lines and no function over 60."""
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    for node in ast.walk(TREES[module]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{module}.{node.name} has {length} lines"


def test_the_public_names_are_sorted_and_importable() -> None:
    """`dispatcher.__all__` is in order, and every name of it is there."""
    assert dispatcher.__all__ == sorted(dispatcher.__all__)
    for name in dispatcher.__all__:
        assert getattr(dispatcher, name) is not None
    assert set(dispatcher.__all__) <= set(dir(dispatcher))


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    """Lazy names fail as other attributes do."""
    with pytest.raises(AttributeError, match="has no attribute 'Dispatchr'"):
        _ = dispatcher.Dispatchr
