"""Every parser of bytes that may be anybody's, each as one function that a fuzzer can feed.

It may return, or raise a `DispatcherError` of one line; anything else is a bug.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dispatcher.checkpoint.reading import SqliteReader
from dispatcher.checkpoint.registry import Registry
from dispatcher.errors import DispatcherError
from dispatcher.inventory import open_inventory
from dispatcher.manifest import InventorySpec, Manifest
from dispatcher.model import Created
from dispatcher.report import FORMATS, receipts, render
from dispatcher.settings import Settings
from dispatcher.spool import SortedSpool
from dispatcher.transport.base import answer_for

MAX_LINE = 20_000
Parser = Callable[[bytes, Path], object]


def parse(name: str, data: bytes, folder: Path) -> object:
    """Let a parser read `data`; return what it made of it, or its error."""
    try:
        return PARSERS[name](data, folder)
    except DispatcherError as error:
        line = error.one_line()
        assert line.strip(), "an error says something"
        assert "\n" not in line, line
        assert len(line) < MAX_LINE, f"an error of {len(line)} characters"
        return error


def _manifest(suffix: str) -> Parser:
    def read(data: bytes, folder: Path) -> object:
        path = folder / f"fleet{suffix}"
        path.write_bytes(data)
        return Manifest.load(path)

    return read


def _inventory(name: str, **keys: object) -> Parser:
    def read(data: bytes, folder: Path) -> object:
        (folder / name).write_bytes(data)
        spec = InventorySpec(path=name, **keys)  # type: ignore[arg-type]
        with SortedSpool() as spool, open_inventory(spec, base_dir=folder, skip_bad_rows=True) as inventory:
            inventory.digest()
            inventory.read_into(spool)
            return [text for block in spool.sorted_blocks() for text in block]

    return read


def _settings(data: bytes, folder: Path) -> object:
    path = folder / "settings.toml"
    path.write_bytes(data)
    return Settings.layered(config=path, environment={}, flags={}).resolve()


def _registry(data: bytes, folder: Path) -> object:
    where = folder / "registry"
    where.mkdir(mode=0o700, exist_ok=True)
    path = where / "fleet.json"
    path.touch(mode=0o600)
    path.write_bytes(data)
    [*Registry(folder).all()]
    return Registry(folder).get("fleet")


def _checkpoint(data: bytes, folder: Path) -> object:
    path = folder / "fleet.db"
    path.touch(mode=0o600)
    path.write_bytes(data)
    reader = SqliteReader.open(path, read_only=True)
    try:
        found = [reader.plan(), reader.lanes(), reader.standing(), reader.counts(), reader.doubt_kinds(0.0)]
        for form in FORMATS:
            render(receipts(reader), form, lambda _text: None)
        return found
    finally:
        reader.close()


def _answer(data: bytes, _folder: Path) -> object:
    text = data.decode("utf-8", "surrogateescape")
    status, code, message = len(data) % 600, text[: len(text) // 3] or None, text[len(text) // 3 :]
    answer = answer_for(status, code, message, (text[:64],))
    assert answer.created is not Created.YES, "no refusal creates a task"
    assert len(answer.code or "") <= 128
    (answer.message or "").encode()
    return answer


PARSERS: dict[str, Parser] = {
    "manifest.yaml": _manifest(".yaml"),
    "manifest.toml": _manifest(".toml"),
    "manifest.json": _manifest(".json"),
    "inventory.csv": _inventory("fleet.csv"),
    "inventory.csv, filtered": _inventory("fleet.csv", where={"site": ["a*", "b"]}),
    "inventory.tsv": _inventory("fleet.tsv"),
    "inventory.jsonl": _inventory("fleet.jsonl"),
    "inventory.txt": _inventory("fleet.txt"),
    "inventory.csv.gz": _inventory("fleet.csv.gz"),
    "settings": _settings,
    "registry": _registry,
    "checkpoint": _checkpoint,
    "answer": _answer,
}
