"""Read a manifest file into a plain tree, strictly, remembering where every key stands.

YAML is read through its events rather than its constructors, since those turn `2026-11-23`, `0123`
and `no` into a date, an octal and a boolean. Every YAML scalar becomes a `Written`, text as the
operator wrote it, which the schema may later read as a number or a flag. Anchors, aliases, tags and
merge keys are refused: a list of devices to reboot should say what it says where it says it.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from dispatcher.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 16
"""A manifest larger than this is refused; a fleet that large belongs in an inventory file."""

MAX_DEPTH = 20

KeyPath = tuple[str, ...]


class Written(str):
    """Text as it stands in a format without types, which may be read as a number or a flag."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Tree:
    """A manifest's content: dicts, lists and scalars; None stands for a key without a value."""

    root: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    """The 1-based line of each key, for the formats that tell (YAML)."""


def read_tree(
    path: Path,
    source: str,
    *,
    what: str = "manifest",
    suffix: str | None = None,
    may_be_empty: bool = False,
) -> Tree:
    """Read the manifest at `path`; `source` is its name in messages, `what` its kind.

    `suffix` stands in for the file's own. Raises `ManifestError`.
    """
    if not source.strip():
        raise ManifestError(f"no {what} is named")
    reader = _READERS.get(path.suffix.lower() if suffix is None else suffix)
    if reader is None and path.is_dir():
        raise ManifestError(f"is a folder, not a {what}", path=source)
    if reader is None:
        raise ManifestError(
            f"the suffix {path.suffix!r} is not a manifest's",
            path=source,
            hint="use .yaml, .yml, .json or .toml",
        )
    text = _decode(_read_bytes(path, source, what), source)
    if not text.strip() and not may_be_empty:
        raise ManifestError(f"the {what} is empty", path=source)
    try:
        tree = reader(text, source)
    except RecursionError:
        raise ManifestError(f"the {what} is nested too deep", path=source) from None
    if not isinstance(tree.root, dict):
        raise ManifestError(
            f"a manifest is a mapping of keys to values, not {kind_of(tree.root)}",
            path=source,
            line=tree.lines.get(()),
        )
    return tree


def kind_of(value: object) -> str:
    """Name a value's kind in the operator's words."""
    if value is None:
        return "empty"
    for types, name in _KINDS:
        if isinstance(value, types):
            return name
    return f"a {type(value).__name__}"


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "text"),
    (dict, "a mapping"),
    ((list, tuple), "a list"),
)


def _read_bytes(path: Path, source: str, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = bytearray()
            while len(data) <= MAX_BYTES and (chunk := file.read(_CHUNK_BYTES)):
                data += chunk  # one read of all that is allowed would take that much memory for any file
    except FileNotFoundError:
        raise ManifestError("no such file", path=source) from None
    except IsADirectoryError:
        raise ManifestError(f"is a folder, not a {what}", path=source) from None
    except (OSError, ValueError) as error:
        raise ManifestError(
            f"cannot be read: {getattr(error, 'strerror', None) or error}", path=source
        ) from error
    if len(data) > MAX_BYTES:
        raise ManifestError(
            f"is larger than {MAX_BYTES >> 20} MiB",
            path=source,
            hint="put the targets into an inventory file",
        )
    return bytes(data)


def _decode(data: bytes, source: str) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ManifestError("is UTF-16", path=source, line=1, hint="save it as UTF-8")
    nul = data.find(b"\0")
    if nul >= 0:
        raise ManifestError("has a NUL byte", path=source, line=data.count(b"\n", 0, nul) + 1)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ManifestError("is not UTF-8", path=source, line=line, hint="save it as UTF-8") from None


# ---------------------------------------------------------------------------------------- YAML


def _read_yaml(text: str, source: str) -> Tree:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _YamlReader(yaml.parse(text, Loader=loader), source).read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        line = None if mark is None else mark.line + 1
        raise ManifestError(f"is not YAML: {what}", path=source, line=line) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else None
        raise ManifestError("is not YAML: it has a control character", path=source, line=line) from None
    except yaml.YAMLError as error:
        raise ManifestError(f"is not YAML: {error}", path=source) from None


class _YamlReader:
    """Build a tree from the events of one document."""

    def __init__(self, events: Iterator[Any], source: str) -> None:
        self._events = events
        self._source = source
        self._lines: dict[KeyPath, int] = {}

    def read(self) -> Tree:
        self._next()  # the stream's start
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            raise ManifestError("the manifest is empty", path=self._source)
        root = self._node(self._next(), ())
        self._next()  # the document's end
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._refuse("a second document", event)
        return Tree(root, self._lines)

    def _next(self) -> Any:
        return next(self._events)

    def _node(self, event: Any, path: KeyPath) -> Any:
        if isinstance(event, yaml.AliasEvent):
            raise self._refuse("an alias", event)
        if event.anchor is not None:
            raise self._refuse("an anchor", event)
        if event.tag is not None:
            raise self._refuse("a tag", event)
        if len(path) > MAX_DEPTH:
            raise self._refuse("nesting this deep", event)
        if isinstance(event, yaml.ScalarEvent):
            return Written(event.value) if event.value or event.style else None
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        self._lines.setdefault(path, event.start_mark.line + 1)
        return self._mapping(path)

    def _sequence(self, path: KeyPath) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            # A long list of targets is mostly plain scalars: spare each the key path.
            if type(event) is yaml.ScalarEvent and event.anchor is None and event.tag is None and event.value:
                items.append(Written(event.value))
            else:
                items.append(self._node(event, (*path, f"[{len(items)}]")))
        return items

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if isinstance(event, yaml.CollectionStartEvent):
                raise self._refuse("a key that is not text", event)
            key = self._node(event, path)
            if key is None:
                raise self._refuse("an empty key", event)
            if key == "<<" and not event.style:
                raise self._refuse("a merge key", event)
            key = str(key)
            here = (*path, key)
            line = event.start_mark.line + 1
            if key in mapping:
                first = self._lines[here]
                raise ManifestError(
                    f"is given twice, first in line {first}", path=self._source, line=line, key=".".join(here)
                )
            self._lines[here] = line
            mapping[key] = self._node(self._next(), here)
        return mapping

    def _refuse(self, what: str, event: Any) -> ManifestError:
        line = event.start_mark.line + 1
        return ManifestError(f"{what} has no place in a manifest", path=self._source, line=line)


# -------------------------------------------------------------------------------- JSON and TOML


class _Duplicate(ValueError):
    """A JSON object gives one key twice."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _Duplicate(next(key for key in keys if keys.count(key) > 1))
    return mapping


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _read_json(text: str, source: str) -> Tree:
    try:
        return Tree(json.loads(text, object_pairs_hook=_pairs, parse_constant=_no_constant))
    except json.JSONDecodeError as error:
        raise ManifestError(f"is not JSON: {error.msg}", path=source, line=error.lineno) from None
    except _Duplicate as error:
        raise ManifestError("is given twice", path=source, key=str(error)) from None
    except ValueError as error:
        raise ManifestError(f"is not JSON: {_in_our_words(error)}", path=source) from None


def _in_our_words(error: ValueError) -> str:
    """Return what a parser says, but for Python's advice to Python programmers."""
    said = str(error)
    return "a number has too many digits" if "integer string conversion" in said else said


def _read_toml(text: str, source: str) -> Tree:
    try:
        return Tree(tomllib.loads(text))
    except ValueError as error:
        where = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        what, line = (
            (_in_our_words(error), None) if where is None else (str(error)[: where.start()], int(where[1]))
        )
        raise ManifestError(f"is not TOML: {what}", path=source, line=line) from None


_READERS = {".yaml": _read_yaml, ".yml": _read_yaml, ".json": _read_json, ".toml": _read_toml}
SUFFIXES = tuple(_READERS)
"""How the name of a manifest's file ends."""
