"""Links lead to headings that are there, and the table of dependencies is that of pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WHY = ROOT / "docs" / "architecture.md"


def without_fences(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The anchors that a page's headings get: lower case, punctuation gone, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", without_fences(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_anchors_resolve(path: Path) -> None:
    """A link with an anchor, into this page or another, names one of its headings."""
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", without_fences(path)):
        if "://" not in target:
            assert anchor in anchors((path.parent / target) if target else path), f"{target}#{anchor}"


def test_every_dependency_has_its_reason() -> None:
    """Each dependency is in the table of the architecture with a reason, none is there that is not used."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["project"]["dependencies"]
    wanted = {re.split(r"[^\w.-]", requirement)[0] for requirement in declared}
    section = WHY.read_text(encoding="utf-8").split("## Why these parts\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", section, re.MULTILINE)[1:]
    parts = [part for names, _ in rows for part in names.split(", ")]
    assert sorted(parts) == sorted(wanted)
    assert all(len(reason.split()) > 2 for _, reason in rows)


def test_the_readme_leads_to_the_reasons() -> None:
    """Whoever asks what it is made of finds the table."""
    assert "(docs/architecture.md#why-these-parts)" in (ROOT / "README.md").read_text(encoding="utf-8")
