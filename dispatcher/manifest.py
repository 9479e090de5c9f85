"""The manifest: one operator's intent, read from a file or built in Python, checked the same way.

Patterns and lengths are those of the service's model where it has one (`description`): written down
here, and held against the model by a test, since importing botocore costs 0.3 s.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from dispatcher.errors import ManifestError, UsageError
from dispatcher.manifest_schema import (
    Problems,
    Section,
    flag,
    mapping_of,
    not_empty,
    number,
    one_of,
    pattern_check,
    shown,
    text_or_texts,
    text_rule,
    texts,
)
from dispatcher.manifest_text import KeyPath, read_tree
from dispatcher.model import Command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""A run's name and its run key."""
DESCRIPTION_PATTERN = r"[A-Za-z0-9 _.,!#]{1,128}"
"""The service's TaskDescriptionString: 1 to 128 characters."""
MAX_TAGS = 50
"""Tags on one AWS resource; two of them are ours while system tags are on."""
FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".txt": "txt"}
COMPRESSIONS = (".gz", ".zst")


@dataclass(frozen=True, slots=True, kw_only=True)
class InventorySpec:
    """Where targets come from and which of them are meant. One of `path` and `targets` is given."""

    path: str | None = None
    """A file, relative to the manifest; `-` is standard input."""
    targets: Sequence[str] | None = None
    format: str | None = None
    """One of csv, tsv, jsonl, txt; by default the path's suffix tells."""
    id_column: str | None = None
    where: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """Column → exact values or globs, of which one must match; every column must match."""

    def __post_init__(self) -> None:
        if isinstance(self.targets, list):
            object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def resolved_format(self) -> str | None:
        """The format that is given or that the path's suffix tells, else None."""
        if self.format is not None or self.path is None:
            return self.format
        suffixes = [suffix.lower() for suffix in PurePath(self.path).suffixes]
        if suffixes and suffixes[-1] in COMPRESSIONS:
            suffixes.pop()
        return FORMATS.get(suffixes[-1]) if suffixes else None

    def wanted(self) -> dict[str, tuple[str, ...]]:
        """Return `where` in one shape: column → patterns."""
        return {
            key: (value,) if isinstance(value, str) else tuple(value) for key, value in self.where.items()
        }


Inventory = InventorySpec
"""The name that reads well where a manifest is built in Python."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The manifest's limits; None leaves a limit to the settings."""

    rate_per_s: float | None = None
    share: float | None = None
    burst: int | None = None
    max_in_flight: int | None = None
    attempt_timeout_s: float | None = None
    max_attempts: int | None = None
    patience_s: float | None = None
    token_window_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One intent. Raises `ManifestError`, naming every problem, when it is not a sound one."""

    name: str
    command: Command
    inventory: InventorySpec
    run_key: str | None = None
    description: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    region: str | None = None
    account: str | None = None
    endpoint_url: str | None = None
    system_tags: bool | None = None
    limits: Limits = field(default_factory=Limits)
    source: str | None = None
    """The manifest's path as the operator gave it, for messages."""
    base_dir: Path = field(default_factory=Path)
    """What the inventory's path is relative to."""

    def __post_init__(self) -> None:
        self.check()
        object.__setattr__(self, "command", Command(self.command))
        object.__setattr__(self, "tags", dict(self.tags))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML, JSON or TOML manifest. Raises `ManifestError` with path, line and key."""
        source = str(path)
        tree = read_tree(Path(path), source)
        problems = Problems()
        values = _check_manifest(tree.root, problems)
        problems.raise_any(source, tree.lines)
        values["inventory"] = InventorySpec(**values["inventory"])
        values["limits"] = Limits(**values.get("limits", {}))
        return cls(**values, source=source, base_dir=Path(path).parent)

    def check(self) -> None:
        """Raise `ManifestError` with what is wrong, if anything."""
        problems = Problems()
        _check_manifest(_given(self, leave_out=("source", "base_dir")), problems)
        problems.raise_any(self.source, {})

    def run_id(self, run_key: str | None = None) -> str:
        """Return `name`, or `name@run_key`; a `run_key` given here goes before the manifest's."""
        if run_key is not None and not re.fullmatch(NAME_PATTERN, run_key):
            raise UsageError(f"the run key {shown(run_key)} must be {_NAME_WORDS}")
        key = self.run_key if run_key is None else run_key
        return self.name if key is None else f"{self.name}@{key}"

    def intent(self, run_key: str | None = None) -> dict[str, object]:
        """Return what binds a run to this manifest: never its limits, nor which devices it names."""
        return {
            "run": self.run_id(run_key),
            "command": str(self.command),
            "description": self.description,
            "tags": dict(self.tags),
            "region": self.region,
            "account": self.account,
            "system_tags": self.system_tags is not False,
        }

    def selection(self) -> dict[str, object]:
        """Return what, beside the inventory's bytes, decides which devices are meant."""
        spec = self.inventory
        return {
            "format": spec.resolved_format,
            "id_column": spec.id_column,
            "where": {key: sorted(set(values)) for key, values in spec.wanted().items()},
        }


def sound_inventory(path: str | Path) -> InventorySpec | None:
    """Return the inventory of a manifest that is wrong elsewhere, None where this part is wrong too."""
    problems = Problems()
    try:
        given = read_tree(Path(path), str(path)).root.get("inventory")
    except ManifestError:
        return None
    found = _inventory(given, ("inventory",), problems)
    return None if problems else InventorySpec(**found)


def canonical_json(value: object) -> bytes:
    """Encode a value so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def digest_of(value: object) -> str:
    """Return the hex SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _given(value: object, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a dataclass's fields that hold something, as a file would give them."""
    given: dict[str, Any] = {}
    for item in fields(value):  # type: ignore[arg-type]
        held = getattr(value, item.name)
        if item.name in leave_out or held is None:
            continue
        given[item.name] = _given(held) if isinstance(held, (InventorySpec, Limits)) else held
    return given


# -------------------------------------------------------------------------------------- schema

_NAME_WORDS = "1 to 64 letters, digits, `.`, `_` and `-`, the first a letter or digit"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _check_endpoint(text: str) -> str | None:
    """Say what is wrong without repeating the text: a URL may hold a password."""
    try:
        url = urlsplit(text)
        host, _ = url.hostname, url.port
    except ValueError:
        return "is not a URL"
    if url.scheme not in ("http", "https") or not host or not re.fullmatch(r"[!-~]+", text):
        return "must be a URL like https://host"
    if url.username is not None or url.password is not None:
        return "must not hold credentials"
    if url.query or url.fragment:
        return "must not have a query or fragment"
    if url.scheme == "http" and not is_loopback(host):
        return "plain http is for loopback only, use https"
    return None


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_tag_key(text: str) -> str | None:
    if not 1 <= len(text) <= 128 or _CONTROL.search(text):
        return "a tag's key must be 1 to 128 characters"
    if text.lower().startswith("aws:"):
        return "tag keys starting with aws: belong to the service"
    if text.startswith("dispatcher-"):
        return "tag keys starting with dispatcher- are set by the dispatcher"
    return None


def _check_tag_value(text: str) -> str | None:
    if len(text) > 256 or _CONTROL.search(text):
        return "a tag's value must be 0 to 256 characters"
    return None


_INVENTORY = Section(
    {
        "path": text_rule(not_empty),
        "targets": texts,
        "format": text_rule(one_of(FORMATS.values())),
        "id_column": text_rule(not_empty),
        "where": mapping_of(text_or_texts, not_empty),
    }
)


def _inventory(value: Any, key: KeyPath, problems: Problems) -> dict[str, Any]:
    """Check the inventory's keys, then that they go together."""
    found = _INVENTORY(value, key, problems)
    if not isinstance(value, dict):
        return found
    if ("path" in value) == ("targets" in value):
        both = "path" in value
        problems.add(key, "give path or targets, not both" if both else "give a path, or targets")
        return found
    if "targets" in value:
        for name in ("format", "id_column", "where"):
            if value.get(name):
                problems.add((*key, name), "has no meaning beside targets")
        return found
    spec = InventorySpec(path=found.get("path"), format=found.get("format"))
    if spec.path is not None and "format" not in value and spec.resolved_format is None:
        known = ", ".join(FORMATS.values())
        problems.add(
            (*key, "path"), f"{shown(spec.path)} does not tell its format, give format as one of {known}"
        )
    if spec.resolved_format == "txt":
        for name in ("id_column", "where"):
            if value.get(name):
                problems.add((*key, name), "needs columns, and txt has none")
    return found


LIMITS = Section(
    {
        "rate_per_s": number("more than 0", lambda n: n > 0),
        "share": number("more than 0 and at most 1", lambda n: 0 < n <= 1),
        "burst": number("a whole number of at least 1", lambda n: n >= 1, whole=True),
        "max_in_flight": number("a whole number from 1 to 1024", lambda n: 1 <= n <= 1024, whole=True),
        "attempt_timeout_s": number("0.1 to 300 seconds", lambda n: 0.1 <= n <= 300),
        "max_attempts": number("a whole number from 1 to 100", lambda n: 1 <= n <= 100, whole=True),
        "patience_s": number("0 or more seconds", lambda n: n >= 0),
        "token_window_s": number("0 or more seconds", lambda n: n >= 0),
    }
)

NAME = text_rule(pattern_check(NAME_PATTERN, _NAME_WORDS))
REGION = text_rule(pattern_check(r"[a-z]{2}(-[a-z]+)+-\d+", "a region like us-west-2"))
ENDPOINT = text_rule(_check_endpoint)

_MANIFEST = Section(
    {
        "name": NAME,
        "run_key": NAME,
        "command": text_rule(one_of(Command)),
        "description": text_rule(
            pattern_check(DESCRIPTION_PATTERN, "1 to 128 letters, digits, spaces and any of _ . , ! #")
        ),
        "tags": mapping_of(text_rule(_check_tag_value), _check_tag_key),
        "region": REGION,
        "account": text_rule(pattern_check(r"\d{12}", "the 12 digits of an account")),
        "endpoint_url": ENDPOINT,
        "system_tags": flag,
        "inventory": _inventory,
        "limits": LIMITS,
    },
    required=("name", "command", "inventory"),
    elsewhere={
        **{key: f"inventory.{key}" for key in _INVENTORY.rules},
        **{key: f"limits.{key}" for key in LIMITS.rules},
    },
)


def _check_manifest(root: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    """Check every key of a manifest, then what spans several of them."""
    found = _MANIFEST(root, (), problems)
    ours = 0 if found.get("system_tags") is False else 2
    tags = len(found.get("tags") or ())
    if tags > MAX_TAGS - ours:
        beside = f" beside the {ours} system tags" if ours else ""
        problems.add(("tags",), f"{tags} tags are too many, at most {MAX_TAGS - ours}{beside}")
    return found
