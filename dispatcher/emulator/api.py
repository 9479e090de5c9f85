"""The service's interface, read from botocore's model: operations, routes, inputs, error statuses.

Nothing of it is retyped here, so a new botocore brings new constraints and operations with it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from botocore.loaders import Loader

from dispatcher.emulator.validation import Check, Shapes, compile_check

if TYPE_CHECKING:
    from collections.abc import Mapping

MODEL_NAME = "snow-device-management"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of the model."""

    name: str
    method: str
    segments: tuple[str, ...]
    """The path, cut at the slashes; `{name}` is a label that fills the member of that name."""
    query: Mapping[str, tuple[str, str]]
    """Query string name → (member, shape type)."""
    errors: frozenset[str]
    """Codes of the errors that the model lists for it."""
    check: Check
    """Appends the problems of the operation's parameters."""


@dataclass(frozen=True, slots=True)
class Api:
    """All operations, by name and by route."""

    operations: Mapping[str, Operation]
    statuses: Mapping[str, int]
    """Modelled error code → HTTP status."""
    fixed: Mapping[tuple[str, str], Operation]
    """(method, path) of the operations whose path has no label."""
    labelled: Mapping[tuple[str, int], tuple[Operation, ...]]
    """(method, number of segments) of the others."""

    def route(self, method: str, raw_path: str) -> tuple[Operation, dict[str, object]] | None:
        """Find the operation of a request line, with the parameters its path and query string carry.

        Labels are decoded after the path is cut, so that an ARN with an encoded slash stays one label.
        """
        path, _, query = raw_path.partition("?")
        operation = self.fixed.get((method, path))
        if operation is not None:
            return operation, _query_params(operation, query) if query else {}
        segments = path[1:].split("/")
        for candidate in self.labelled.get((method, len(segments)), ()):
            labels = _labels(candidate.segments, segments)
            if labels is not None:
                return candidate, {**_query_params(candidate, query), **labels}
        return None


def _labels(template: tuple[str, ...], segments: list[str]) -> dict[str, object] | None:
    labels: dict[str, object] = {}
    for wanted, found in zip(template, segments, strict=True):
        if wanted.startswith("{"):
            if not found:
                return None
            labels[wanted[1:-1]] = unquote(found)
        elif wanted != found:
            return None
    return labels


def _query_params(operation: Operation, query: str) -> dict[str, object]:
    params: dict[str, object] = {}
    for name, values in parse_qs(query, keep_blank_values=True).items():
        if name not in operation.query:
            continue
        member, kind = operation.query[name]
        params[member] = values if kind == "list" else _scalar(values[-1], kind)
    return params


def _scalar(text: str, kind: str) -> object:
    """Convert a query value to its shape's type; what does not convert is left for the check to refuse."""
    if kind in {"integer", "long"}:
        return int(text) if text.isascii() and text.isdigit() else text
    if kind == "boolean":
        return {"true": True, "false": False}.get(text, text)
    return text


@functools.cache
def load_api() -> Api:
    """Read the model that ships in botocore."""
    model: dict[str, Any] = Loader().load_service_model(MODEL_NAME, "service-2")
    shapes: Shapes = model["shapes"]
    operations = {name: _operation(shapes, spec) for name, spec in model["operations"].items()}
    fixed: dict[tuple[str, str], Operation] = {}
    labelled: dict[tuple[str, int], tuple[Operation, ...]] = {}
    for operation in operations.values():
        if any(segment.startswith("{") for segment in operation.segments):
            key = operation.method, len(operation.segments)
            labelled[key] = (*labelled.get(key, ()), operation)
        else:
            fixed[operation.method, "/" + "/".join(operation.segments)] = operation
    statuses = {
        name: shape["error"]["httpStatusCode"] for name, shape in shapes.items() if shape.get("exception")
    }
    return Api(operations, statuses, fixed, labelled)


def _operation(shapes: Shapes, spec: dict[str, Any]) -> Operation:
    shape_name = spec["input"]["shape"]
    members = shapes[shape_name]["members"]
    query = {
        member["locationName"]: (name, shapes[member["shape"]]["type"])
        for name, member in members.items()
        if member.get("location") == "querystring"
    }
    return Operation(
        name=spec["name"],
        method=spec["http"]["method"],
        segments=tuple(spec["http"]["requestUri"].partition("?")[0].strip("/").split("/")),
        query=query,
        errors=frozenset(error["shape"] for error in spec.get("errors", ())),
        check=compile_check(shapes, shape_name),
    )
