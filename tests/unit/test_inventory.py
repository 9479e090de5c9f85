"""The inventory: every format it reads, which rows are meant, and its digest."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tempfile
import threading
from pathlib import Path
from typing import IO

import pytest

from dispatcher.errors import CheckpointIo, ManifestError
from dispatcher.inventory import InventoryReport, open_inventory
from dispatcher.inventory_rows import BLOCK_ROWS
from dispatcher.manifest import InventorySpec, digest_of
from dispatcher.spool import SortedSpool

IDS = ["smd-b", "smd-a", "smd-b", "smd-c"]


def read(
    folder: Path, data: str | bytes, name: str = "fleet.csv", *, skip: bool = False, **keys: object
) -> tuple[list[str], InventoryReport]:
    """Write an inventory, read it, and return its ids in order and the report."""
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_spec(folder, InventorySpec(path=name, **keys), skip=skip)  # type: ignore[arg-type]


def read_spec(
    folder: Path, spec: InventorySpec, *, skip: bool = False, stdin: io.BytesIO | None = None
) -> tuple[list[str], InventoryReport]:
    with (
        SortedSpool() as spool,
        open_inventory(spec, base_dir=folder, skip_bad_rows=skip, stdin=stdin) as inventory,
    ):
        report = inventory.read_into(spool)
        return [text for block in spool.sorted_blocks() for text in block], report


GOOD = {
    "csv": ("fleet.csv", "managed_device_id,site\nsmd-b,x\nsmd-a,y\nsmd-b,x\nsmd-c,z\n"),
    "no last line end": ("fleet.csv", "device_id\nsmd-b\nsmd-a\nsmd-b\nsmd-c"),
    "byte order mark": ("fleet.csv", "\ufeffid,site\nsmd-b,\nsmd-a,\nsmd-b,\nsmd-c,\n"),
    "CRLF": ("fleet.csv", "site,id\r\nx,smd-b\r\nx,smd-a\r\nx,smd-b\r\nx,smd-c\r\n"),
    "CR": ("fleet.csv", "site,id\rx,smd-b\rx,smd-a\rx,smd-b\rx,smd-c"),
    "blank lines": ("fleet.csv", "\n\nid,site\n\nsmd-b,x\n,\n  \nsmd-a,y\n\nsmd-b,x\nsmd-c,y\n\n"),
    "outer spaces": ("fleet.csv", 'site , id \nx, smd-b\nx,smd-a \nx,\tsmd-b\nx," smd-c"\n'),
    "quoted": ("fleet.csv", 'id,note\n"smd-b","a, ""b""\nc"\nsmd-a,x\n"smd-b",y\r\nsmd-c,"\r\n"\n'),
    "short rows": ("fleet.csv", "id,site,note\nsmd-b\nsmd-a,x\nsmd-b,x,y\nsmd-c\n"),
    "tsv": ("fleet.tsv", 'site\tid\n"a\tb"\tsmd-b\nx,y\tsmd-a\nx\tsmd-b\nx\tsmd-c\n'),
    "txt": ("fleet.txt", "# the fleet\nsmd-b\n\n  smd-a  # the second\nsmd-b\r\n\t#x\nsmd-c"),
    "txt without comments": ("fleet.txt", "\ufeffsmd-b\nsmd-a\n\nsmd-b\nsmd-c\n"),
    "jsonl": ("fleet.jsonl", '{"id":"smd-b"}\n{"id":"smd-a","n":[1]}\n\n{"id":"smd-b"}\r\n{"id":" smd-c"}'),
    "jsonl of texts": ("fleet.jsonl", '"smd-b"\n"smd-a"\n{"device_id":"smd-b"}\n"smd-c"\n'),
    "receipts": (
        "report.csv",
        "device_id,client_token\nsmd-b,t\n'smd-a,t\nsmd-b,t\nsmd-c,t\n".replace("'smd-a", "smd-a"),
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_every_good_format_gives_its_ids(tmp_path: Path, case: str) -> None:
    """Whatever an inventory looks like, the same devices come out, duplicates kept."""
    name, text = GOOD[case]
    ids, report = read(tmp_path, text, name)
    assert ids == sorted(IDS)
    assert report == InventoryReport(device_rows=4, filtered=0, bad_rows=0, bad_samples=())


@pytest.mark.parametrize("case", GOOD)
def test_a_packed_inventory_is_read_like_a_plain_one(tmp_path: Path, case: str) -> None:
    """Gzip and zstd files, several frames each, give the ids of what they hold."""
    zstandard = pytest.importorskip("zstandard")
    name, text = GOOD[case]
    data = text.encode()
    halves = data[: len(data) // 2], data[len(data) // 2 :]
    assert read(tmp_path, b"".join(map(gzip.compress, halves)), f"{name}.gz")[0] == sorted(IDS)
    frames = b"".join(zstandard.ZstdCompressor().compress(half) for half in halves)
    assert read(tmp_path, frames, f"{name}.zst")[0] == sorted(IDS)


@pytest.mark.parametrize("suffix", ["csv", "txt", "jsonl"])
def test_many_blocks_are_read_like_one(tmp_path: Path, suffix: str) -> None:
    """Rows, lines and CRLFs that lie across a block's end are neither lost nor cut."""
    count = 5 * BLOCK_ROWS
    ids = [f"smd-{number:07d}" for number in range(count)]
    text = {
        "csv": 'id,note\r\n"' + ',"a\r\nb"\r\n"'.join(f'{item}"' for item in ids) + ',"c"\r\n',
        "txt": "\r\n".join(ids),
        "jsonl": "\r\n".join(f'{{"note": "{"x" * 40}", "id": "{item}"}}' for item in ids),
    }[suffix]
    found, report = read(tmp_path, text, f"fleet.{suffix}")
    assert found == ids
    assert report.device_rows == count


# ------------------------------------------------------------------------------ columns and where


def test_the_id_column_is_the_named_one_or_the_first_known(tmp_path: Path) -> None:
    """`id_column` goes first, then managed_device_id, device_id and id."""
    text = "id,device_id,managed_device_id,host\na,b,c,d\n"
    assert read(tmp_path, text)[0] == ["c"]
    assert read(tmp_path, text, id_column="host")[0] == ["d"]
    assert read(tmp_path, '{"id":"a","device_id":"b"}\n', "a.jsonl")[0] == ["b"]
    for name, content in (("a.csv", text), ("a.jsonl", '{"host":"a"}\n')):
        with pytest.raises(
            ManifestError, match=r"has no column 'hots', only .*, did you mean 'host'\?"
        ) as caught:
            read(tmp_path, content, name, id_column="hots")
        assert caught.value.line == 1


WHERE_ROWS = [
    ("a", "pdx1", "01-a"),
    ("b", "pdx2", "01-b"),
    ("c", "sea1", "02"),
    ("d", "[x]", "01-d"),
    ("e", "", "03"),
]
WHERE = [
    ({"site": "pdx1"}, "a"),
    ({"site": ["pdx1", "sea1"]}, "ac"),
    ({"site": "pdx*"}, "ab"),
    ({"site": ["pdx?", "sea[0-3]"]}, "abc"),
    ({"site": ["pdx1", "s*"], "rack": "02"}, "c"),
    ({"site": "[x]"}, "d"),
    ({"site": "PDX*", "rack": "*"}, ""),
    ({"site": ""}, "e"),
    ({"rack": "01*"}, "abd"),
]


@pytest.mark.parametrize(("where", "expected"), WHERE)
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_where_keeps_the_rows_that_match(
    tmp_path: Path, where: dict[str, object], expected: str, *, odd: bool, suffix: str
) -> None:
    """Every column must match one value or glob, in sound blocks and in those with a bad row."""
    if suffix == "csv":
        lines = ["id,site,rack", *(",".join(row) for row in WHERE_ROWS), *(["x,pdx1,01,y"] if odd else [])]
    else:
        lines = [f'{{"id":"{a}","site":"{b}","rack":"{c}"}}' for a, b, c in WHERE_ROWS] + (
            ["7"] if odd else []
        )
    text = "\n".join(lines) + "\n"
    if not expected:
        with pytest.raises(ManifestError, match="names no devices: where leaves out 5 rows"):
            read(tmp_path, text, f"a.{suffix}", skip=True, where=where)
        return
    ids, report = read(tmp_path, text, f"a.{suffix}", skip=True, where=where)
    assert "".join(ids) == expected
    assert (report.device_rows, report.filtered, report.bad_rows) == (len(ids), 5 - len(ids), int(odd))


def test_where_reads_json_values_as_they_are_written(tmp_path: Path) -> None:
    """Flags, numbers and null compare as JSON writes them, a missing key as nothing."""
    text = '{"id":"a","on":true,"n":7}\n{"id":"b","on":false,"n":1.5}\n{"id":"c","on":null}\n'
    assert read(tmp_path, text, "a.jsonl", where={"on": "true"})[0] == ["a"]
    assert read(tmp_path, text, "a.jsonl", where={"n": ["1.5", "7"]})[0] == ["a", "b"]
    assert read(tmp_path, text, "a.jsonl", where={"on": "", "n": ""})[0] == ["c"]


def test_where_on_an_unknown_column_is_refused(tmp_path: Path) -> None:
    """A misspelt column never quietly selects nothing."""
    with pytest.raises(
        ManifestError, match=r"has no column 'stie', only 'id', 'site', did you mean 'site'\?"
    ):
        read(tmp_path, "id,site\na,x\n", where={"stie": "x"})
    with pytest.raises(
        ManifestError, match=r"has no column 'stie', only 'id', 'site', did you mean 'site'\?"
    ):
        read(tmp_path, '{"id":"a","site":"x"}\n', "a.jsonl", where={"stie": "*"})
    with pytest.raises(ManifestError, match="has the column 'site' twice"):
        read(tmp_path, "id,site,site\na,x,y\n", where={"site": "x"})


def test_our_own_receipts_lose_their_apostrophe_and_others_keep_it(tmp_path: Path) -> None:
    """Only under a receipt's header is a leading apostrophe before = + - @ ' taken off, and only one."""
    cells = ["'=a", "'+a", "'-a", "'@a", "''a", "'a", "a"]
    rows = "\n".join(f"{cell},'-x" for cell in cells)
    ours = ["=a", "+a", "-a", "@a", "'a", "'a", "a"]
    assert read(tmp_path, f"device_id,client_token\n{rows}\n")[0] == sorted(ours)
    assert read(tmp_path, f"device_id,client_token\n{rows}\n", where={"client_token": "-x"})[0] == sorted(
        ours
    )
    assert read(tmp_path, f"device_id,client_token\n{rows}\nb c,\n", skip=True)[0] == sorted(ours)
    assert read(tmp_path, f"device_id,token\n{rows}\n")[0] == sorted(cells)


# -------------------------------------------------------------------------- sources and digests


def test_standard_input_is_read_twice(tmp_path: Path) -> None:
    """What can be read only once is copied, so that its digest and its rows agree."""
    data = b"id\nsmd-b\nsmd-a\n"
    spec = InventorySpec(path="-", format="csv")
    with SortedSpool() as spool, open_inventory(spec, base_dir=tmp_path, stdin=io.BytesIO(data)) as inventory:
        assert inventory.digest() == hashlib.sha256(data).hexdigest()
        inventory.read_into(spool)
        assert list(spool.sorted_blocks()) == [["smd-a", "smd-b"]]
        assert inventory.digest() == hashlib.sha256(data).hexdigest()
    with pytest.raises(ManifestError, match=r"^stdin:2: the id 'x y'"):
        read_spec(tmp_path, spec, stdin=io.BytesIO(b"id\nx y\n"))


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    """A named pipe can be read only once, and is copied too."""
    os.mkfifo(tmp_path / "fleet.txt")
    writer = threading.Thread(target=(tmp_path / "fleet.txt").write_text, args=("smd-a\n",))
    writer.start()
    assert read_spec(tmp_path, InventorySpec(path="fleet.txt"))[0] == ["smd-a"]
    writer.join()


def test_the_digest_is_of_the_raw_bytes(tmp_path: Path) -> None:
    """The digest is the packed file's own, and is the same before and after reading."""
    data = gzip.compress(b"id\nsmd-a\n")
    (tmp_path / "a.csv.gz").write_bytes(data)
    for digest_first in (True, False):
        with (
            SortedSpool() as spool,
            open_inventory(InventorySpec(path="a.csv.gz"), base_dir=tmp_path) as inventory,
        ):
            if digest_first:
                inventory.digest()
            inventory.read_into(spool)
            assert inventory.digest() == hashlib.sha256(data).hexdigest()


def test_a_file_that_changes_between_digest_and_reading_is_refused(tmp_path: Path) -> None:
    """A plan is never made from other bytes than those its digest names."""
    path = tmp_path / "a.csv"
    path.write_text("id\nsmd-a\n")
    with SortedSpool() as spool, open_inventory(InventorySpec(path="a.csv"), base_dir=tmp_path) as inventory:
        inventory.digest()
        path.write_text("id\nsmd-b\n")
        with pytest.raises(ManifestError, match="was changed while it was read"):
            inventory.read_into(spool)


def test_inline_targets_are_checked_like_rows(tmp_path: Path) -> None:
    """The manifest's own list has a digest, and its bad items are named by number."""
    spec = InventorySpec(targets=["smd-b", " smd-a "])
    assert read_spec(tmp_path, spec)[0] == ["smd-a", "smd-b"]
    with open_inventory(spec, base_dir=tmp_path) as inventory:
        assert inventory.digest() == digest_of(["smd-b", " smd-a "])
    bad = InventorySpec(targets=["smd-b", "", "x y"])
    with pytest.raises(ManifestError) as caught:
        read_spec(tmp_path, bad)
    assert caught.value.message.startswith("inventory.targets: target 2: has no id; target 3: the id 'x y'")
    ids, report = read_spec(tmp_path, bad, skip=True)
    assert (ids, report.bad_rows) == (["smd-b"], 2)
    with pytest.raises(ManifestError, match=r"inventory\.targets: names no devices: 1 bad row skipped"):
        read_spec(tmp_path, InventorySpec(targets=[""]), skip=True)


def test_what_is_not_there_or_not_a_file_is_refused(tmp_path: Path) -> None:
    """Missing files, folders and devices are named; the full path tells where it was looked for."""
    with pytest.raises(ManifestError, match=r"^gone\.csv: no such file, looked for at /.*gone\.csv$"):
        read_spec(tmp_path, InventorySpec(path="gone.csv"))
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(ManifestError, match="is a folder"):
        read_spec(tmp_path, InventorySpec(path="dir.csv"))
    with pytest.raises(ManifestError, match="is a device"):
        read_spec(tmp_path, InventorySpec(path="/dev/zero", format="txt"))
    with pytest.raises(ManifestError, match="has no known format"):
        read(tmp_path, "x", "fleet.dat")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_while_copying_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input that does not fit is the disk's fault: exit code 4."""

    def full() -> IO[bytes]:
        return Path("/dev/full").open("r+b", buffering=0)

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(
        CheckpointIo, match=r"the copy of stdin in .* cannot be written: No space left"
    ) as caught:
        read_spec(tmp_path, InventorySpec(path="-", format="csv"), stdin=io.BytesIO(b"id\nsmd-a\n"))
    assert caught.value.exit_code == 4
