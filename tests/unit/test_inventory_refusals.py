"""Rows and files an inventory may not hold: each refusal names the file and the line."""

from __future__ import annotations

import gzip
import os
import sys
import unicodedata
from typing import TYPE_CHECKING

import pytest

from dispatcher.errors import ManifestError
from dispatcher.inventory import InventoryReport, open_inventory
from dispatcher.inventory_rows import BLOCK_ROWS, UNSOUND, are_sound, fault_of
from dispatcher.manifest import InventorySpec
from dispatcher.spool import SortedSpool

if TYPE_CHECKING:
    from pathlib import Path


def read(
    folder: Path, data: str | bytes, name: str = "fleet.csv", *, skip: bool = False
) -> tuple[list[str], InventoryReport]:
    """Write an inventory, read it, and return its ids in order and the report."""
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with (
        SortedSpool() as spool,
        open_inventory(InventorySpec(path=name), base_dir=folder, skip_bad_rows=skip) as inventory,
    ):
        report = inventory.read_into(spool)
        return [text for block in spool.sorted_blocks() for text in block], report


# ------------------------------------------------------------------------------------- bad rows

LONG = "x" * 65
BAD_ROWS = {
    "no id": ("a.csv", "id,site\nsmd-a,x\n,y\n", 3, "has no id"),
    "short row without id": ("a.csv", "site,id\nx,smd-a\nx\n", 3, "has no id"),
    "long id": ("a.csv", f"id\n{LONG}\n", 2, "is longer than 64 characters"),
    "inner space": ("a.csv", "id\nsmd a\n", 2, "'smd a' has white space"),
    "no-break space": ("a.csv", "id\nsmd\u00a0a\n", 2, "has white space"),
    "next line": ("a.csv", "id\nsmd\u0085a\n", 2, "has white space or a control"),
    "line separator": ("a.csv", "id\nsmd\u2028a\n", 2, "has white space"),
    "escape": ("a.csv", "id\n\x1b[31msmd\n", 2, "'\\x1b[31msmd' has white space or a control character"),
    "line break in the id": ("a.csv", 'id\n"smd\na"\n', 2, "has white space"),
    "ragged": ("a.csv", "id,site\nsmd-a,x\nsmd-b,y,z\n", 3, "has 3 fields, the header has 2"),
    "after quoted lines": ("a.csv", 'id,n\nsmd-a,"1\n2\r\n3"\n\nsmd b,\n', 6, "has white space"),
    "after CR": ("a.csv", "id,n\rsmd-a,1\rsmd b,\r", 3, "has white space"),
    "tsv": ("a.tsv", "id\tn\nsmd-a\t1\n\t2\n", 3, "has no id"),
    "txt": ("a.txt", "# x\nsmd-a\nsmd b\n", 3, "'smd b' has white space"),
    "json text": ("a.jsonl", '"smd-a"\n"smd b"\n', 2, "has white space"),
    "json without id": ("a.jsonl", '{"id":"smd-a"}\n\n{"di":"smd-b"}\n', 3, "has no id"),
    "json null": ("a.jsonl", '{"id":null}\n', 1, "has no id"),
    "json number as id": ("a.jsonl", '{"id":"a"}\n{"id":12}\n', 2, "the id 12 is not text"),
    "json id twice": ("a.jsonl", '{"id":"a"}\n{"id":"b","id":"c"}\n', 2, "gives 'id' twice"),
    "json list": ("a.jsonl", '{"id":"a"}\n["b"]\n', 2, "must be an object or a text"),
    "json cut off": ("a.jsonl", '{"id":"a"}\n{"id":"b"\n', 2, "is not JSON"),
    "json surrogate": ("a.jsonl", '{"id":"a"}\n{"id":"\\ud800"}\n', 2, "is not JSON"),
    "json escape": ("a.jsonl", '{"id":"a"}\n{"id":"b\\u0000"}\n', 2, "a control character"),
    "json deep": ("a.jsonl", '{"id":"a"}\n' + "[" * 9000 + "\n", 2, "is nested too deep"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_refuses_the_inventory_and_names_its_line(tmp_path: Path, case: str) -> None:
    """A row without a usable id is exit code 2, with the file, the line and what to do."""
    name, text, line, reason = BAD_ROWS[case]
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, text, name)
    error = caught.value
    assert error.exit_code == 2
    assert error.message.startswith(f"{name}:{line}: ")
    assert reason in error.message
    assert error.hint == "fix them or pass --skip-bad-rows"
    assert error.one_line().isprintable()


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_can_be_skipped_and_is_counted(tmp_path: Path, case: str) -> None:
    """With --skip-bad-rows the other devices are read, and the bad row is listed."""
    name, text, line, reason = BAD_ROWS[case]
    more = {"csv": "smd-z\n", "tsv": "smd-z\n", "txt": "smd-z\n", "jsonl": '"smd-z"\n'}[
        name.partition(".")[2]
    ]
    more = "x,smd-z\n" if text.startswith("site,id") else more
    ids, report = read(tmp_path, text + more, name, skip=True)
    assert "smd-z" in ids
    assert report.bad_rows == 1
    assert [row.line for row in report.bad_samples] == [line]
    assert reason in report.bad_samples[0].reason
    assert report.device_rows == len(ids)


def test_many_bad_rows_are_sampled_and_counted(tmp_path: Path) -> None:
    """The refusal shows five lines and the total; the report keeps twenty."""
    text = "id,site\n" + ",x\nsmd-a,x\n" * 3000
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, text)
    message = caught.value.message
    assert message.startswith("fleet.csv:2: has no id; line 4: has no id; ")
    assert message.endswith("line 10: has no id; 3000 bad rows in all")
    ids, report = read(tmp_path, text, skip=True)
    assert len(ids) == 3000
    assert report.bad_rows == 3000
    assert [row.line for row in report.bad_samples] == list(range(2, 42, 2))


def test_lines_stay_right_across_blocks_of_quoted_line_breaks(tmp_path: Path) -> None:
    """A bad row far down is named by its physical line, whatever stood before it."""
    rows = 2 * BLOCK_ROWS + 5
    text = "id,note\n" + 'smd-a,"x\ny"\n' * rows + "bad id,x\n"
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, text)
    assert caught.value.line == 1 + 2 * rows + 1


def test_unsound_characters_are_unicodes() -> None:
    """The pattern is categories Z and Cc and the surrogates, over all of Unicode."""
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        assert (UNSOUND.match(character) is not None) == (category[0] == "Z" or category in ("Cc", "Cs"))


@pytest.mark.parametrize(
    "text", ["smd-a", "é", "💡", "a" * 64, "=cmd|'/c'", "<b>", "../x", "a,b", "\u200b", "\u202e"]
)
def test_any_other_shape_of_id_is_allowed(tmp_path: Path, text: str) -> None:
    """The service documents no format: only white space, control characters and length count."""
    assert fault_of(text) is None
    assert read(tmp_path, f'id\n"{text}"\n')[0] == [text]


def test_a_block_called_sound_has_no_fault() -> None:
    """The quick look at a whole block never passes an id that the slow one refuses."""
    for code in range(sys.maxunicode + 1):
        if UNSOUND.match(chr(code)):
            assert not are_sound(["a", chr(code), "b"])
    assert not are_sound(["a", ""])
    assert not are_sound(["a", "x" * 65])
    assert are_sound(["a", "x" * 64])
    assert are_sound([])


# -------------------------------------------------------------------------------- broken content

BROKEN = {
    "empty": ("a.csv", b"", "a.csv: names no devices", None),
    "header only": ("a.csv", b"id,site\n", "a.csv: names no devices", None),
    "comments only": ("a.txt", b"# none\n", "a.txt: names no devices", None),
    "blank only": ("a.jsonl", b"\n \n", "a.jsonl: names no devices", None),
    "id column missing": ("a.csv", b"host,site\na,b\n", "only 'host', 'site'", 1),
    "id column misspelt": ("a.csv", b"site,devce_id\na,b\n", "did you mean 'device_id'?", 1),
    "semicolons": ("a.csv", b"id;site\na;b\n", "seems to be separated by ';'", 1),
    "tabs": ("a.csv", b"\n\nid\tsite\na\tb\n", "seems to be separated by '\\t'", 3),
    "id column twice": ("a.csv", b"id,site,id\na,b,c\n", "has the column 'id' twice", 1),
    "NUL": ("a.csv", b"id,n\nsmd-a,1\nsmd-b,\0\n", "a.csv:3: has a NUL byte", 3),
    "UTF-16": ("a.csv", "id\nsmd-a\n".encode("utf-16"), "a.csv:1: is UTF-16", 1),
    "UTF-16 without mark": ("a.csv", "id\nsmd-a\n".encode("utf-16-le"), "a.csv:1: has a NUL byte", 1),
    "not UTF-8": ("a.csv", b"id,n\r\nsmd-a,1\r\nsmd-b,\xff\r\n", "a.csv:3: is not UTF-8", 3),
    "not UTF-8 in txt": ("a.txt", b"smd-a\nsmd-\xe9\n", "a.txt:2: is not UTF-8", 2),
    "cut in a character": ("a.csv", b"id\nsmd-a\n\xe2\x82", "a.csv:3: is not UTF-8", 3),
    "open quote": (
        "a.csv",
        b'id,n\nsmd-a,"1\n2"\n"smd-b,2\nsmd-c,3\n',
        "has a quoted field that never ends",
        4,
    ),
    "text after quote": ("a.csv", b'id,n\nsmd-a,1\n"smd-b"x,2\n', "is not CSV", 3),
    "large field": ("a.csv", b"id,n\nsmd-a,1\nsmd-b," + b"x" * 140_000 + b"\n", "larger than 128 KiB", 3),
    "quote over 128 KiB": (
        "a.csv",
        b'id,n\nsmd-a,1\nsmd-b,"' + b"x\n" * 70_000,
        "a quote that never ends",
        3,
    ),
    "endless line": ("a.txt", b"smd-a\n" + b"x" * (3 << 20), "has a line longer than 1 MiB", 2),
    "no gzip": ("a.csv.gz", b"id\nsmd-a\n", "is not a whole gz file", None),
    "gzip cut off": ("a.csv.gz", gzip.compress(b"id\nsmd-a\n" * 99)[:-9], "is not a whole gz file", None),
    "gzip broken": (
        "a.csv.gz",
        gzip.compress(b"id\n", 0)[:10] + b"\xff" * 50,
        "is not a whole gz file",
        None,
    ),
    "gzip and garbage": ("a.csv.gz", gzip.compress(b"id\nsmd-a\n") + b"x", "is not a whole gz file", None),
    "gzip bomb": ("a.txt.gz", gzip.compress(b"x" * (16 << 20)), "has a line longer than 1 MiB", 1),
    "no zstd": ("a.csv.zst", b"id\nsmd-a\n", "is not a whole zst file", None),
    "json no id column": ("a.jsonl", b'\n{"name":"a","devce_id":"b"}\n', "did you mean 'device_id'?", 2),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_content_is_one_clear_refusal(tmp_path: Path, case: str) -> None:
    """Whatever the bytes, the answer is exit code 2 with the file's name, never a traceback."""
    name, data, message, line = BROKEN[case]
    if ".zst" in name:
        pytest.importorskip("zstandard")
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, data, name, skip=True)
    assert caught.value.exit_code == 2
    assert message in caught.value.message
    assert caught.value.message.startswith(name)
    assert caught.value.line == line


def test_a_zstd_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    """A truncated frame is never taken for the end of the fleet."""
    zstandard = pytest.importorskip("zstandard")
    data = zstandard.ZstdCompressor().compress(b"id\n" + os.urandom(3000).hex().encode())
    with pytest.raises(ManifestError, match=r"is not a whole zst file: it ends early"):
        read(tmp_path, data[:-5], "fleet.csv.zst")


def test_zstd_without_its_module_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a zstd module the refusal names it."""
    for module in ("zstandard", "compression.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ManifestError, match="needs the zstandard module") as caught:
        read(tmp_path, b"x", "fleet.csv.zst")
    assert caught.value.hint is not None
