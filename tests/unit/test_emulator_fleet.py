"""Fleets: generated ids are numbers in disguise, files are read leniently."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.emulator.fleet import (
    AnyFleet,
    GeneratedFleet,
    ListedFleet,
    fleet_id,
    fleet_index,
    read_ids,
    write_fleet,
)
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


@given(st.integers(0, 2**80 - 1))
def test_an_id_and_its_index_are_two_forms_of_one_number(index: int) -> None:
    """`fleet_index` inverts `fleet_id`."""
    assert fleet_index(fleet_id(index)) == index


def test_ids_never_change() -> None:
    """The first ids are pinned: fleets on disk outlive this code."""
    assert [fleet_id(0), fleet_id(1)] == ["smd-b18v8bacilviq505", "smd-uq4mrpmbrvtk61t2"]


@pytest.mark.parametrize(
    "text", ["", "smd-", "smd-B18V8BACILVIQ505", "smd-+18v8bacilviq50", "smd-b_8v8bacilviq505"]
)
def test_only_the_exact_spelling_is_an_id(text: str) -> None:
    """What int() would also read is not an id."""
    assert fleet_index(text) is None


def test_a_generated_fleet_knows_its_own_and_no_others() -> None:
    """Membership is by index below the count."""
    fleet = GeneratedFleet(3)
    assert [fleet.knows(fleet_id(index)) for index in range(4)] == [True, True, True, False]
    assert not fleet.knows("smd-aaaaaaaaaaaaaaaa")


def test_a_listed_fleet_folds_duplicates() -> None:
    """Each id counts once, at its first place."""
    fleet = ListedFleet(["b", "a", "b"])
    assert (len(fleet), fleet.id_at(0), fleet.index_of("a"), fleet.knows("c")) == (2, "b", 1, False)


def test_any_fleet_takes_ids_of_a_legal_length() -> None:
    """1 to 64 characters exist, others do not."""
    assert [AnyFleet().knows(text) for text in ("", "x", "x" * 64, "x" * 65)] == [False, True, True, False]


def test_a_written_fleet_reads_back(tmp_path: Path) -> None:
    """The CSV has a header and a site column, and names the same devices."""
    path = tmp_path / "fleet.csv"
    write_fleet(path, 3)
    assert path.read_text().splitlines()[0] == "managed_device_id,site"
    assert read_ids(path) == [fleet_id(0), fleet_id(1), fleet_id(2)]


@pytest.mark.parametrize(
    "text",
    ["a\nb\n", "\ufeffa\r\n\r\nb\r\n", "# note\na\n b \n", "site,device_id\nx,a\nx,b\nx\n", '"id"\n"a"\n"b"'],
)
def test_ids_are_read_from_lines_or_a_column(tmp_path: Path, text: str) -> None:
    """Plain lists, comments, byte order marks and CSV columns give the same two ids."""
    path = tmp_path / "ids"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_ids(path) == ["a", "b"]


def test_an_unreadable_file_is_a_usage_error(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(UsageError, match="absent"):
        read_ids(tmp_path / "absent")
