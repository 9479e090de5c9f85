"""Bytes of whatever origin: a parser makes sense of them or refuses them in one line."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatcher.errors import CheckpointError
from tests.integration.test_damage import NOW, Story
from tests.property.parsers import parse

SOAK = "SOAK" in os.environ
EXAMPLES = 5_000 if SOAK else 60
MOST_BYTES = 24 << 20

SEEDS = {
    "manifest.yaml": b"name: nightly\ncommand: reboot\nregion: us-west-2\ntags: {owner: ops}\n"
    b"inventory:\n  path: fleet.csv\n  where: {site: [a]}\nlimits: {rate_per_s: 10, burst: 1}\n",
    "manifest.toml": b'name = "nightly"\ncommand = "unlock"\n[inventory]\ntargets = ["smd-1", "smd-2"]\n'
    b"[limits]\nburst = 3\n",
    "manifest.json": b'{"name": "nightly", "command": "reboot", "inventory": {"targets": ["smd-1"]}}',
    "inventory.csv": b'managed_device_id,site\nsmd-1,a\n"smd-2","b ""c"""\nsmd-3\n',
    "inventory.csv, filtered": b"id,site\nsmd-1,a\nsmd-2,b\nsmd-3,c\n",
    "inventory.tsv": b"id\tsite\nsmd-1\ta\nsmd-2\tb\n",
    "inventory.jsonl": b'{"id": "smd-1", "site": "a"}\n"smd-2"\n',
    "inventory.txt": b"# fleet\nsmd-1\nsmd-2 # two\n",
    "inventory.csv.gz": gzip.compress(b"id\nsmd-1\nsmd-2\n"),
    "settings": b'region = "us-west-2"\nrate_per_s = 12.5\nmax_in_flight = 8\n[aws]\nprofile = "x"\n',
    "answer": b"ValidationException: the client token was used before",
}
WORDS = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"'", b"\n", b"\r", b"&a [*a, *a]", b"*a",
    b"!!python/object:os.system", b"[" * 400, b"{" * 400, b"1e999", b"-0", b"nan", b"9" * 5_000,
    b"\xed\xa0\x80", b"\\ud800", b"=cmd()", b"\x1b[2J", b"../../etc/passwd", b"<<: *a", b"? ", b": ",
    b"- ", b"\t", b"\xe2\x80\xae", b"2026-11-23", b"0o17", b"null", b"\x1f\x8b",
)  # fmt: skip


@st.composite
def spoilt(draw: st.DrawFn, seed: bytes) -> bytes:
    """Good bytes, with some taken out, doubled, changed or put in."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 4)):
            case 0:
                data[at:at] = draw(st.sampled_from(WORDS))
            case 1:
                del data[at : at + draw(st.integers(1, 20))]
            case 2:
                data[at:at] = data[at : at + draw(st.integers(1, 40))] * draw(st.integers(1, 5))
            case 3:
                data[at : at + 4] = draw(st.binary(max_size=8))
            case _:
                if data:
                    data[min(at, len(data) - 1)] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


def fuzzed(name: str, data: bytes) -> None:
    """Parse within bounds."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o700)
    tracemalloc.start()
    try:
        parse(name, data, folder)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
        shutil.rmtree(folder)


quickly = settings(
    max_examples=EXAMPLES,
    deadline=5_000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("name", sorted(SEEDS))
def test_spoilt_bytes_are_refused_in_one_line(name: str) -> None:
    """No traceback, no hang, no heap of memory, whatever was done to a good file."""

    @quickly
    @given(st.one_of(spoilt(SEEDS[name]), st.binary(max_size=400)))
    def fuzz(data: bytes) -> None:
        fuzzed(name, data)

    fuzz()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A checkpoint and a registry record of a run."""
    story = Story(tmp_path_factory.mktemp("story"), random.Random(1), cuts=False)
    story.state.mkdir(mode=0o700)
    prepared = story.prepare(story.state)
    story._block(prepared)
    prepared.checkpoint.release(now=NOW)
    prepared.close()
    return {
        "checkpoint": (story.state / "fleet.db").read_bytes(),
        "registry": (story.state / "registry" / "fleet.json").read_bytes(),
    }


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("name", ["checkpoint", "registry"])
def test_spoilt_state_is_refused_in_one_line(name: str, stored: dict[str, bytes]) -> None:
    """The run's own files, too, may be anybody's by the time they are read."""

    @quickly
    @given(spoilt(stored[name]))
    def fuzz(data: bytes) -> None:
        fuzzed(name, data)

    fuzz()


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_a_checkpoint_without_sums_is_refused_in_one_line(stored: dict[str, bytes], tmp_path: Path) -> None:
    """A foreign file has no sums that would catch it first: every table may hold anything."""
    noise = random.Random(7)
    good = bytearray(stored["checkpoint"])
    good[20] = 0  # nothing reserved: nothing summed
    assert not isinstance(parse("checkpoint", bytes(good), tmp_path), CheckpointError)
    for _ in range(3_000 if SOAK else 150):
        data = bytearray(good)
        for _ in range(noise.randint(1, 8)):
            data[noise.randrange(100, len(data))] = noise.randrange(256)
        parse("checkpoint", bytes(data), tmp_path)
