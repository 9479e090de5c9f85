"""docs/manifest.md against the schema: every key with its bounds, default and an example; every message."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.errors import ManifestError
from dispatcher.manifest import _INVENTORY, _MANIFEST, FORMATS, LIMITS, Manifest
from dispatcher.manifest_schema import Problems, Section
from dispatcher.settings import _DEFAULTS
from tests.unit.test_docs import ROOT, read, said_by, section, table

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = read("manifest.md")
KEYS = table(section(PAGE, "Keys"))
SECTIONS = {"": _MANIFEST, "inventory": _INVENTORY, "limits": LIMITS}
ALL = [(name, key) for name, keys in SECTIONS.items() for key in keys.rules]
BASE = {"name": "n", "command": "reboot", "inventory": {"targets": ["a"]}}


def yaml_of(name: str, example: str) -> str:
    """A whole manifest around one example."""
    key = example.partition(":")[0]
    given = {"name": "n", "command": "reboot", "inventory": "{targets: [a]}"}
    if name == "inventory":
        given["inventory"] = f"{{{example}}}" if key in ("path", "targets") else f"{{path: f.csv, {example}}}"
    elif name == "limits":
        given["limits"] = f"{{{example}}}"
    else:
        given[key] = example.partition(": ")[2]
    return "".join(f"{key}: {value}\n" for key, value in given.items())


@pytest.mark.parametrize(("name", "key"), ALL)
def test_every_key_has_an_example_that_loads(tmp_path: Path, name: str, key: str) -> None:
    """The last cell of its row, in code marks, is that key with a value."""
    example = KEYS[key][-1].strip("`")
    assert example.startswith(f"{key}: ")
    (tmp_path / "m.yaml").write_text(yaml_of(name, example), encoding="utf-8")
    Manifest.load(tmp_path / "m.yaml")


def said_of(rules: Section, key: str, value: Any) -> list[str]:
    """What the schema says of a value that no key takes."""
    problems = Problems()
    rules({key: value}, (), problems)
    return [words for place, words in problems if place == (key,)]


@pytest.mark.parametrize(("name", "key"), ALL)
def test_every_bound_is_that_of_the_schema(name: str, key: str) -> None:
    """What a value "must be" by the error is what the page says it is."""
    value: Any = -7 if name == "limits" else 7 if key in ("inventory", "limits") else "\x00"
    (said,) = said_of(SECTIONS[name], key, "/" if value == "\x00" else value) or said_of(
        SECTIONS[name], key, 7
    )
    must = said.removeprefix("must be ").partition(", not ")[0].replace("`", "")
    assert must in " ".join(KEYS[key]).replace("`", ""), said


@pytest.mark.parametrize("key", LIMITS.rules)
def test_every_default_of_a_limit_is_documented(key: str) -> None:
    """As it is in docs/settings.md."""
    settings = table(read("settings.md"))
    assert KEYS[key][1] == settings[key][0]
    assert key == "token_window_s" or KEYS[key][1] == f"{_DEFAULTS[key]:g}"


def test_every_format_is_documented() -> None:
    """With its suffix."""
    rows = table(section(PAGE, "Inventory formats"))
    del rows["format"]
    assert {cells[0].strip("`"): form for form, cells in rows.items()} == FORMATS


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_the_other_languages_say_the_same(tmp_path: Path, suffix: str) -> None:
    """The TOML and the JSON example are one manifest."""
    (text,) = re.findall(rf"```{suffix}\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / f"m.{suffix}"
    path.write_text(text, encoding="utf-8")
    loaded = Manifest.load(path)
    assert loaded.intent() == Manifest.load(path).intent()
    assert (loaded.name, loaded.limits.rate_per_s) == ("nightly-reboot", 10)
    assert loaded.inventory.wanted() == {"site": ("pdx1", "sea*")}


def quoted() -> Iterator[str]:
    """Every piece of a message that the tables of errors quote."""
    for row in table(section(PAGE, "Errors")):
        if not row.endswith("the line says"):
            for message in row.split("`, `"):
                yield from (piece.strip() for piece in message.split("...") if piece.strip())


def test_messages_are_quoted_as_they_are() -> None:
    """What the page explains is what the code says."""
    said = "\n".join(text for path in (ROOT / "dispatcher").glob("*.py") for text in said_by(path))
    pieces = list(quoted())
    assert len(pieces) > 40
    assert not [piece for piece in pieces if piece not in said]


def test_the_report_of_several_problems_is_as_shown(tmp_path: Path) -> None:
    """The words of the example's lines are those of the schema."""
    (shown,) = re.findall(r"```\n(error: .*?)```", section(PAGE, "Errors"), re.DOTALL)
    (tmp_path / "nightly.yaml").write_text("name: n\ncommand: rebot\ninventory: {targets: [a]}\n")
    with pytest.raises(ManifestError) as caught:
        Manifest.load(tmp_path / "nightly.yaml")
    assert caught.value.message.replace(f"{tmp_path}/", "") in shown
