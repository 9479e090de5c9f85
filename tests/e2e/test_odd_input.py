"""Odd inputs that are good: whatever the format, packing and dialect, the plan has the right devices."""
# ruff: noqa: E501 - a table is read best with a row a line

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

AT_ONCE = 4
HEAD = "name: n\ncommand: reboot\nregion: us-west-2\n"
COUNTS = ("devices", "duplicates", "bad_rows", "filtered", "batches")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Files, a command that plans them, and the counts that it must tell."""

    files: dict[str, str | bytes]
    manifest: str = "m.yaml"
    devices: int
    duplicates: int = 0
    bad_rows: int = 0
    filtered: int = 0
    words: tuple[str, ...] = ()
    stdin: bytes = b""
    links: dict[str, str] = field(default_factory=dict)
    cwd: str = "."
    needs: str = ""
    """A module without which this cannot be read."""

    def counts(self) -> dict[str, int]:
        found = {name: getattr(self, name) for name in COUNTS[:-1]}
        return found | {"batches": -(-self.devices // 10)}


def rows(data: str | bytes, devices: int, *, name: str = "f.csv", more: str = "", **options: Any) -> Case:
    """An inventory below a YAML manifest."""
    text = f"{HEAD}inventory:\n  path: {json.dumps(name)}\n{more}"
    return Case(files={"m.yaml": text, name: data}, devices=devices, **options)


def manifest(text: str, devices: int, *, name: str = "m.yaml", **options: Any) -> Case:
    """A manifest that names its targets, or the three of f.csv."""
    return Case(files={name: text, "f.csv": "id\na\nb\nc\n"}, manifest=name, devices=devices, **options)


def zstd(data: bytes) -> bytes:
    try:
        import zstandard
    except ImportError:
        return b""
    packed: bytes = zstandard.ZstdCompressor().compress(data)
    return packed


SITES = "site,id\npdx1,a\npdx2,b\nsea1,c\n,d\n"
JSONL = '{"id":"a","site":"pdx1","n":7}\n{"site":"sea1","id":"b"}\n{"id":"c","site":null}\n'
LONG = "id\n" + "".join(f"smd-{number}\n" for number in range(25_000))

CASES = {
    # formats
    "csv": rows("id\na\nb\n", 2),
    "tsv": rows("id\tsite\na\tx,y\nb\tz\n", 2, name="f.tsv"),
    "jsonl of objects": rows(JSONL, 3, name="f.jsonl"),
    "jsonl of texts": rows('"a"\n"b"\n', 2, name="f.jsonl"),
    "jsonl of both": rows('{"id":"a"}\n"b"\n', 2, name="f.jsonl"),
    "txt": rows("a\nb # spare\n# none\n\nc#1\n", 3, name="f.txt"),
    "format goes before suffix": rows("id\ta\nx\ty\n", 1, name="f.csv", more="  format: tsv\n"),
    "format without suffix": rows("a\nb\n", 2, name="fleet", more="  format: txt\n"),
    "suffix in capitals": rows("id\na\n", 1, name="F.CSV"),
    "many": rows(LONG, 25_000),
    # packing
    "csv.gz": rows(gzip.compress(b"id\na\nb\n"), 2, name="f.csv.gz"),
    "gz of two members": rows(gzip.compress(b"id\na\n") + gzip.compress(b"b\n"), 2, name="f.csv.gz"),
    "large gz": rows(gzip.compress(LONG.encode()), 25_000, name="f.csv.gz"),
    "jsonl.gz": rows(gzip.compress(JSONL.encode()), 3, name="f.jsonl.gz"),
    "txt.zst": rows(zstd(b"a\nb\n"), 2, name="f.txt.zst", needs="zstandard"),
    "zst of two frames": rows(zstd(b"id\na\n") + zstd(b"b\n"), 2, name="f.csv.zst", needs="zstandard"),
    # dialects
    "byte order mark": rows(b"\xef\xbb\xbfid\na\n", 1),
    "mark in gz": rows(gzip.compress(b"\xef\xbb\xbfid\na\n"), 1, name="f.csv.gz"),
    "CRLF": rows("id,n\r\na,1\r\nb,2\r\n", 2),
    "lone CR": rows("id\ra\rb\r", 2),
    "no final line end": rows("id\na\nb", 2),
    "blank lines": rows("\n\nid\n\na\n\n\nb\n\n", 2),
    "quoted line ends": rows('note,id\n"one\ntwo, ""three""",a\n"x\r\ny",b\n', 2),
    "quoted header": rows('"id","site"\n"a","x"\n', 1),
    "short rows": rows("id,site,note\na\nb,x\n", 2),
    "blanks around": rows(" id , site \n a ,x\n\tb\t,y\n", 2),
    "other letters": rows("id,名前\ngerät-é,x\n💡,y\n", 2),
    "formulas": rows("id\n=cmd|'/c'!A1\n@x\n-1\n", 3),
    "our own report": rows("device_id,client_token,state\n'=a,t,rejected\nb,u,accepted\n", 1, filtered=1, more="  where: {state: rejected}\n"),
    # columns
    "first known column": rows("id,managed_device_id\na,b\n,c\n", 2),
    "id_column": rows("serial,id\na,\nb,\n", 2, more="  id_column: serial\n"),
    "exact": rows(SITES, 1, filtered=3, more="  where: {site: pdx1}\n"),
    "glob": rows(SITES, 2, filtered=2, more='  where: {site: "pdx*"}\n'),
    "list": rows(SITES, 2, filtered=2, more="  where: {site: [pdx1, 'sea?']}\n"),
    "empty cell": rows(SITES, 1, filtered=3, more="  where: {site: ''}\n"),
    "two columns": rows(SITES, 1, filtered=3, more="  where: {site: 'pdx*', id: b}\n"),
    "where of JSON": rows(JSONL, 1, filtered=2, name="f.jsonl", more="  where: {n: '7'}\n"),
    # duplicates and bad rows
    "duplicates": rows("id,site\na,x\nb,x\na,y\na,x\n", 2, duplicates=2),
    "duplicates in blanks": rows("a\n a\na \n", 1, duplicates=2, name="f.txt"),
    "skipped rows": rows("id\na\nb c\nd\n", 2, bad_rows=1, words=("--skip-bad-rows",)),
    # where it comes from
    "stdin": rows(b"", 2, name="-", more="  format: csv\n", stdin=b"id\na\nb"),
    "symbolic link": Case(files={"m.yaml": HEAD + "inventory: {path: l.csv}\n", "f.csv": "id\na\n"}, links={"l.csv": "f.csv"}, devices=1),
    "link to a manifest": Case(files={"real.yaml": HEAD + "inventory: {path: f.csv}\n", "f.csv": "id\na\n"}, links={"m.yaml": "real.yaml"}, devices=1),
    "another folder": rows("id\na\n", 1, cwd="elsewhere", manifest="../m.yaml"),
    "folder below": Case(files={"m.yaml": HEAD + "inventory: {path: elsewhere/../f.csv}\n", "f.csv": "id\na\n"}, devices=1),
    "name with spaces": rows("id\na\n", 1, name="my fleet #1.csv"),
    # manifests
    "targets": manifest(HEAD + "inventory: {targets: [a, b, a]}\n", 2, duplicates=1),
    "JSON": manifest('{"name": "n", "command": "unlock", "inventory": {"targets": ["a"]}}', 1, name="m.json"),
    "TOML": manifest('name = "n"\ncommand = "unlock"\n[inventory]\npath = "f.csv"\n[limits]\nburst = 2\n', 3, name="m.toml"),
    "JSON with a mark": manifest('\ufeff{"name": "n", "command": "unlock", "inventory": {"path": "f.csv"}}', 3, name="m.json"),
    "YAML of JSON": manifest('{"name": "n", "command": "unlock", "inventory": {"targets": ["a"]}}', 1),
    "YAML with CRLF": manifest((HEAD + "inventory:\n  path: f.csv\n").replace("\n", "\r\n"), 3),
    "YAML with a header": manifest(f"%YAML 1.1\n---\n# nightly\n{HEAD}inventory: {{path: f.csv}}\n...\n", 3),
    "yml": manifest(HEAD + "inventory: {path: f.csv}\n", 3, name="m.yml"),
    "words that YAML twists": manifest(f"{HEAD}run_key: 2026-11-23\ntags: {{a: no, b: 0123, c: 1e3}}\ninventory: {{targets: [no, 1, 012]}}\n", 3),
}  # fmt: skip


def planned(folder: Path, case: Case) -> subprocess.CompletedProcess[str]:
    """Make a case's files and plan it, with nothing of AWS's at hand."""
    (folder / "elsewhere").mkdir(parents=True)
    for name, data in case.files.items():
        if name != "-":
            (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    for name, target in case.links.items():
        (folder / name).symlink_to(target)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "DISPATCHER_"))}
    return subprocess.run(
        [sys.executable, "-m", "dispatcher", "plan", case.manifest, "--json", *case.words],
        input=case.stdin.decode(),
        capture_output=True,
        text=True,
        cwd=folder / case.cwd,
        env=env | {"DISPATCHER_STATE_DIR": str(folder / "state")},
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def plans(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, subprocess.CompletedProcess[str]]:
    """Plan every case that was selected, a few at a time."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    selected = {item.callspec.params.get("name") for item in items if hasattr(item, "callspec")}
    root = tmp_path_factory.mktemp("odd")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = {
            name: pool.submit(planned, root / str(number), case)
            for number, (name, case) in enumerate(CASES.items())
            if name in selected
        }
        return {name: job.result() for name, job in jobs.items()}


@pytest.mark.parametrize("name", CASES)
def test_odd_input_is_planned(name: str, plans: dict[str, subprocess.CompletedProcess[str]]) -> None:
    """The devices, and what became of the other rows."""
    case, done = CASES[name], plans[name]
    if case.needs:
        pytest.importorskip(case.needs)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert {key: found[key] for key in COUNTS} == case.counts()


def test_skipped_rows_are_listed(tmp_path: Path) -> None:
    """Each with its line and why, for people and for programs."""
    case = CASES["skipped rows"]
    found = json.loads(planned(tmp_path / "a", case).stdout)
    assert found["bad_samples"] == [[3, "the id 'b c' has white space or a control character"]]
    text = subprocess.run(
        [sys.executable, "-m", "dispatcher", "plan", "m.yaml", "--skip-bad-rows"],
        capture_output=True,
        text=True,
        cwd=tmp_path / "a",
        env=os.environ | {"DISPATCHER_STATE_DIR": str(tmp_path / "state")},
        timeout=60,
        check=True,
    ).stdout
    assert "line 3" in text
    assert "'b c' has white space" in text
