"""Nothing in the package is shared by two runs of one process, but for what is named here with its reason."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from tests.unit.test_structure import TREES

if TYPE_CHECKING:
    from collections.abc import Iterator

ALLOWED = {
    "dispatcher: globals()": "public names, imported when first used: the same value whoever asks",
    "dispatcher.checkpoint.pages: _sums": "SQLite keeps what is loaded for the whole process",
    "dispatcher.checkpoint.rows: Insert.of": "texts of SQL, a function of its arguments",
    "dispatcher.emulator.api: load_api": "the service's model, a function of its arguments",
    "dispatcher.emulator.fleet: fleet_index": "a function of its arguments",
    "dispatcher.emulator.wire: _request_numbers": "random and unique, for all emulators together",
    "dispatcher.forking: _inherited": "what this process holds: a fork knows no run",
    "dispatcher.hints: _called": "how the process was called; set by the command line alone",
    "dispatcher.transport.chain: _turns": "a lock a loop: credential caches on disk are the process's",
    "dispatcher.transport.chain: _walking": "a context variable: each task has its own value",
}
CHANGES = {
    *("append", "add", "update", "extend", "insert", "setdefault", "pop", "popitem", "remove", "discard"),
    *("clear", "sort", "reverse", "appendleft", "popleft", "put", "put_nowait", "set"),
}
STATEFUL = {
    *("count", "cycle", "iter", "WeakSet", "WeakKeyDictionary", "WeakValueDictionary", "ContextVar", "local"),
    *("defaultdict", "deque", "Counter", "OrderedDict", "Lock", "RLock", "Event", "Queue", "SimpleQueue"),
    *("Random", "list", "dict", "set", "bytearray"),
}


def last_name(node: ast.expr) -> str:
    """`itertools.count(...)` → `count`; `functools.lru_cache(9)` → `lru_cache`."""
    if isinstance(node, ast.Call):
        return last_name(node.func)
    if isinstance(node, ast.Subscript):
        return last_name(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def module_level(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Every name that is bound as a module is imported, class bodies included, and its value."""
    bodies: list[list[ast.stmt]] = [tree.body]
    for body in bodies:
        for node in body:
            if isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef, ast.For)):
                bodies.append(node.body)
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and value is not None:
                yield from ((one.id, value) for one in targets if isinstance(one, ast.Name))


def changed(tree: ast.Module) -> Iterator[str]:
    """Names of which an item is set, deleted or added to inside a function."""
    functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    for function in functions:
        own = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and is_bound(node)}
        own |= {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
        for node in ast.walk(function):
            found: ast.expr | None = None
            if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
                found = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                found = node.func.value if node.func.attr in CHANGES else None
            if isinstance(found, ast.Name) and found.id not in own:
                yield found.id


def is_bound(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)


def state_of(tree: ast.Module) -> Iterator[str]:
    """Whatever of a module outlives a call and may differ after it."""
    values = dict(module_level(tree))
    yield from (name for name in changed(tree) if name in values)
    for name, value in values.items():
        if isinstance(value, ast.Call) and last_name(value) in STATEFUL:
            yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "globals()":
            yield "globals()"
    yield from cached(tree, "")


def cached(node: ast.AST, within: str) -> Iterator[str]:
    """Functions whose results are kept."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from cached(child, f"{within}{child.name}.")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if any(last_name(one) in ("cache", "lru_cache") for one in child.decorator_list):
                yield f"{within}{child.name}"
            yield from cached(child, f"{within}{child.name}.")


def test_no_module_keeps_state() -> None:
    """No value of a module is changed by what runs, no `global`, no cache, but for what is allowed."""
    found = {f"{module}: {name}" for module, tree in TREES.items() for name in state_of(tree)}
    assert found == ALLOWED.keys()


def test_state_is_seen() -> None:
    """Every way to keep some is found, and a local of the same name is not."""
    text = """
import functools, itertools
KEPT, CONSTANT, _n = [], {"a": 1}, 0
seen: set[str] = set()
table = {}
numbers = itertools.count()
class C:
    shared = {}
def f(a):
    global counter
    table[a] = 1
    kept.append(a)
    numbers
def g():
    table = {}
    CONSTANT["a"]
    shared["x"] = 1
@functools.lru_cache(4)
def h(): pass
kept = []
"""
    assert set(state_of(ast.parse(text))) == {"seen", "table", "numbers", "counter", "kept", "h", "shared"}
