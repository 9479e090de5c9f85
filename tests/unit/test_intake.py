"""What is wrong with a run's settings, manifest and inventory is told at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.errors import ManifestError, UsageError
from dispatcher.intake import intake

if TYPE_CHECKING:
    from pathlib import Path

SOUND = "name: n\ncommand: reboot\ninventory: {path: f.csv}\n"
BAD = "name: a/b\ncommand: rebot\ninventory: {path: f.csv}\n"
BAD_ROWS = "id\nsmd-a\nb c\nd e\n"


def take(folder: Path, manifest: str, rows: str | None = BAD_ROWS, **flags: Any) -> list[str]:
    """Write the files, take them in, and return the problems, the folder left out of them."""
    (folder / "m.yaml").write_text(manifest)
    if rows is not None:
        (folder / "f.csv").write_text(rows)
    with pytest.raises(UsageError) as caught:
        intake(str(folder / "m.yaml"), flags=flags, environment={})
    assert caught.value.exit_code == 2
    lines = caught.value.problems or (caught.value.message,)
    return [line.replace(f"{folder}/", "") for line in lines]


def places(lines: list[str]) -> list[str]:
    """Return what stands before the words."""
    return [line.partition(": ")[0] for line in lines]


def test_settings_manifest_and_inventory_are_told_together(tmp_path: Path) -> None:
    """Flags first, then the manifest by key, then the inventory by row, with its count and hint."""
    lines = take(tmp_path, BAD, rate_per_s=-1)
    assert places(lines) == ["--rate", "m.yaml:1", "m.yaml:2", "f.csv:3", "f.csv:4", "f.csv"]
    assert lines[-1] == "f.csv: 2 bad rows in all, fix them or pass --skip-bad-rows"


def test_a_sound_manifests_inventory_is_told_beside_bad_flags(tmp_path: Path) -> None:
    """Also where the manifest itself is sound."""
    assert places(take(tmp_path, SOUND, burst=0)) == ["--burst", "f.csv:3", "f.csv:4", "f.csv"]


def test_one_bad_row_keeps_its_hint(tmp_path: Path) -> None:
    """Beside other problems too."""
    lines = take(tmp_path, SOUND, "id\na b\n", burst=0)
    assert places(lines) == ["--burst", "f.csv:2"]
    assert lines[1].endswith("; fix them or pass --skip-bad-rows")


def test_bad_rows_that_are_skipped_are_no_problem(tmp_path: Path) -> None:
    """`--skip-bad-rows` holds while problems are gathered."""
    assert places(take(tmp_path, BAD, skip_bad_rows=True)) == ["m.yaml:1", "m.yaml:2"]


def test_an_inventory_that_is_not_there_is_told_too(tmp_path: Path) -> None:
    """A missing file is one more line."""
    lines = take(tmp_path, SOUND, rows=None, burst=0)
    assert places(lines) == ["--burst", "f.csv"]
    assert "no such file" in lines[1]


def test_an_inventory_section_that_is_wrong_is_told_once(tmp_path: Path) -> None:
    """Nothing is read then."""
    assert places(take(tmp_path, "name: n\ncommand: reboot\ninventory: {path: f.cvs}\n")) == ["m.yaml:3"]


def test_inline_targets_are_told_too(tmp_path: Path) -> None:
    """The manifest's own list is read like a file."""
    lines = take(tmp_path, "name: a/b\ncommand: reboot\ninventory: {targets: [a, b c]}\n")
    assert places(lines) == ["m.yaml:1", "inventory.targets"]


@pytest.mark.parametrize("path", ["f.csv", "-"])
def test_a_stream_is_not_read_for_nothing(tmp_path: Path, path: str) -> None:
    """Standard input and pipes may have no end."""
    os.mkfifo(tmp_path / "f.csv")
    manifest = f"name: n\ncommand: reboot\ninventory: {{path: '{path}', format: csv}}\n"
    lines = take(tmp_path, manifest, rows=None, burst=0)
    assert len(lines) == 1
    assert "--burst: " in lines[0]


def test_a_single_problem_stays_what_it_is(tmp_path: Path) -> None:
    """One problem is one error with file, line and key."""
    (tmp_path / "m.yaml").write_text("name: n\ncommand: rebot\ninventory: {targets: [a]}\n")
    with pytest.raises(ManifestError) as caught:
        intake(str(tmp_path / "m.yaml"), flags={}, environment={})
    assert (caught.value.line, caught.value.key, caught.value.count) == (2, "command", 1)


def test_what_is_sound_is_returned(tmp_path: Path) -> None:
    """Nothing of the inventory is read then: the run does that."""
    (tmp_path / "m.yaml").write_text(SOUND)
    settings, manifest = intake(
        str(tmp_path / "m.yaml"), flags={"burst": 3}, environment={"DISPATCHER_YES": "true"}
    )
    assert (settings.burst, settings.yes, manifest.name) == (3, True, "n")
