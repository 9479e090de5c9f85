"""The rules a manifest's schema is made of, and the problems they gather.

A schema is a table from key to rule. A rule turns what was given into the value that is meant, or
notes a problem and gives None, so that one reading tells the operator everything that is wrong.
Values from YAML are `Written`: a rule for numbers or flags reads them; in JSON, TOML and Python the
type itself must be right.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dispatcher.errors import ManifestError, placed
from dispatcher.manifest_text import KeyPath, Written, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Rule = Callable[[Any, KeyPath, "Problems"], Any]
    Check = Callable[[str], str | None]
    """What is wrong with a text, if anything."""


def near_miss(word: str, known: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` for the nearest known word, or nothing: a slip, or a part of it."""
    import difflib  # only a message needs it

    lowered = {name.lower(): name for name in known}
    word = word[:100].lower()
    close = difflib.get_close_matches(word, lowered, n=1)
    close = close or [name for name in lowered if len(word) > 2 and word in name]
    return _meant(lowered[close[0]]) if close else ""


def _meant(word: str) -> str:
    return f", did you mean {word!r}?"


# ------------------------------------------------------------------------------------ problems


class Problems:
    """What is wrong with a manifest, in the order of its keys."""

    SHOWN = 20
    """So many are spelled out; a manifest with more of them was not written by hand."""

    def __init__(self) -> None:
        self._found: list[tuple[KeyPath, str]] = []

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[tuple[KeyPath, str]]:
        return iter(self._found)

    def add(self, key: KeyPath, message: str) -> None:
        self._found.append((key, message))

    @property
    def is_full(self) -> bool:
        """Whether more problems would only be counted."""
        return len(self._found) >= self.SHOWN

    def raise_any(self, source: str | None, lines: Mapping[KeyPath, int]) -> None:
        if not self._found:
            return
        places = [(_line_of(key, lines), ".".join(key) or None) for key, _ in self._found[: self.SHOWN]]
        said = [message for _, message in self._found]
        parts, full = [said[0]], [placed(said[0], source, *places[0])]
        for (line, key), message in zip(places[1:], said[1:], strict=False):
            parts.append(("" if line is None else f"line {line}: ") + placed(message, None, None, key))
            full.append(placed(message, source, line, key))
        if len(said) > self.SHOWN:
            parts.append(f"and {len(said) - self.SHOWN} more")
            full.append(placed(parts[-1], source))
        line, key = places[0]
        raise ManifestError(
            "; ".join(parts),
            path=source,
            line=line,
            key=key,
            problems=full if len(said) > 1 else (),
            count=len(said),
        )


def _line_of(key: KeyPath, lines: Mapping[KeyPath, int]) -> int | None:
    """Return the line of a key, or of the nearest mapping around it that has one."""
    while key and key not in lines:
        key = key[:-1]
    return lines.get(key)


def shown(value: object) -> str:
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --------------------------------------------------------------------------------------- rules

_NUMBER = re.compile(r"[+-]?(\d{1,18}(\.\d{0,18})?|\.\d{1,18})([eE][+-]?\d{1,3})?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
NO_VALUE = "has no value, remove the key or give it one"


def as_text(value: Any) -> tuple[str | None, str]:
    """Return the text, or None and what is wrong."""
    if value is None:
        return None, NO_VALUE
    if not isinstance(value, str):
        return None, f"must be text, not {kind_of(value)}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return None, "is not valid Unicode"
    if "\0" in value:
        return None, "has a NUL character"
    return str(value), ""


def text_rule(check: Check) -> Rule:
    def rule(value: Any, key: KeyPath, problems: Problems) -> str | None:
        text, wrong = as_text(value)
        wrong = wrong if text is None else check(text) or ""
        if wrong:
            problems.add(key, wrong)
            return None
        return text

    return rule


def pattern_check(pattern: str, words: str) -> Check:
    compiled = re.compile(pattern, re.ASCII)
    return lambda text: None if compiled.fullmatch(text) else f"must be {words}, not {shown(text)}"


def one_of(words: Iterable[str]) -> Check:
    known = tuple(map(str, words))
    return lambda text: (
        None if text in known else f"must be {' or '.join(known)}, not {shown(text)}{near_miss(text, known)}"
    )


def not_empty(text: str) -> str | None:
    return None if text.strip() else "must not be empty"


def flag(value: Any, key: KeyPath, problems: Problems) -> bool | None:
    if isinstance(value, Written) and value in ("true", "false"):
        return value == "true"
    if isinstance(value, bool):
        return value
    what = shown(value) if isinstance(value, str) else kind_of(value)
    problems.add(key, NO_VALUE if value is None else f"must be true or false, not {what}")
    return None


def number(words: str, fits: Callable[[float], bool], *, whole: bool = False) -> Rule:
    def rule(value: Any, key: KeyPath, problems: Problems) -> float | None:
        given = _whole_number(value) if whole else _real_number(value)
        if given is None or not fits(given):
            what = kind_of(value) if isinstance(value, (dict, list)) else shown(value)
            problems.add(key, NO_VALUE if value is None else f"must be {words}, not {what}")
            return None
        return given

    return rule


def _whole_number(value: Any) -> int | None:
    if isinstance(value, Written):
        return int(value) if _INTEGER.fullmatch(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _real_number(value: Any) -> float | None:
    if isinstance(value, Written):
        if not _NUMBER.fullmatch(value):
            return None
    elif not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:\s]+):)?(?P<port>\d{1,5})", re.ASCII)


def port_or_address(value: Any, key: KeyPath, problems: Problems) -> str | None:
    """Take `PORT` or `HOST:PORT`, and give the latter: without a host, this machine's own."""
    text, wrong = as_text(str(value) if isinstance(value, int) and not isinstance(value, bool) else value)
    found = _ADDRESS.fullmatch(text or "")
    if text is not None and (found is None or int(found["port"]) > 65_535):
        wrong = f"must be PORT or HOST:PORT, not {shown(text)}"
    if wrong or found is None:
        problems.add(key, wrong)
        return None
    return f"{found['host'] or '127.0.0.1'}:{found['port']}"


def texts(value: Any, key: KeyPath, problems: Problems) -> list[str] | None:
    if not isinstance(value, (list, tuple)):
        problems.add(key, NO_VALUE if value is None else f"must be a list of texts, not {kind_of(value)}")
        return None
    texts: list[str] = []
    for at, item in enumerate(value, 1):
        text, wrong = as_text(item)
        if text is None:
            problems.add(key, f"item {at} {wrong}")
        else:
            texts.append(text)
    if not value:
        problems.add(key, "is an empty list")
    return texts


def text_or_texts(value: Any, key: KeyPath, problems: Problems) -> list[str] | None:
    return texts([value] if isinstance(value, str) else value, key, problems)


def mapping_of(rule: Rule, check_key: Check) -> Rule:
    def mapping(value: Any, key: KeyPath, problems: Problems) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if not isinstance(value, dict):
            problems.add(key, NO_VALUE if value is None else f"must be a mapping, not {kind_of(value)}")
            return found
        for name, item in value.items():
            text, wrong = as_text(name)
            wrong = wrong if text is None else check_key(text) or ""
            if wrong:
                problems.add((*key, shown(name)), wrong)
            else:
                found[str(name)] = rule(item, (*key, str(name)), problems)
        return found

    return mapping


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping with known keys: the table of their rules, and which of them must be there."""

    rules: Mapping[str, Rule]
    required: tuple[str, ...] = ()
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Keys of other sections with their full names, for hints."""

    def __call__(self, value: Any, key: KeyPath, problems: Problems) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if not isinstance(value, dict):
            problems.add(key, NO_VALUE if value is None else f"must be a mapping, not {kind_of(value)}")
            return found
        hints = []
        for name, item in value.items():
            rule = self.rules.get(name)
            if rule is None:
                hints.append(self._hint(name, problems))
                problems.add((*key, str(name)), f"unknown key{hints[-1]}")
            else:
                found[name] = rule(item, (*key, name), problems)
        for name in self.required:
            if name not in value and _meant(name) not in hints:  # one slip is one problem
                problems.add((*key, name), "is missing")
        return found

    def _hint(self, name: str, problems: Problems) -> str:
        if problems.is_full:
            return ""
        if name in self.elsewhere:
            return f", did you mean {self.elsewhere[name]!r}?"
        return near_miss(name, self.rules) or f", known are {', '.join(self.rules)}"
