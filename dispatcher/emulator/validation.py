"""Checks of a request's parameters, compiled from botocore's model shapes and enforced here.

botocore's own validator looks at types and minimum lengths only: a description with a colon, a client
token of 65 characters and 11 targets pass it. The emulated service refuses them as the real one would.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Shapes = dict[str, dict[str, Any]]
Check = Callable[[object, str, list[str]], None]
"""(value, its path, problems): append one sentence for every constraint the value breaks."""

_JSON_TYPES: dict[str, tuple[type, str]] = {
    "string": (str, "a string"),
    "integer": (int, "an integer"),
    "long": (int, "an integer"),
    "boolean": (bool, "a boolean"),
    "list": (list, "a list"),
    "map": (dict, "a map"),
    "structure": (dict, "a structure"),
}


def compile_check(shapes: Shapes, name: str) -> Check:
    """Return the check for the named shape and everything below it.

    Raises KeyError for a shape type that no input of this service has.
    """
    shape = shapes[name]
    kind = shape["type"]
    inner: Check
    if kind == "structure":
        inner = _structure(shapes, shape)
    elif kind == "list":
        inner = _list(shape, compile_check(shapes, shape["member"]["shape"]))
    elif kind == "map":
        key, value = (compile_check(shapes, shape[side]["shape"]) for side in ("key", "value"))
        inner = _map(key, value)
    elif kind == "string":
        if not shape.keys() & {"min", "max", "pattern", "enum"}:
            return _plain_string
        inner = _string(shape)
    else:
        inner = _bounds(shape, _itself, "have value")
    return _typed(kind, inner)


def sentence(problems: list[str]) -> str:
    """Join problems as the AWS services word them."""
    plural = "" if len(problems) == 1 else "s"
    return f"{len(problems)} validation error{plural} detected: {'; '.join(problems)}"


def _fail(path: str, constraint: str) -> str:
    return f"Value at '{path}' failed to satisfy constraint: Member must {constraint}"


def _typed(kind: str, inner: Check) -> Check:
    expected, article = _JSON_TYPES[kind]

    def check(value: object, path: str, problems: list[str]) -> None:
        # bool is an int in Python and is not an integer on the wire.
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            problems.append(_fail(path, f"be {article}"))
        else:
            inner(value, path, problems)

    return check


def _plain_string(value: object, path: str, problems: list[str]) -> None:
    if not isinstance(value, str):
        problems.append(_fail(path, "be a string"))


def _itself(value: Any) -> int:
    return int(value)


def _bounds(shape: dict[str, Any], measure: Callable[[Any], int], wording: str) -> Check:
    low, high = shape.get("min"), shape.get("max")

    def check(value: object, path: str, problems: list[str]) -> None:
        size = measure(value)
        if low is not None and size < low:
            problems.append(_fail(path, f"{wording} greater than or equal to {low}"))
        if high is not None and size > high:
            problems.append(_fail(path, f"{wording} less than or equal to {high}"))

    return check


def _string(shape: dict[str, Any]) -> Check:
    length = _bounds(shape, len, "have length")
    pattern = shape.get("pattern")
    matches = re.compile(pattern).fullmatch if pattern is not None else None
    allowed = shape.get("enum")

    def check(value: Any, path: str, problems: list[str]) -> None:
        length(value, path, problems)
        if matches is not None and matches(value) is None:
            problems.append(_fail(path, f"satisfy regular expression pattern: {pattern}"))
        if allowed is not None and value not in allowed:
            problems.append(_fail(path, f"satisfy enum value set: [{', '.join(allowed)}]"))

    return check


def _list(shape: dict[str, Any], member: Check) -> Check:
    length = _bounds(shape, len, "have length")

    def check(value: Any, path: str, problems: list[str]) -> None:
        before = len(problems)
        length(value, path, problems)
        if len(problems) == before:  # an overlong list is refused once, not once a member
            for item in value:
                member(item, path, problems)

    return check


def _map(key: Check, member: Check) -> Check:
    def check(value: Any, path: str, problems: list[str]) -> None:
        for name, item in value.items():
            key(name, path, problems)
            member(item, f"{path}.{name}", problems)

    return check


def _structure(shapes: Shapes, shape: dict[str, Any]) -> Check:
    members = {name: compile_check(shapes, ref["shape"]) for name, ref in shape["members"].items()}
    required = frozenset(shape.get("required", ()))
    is_union = bool(shape.get("union"))

    def check(value: Any, path: str, problems: list[str]) -> None:
        prefix = f"{path}." if path else ""
        present = 0
        for name, member in members.items():
            item = value.get(name)  # JSON null means absent, as it does in rest-json
            if item is not None:
                present += 1
                member(item, prefix + name, problems)
            elif name in required:
                problems.append(_fail(prefix + name, "not be null"))
        if is_union and present != 1:
            problems.append(_fail(path, f"set exactly one of: {', '.join(members)}"))

    return check
