"""Whatever bytes stand in manifest and inventory: a plan or a refusal with code 2, and nothing else."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatcher.errors import UsageError
from dispatcher.intake import intake
from dispatcher.preview import Preview, preview

if TYPE_CHECKING:
    from pathlib import Path

MANIFESTS = {
    "m.yaml": b"name: n\ncommand: reboot\ntags: {a: b, 'c': \"d\"}\nlimits: {burst: 2}\n"
    b"inventory:\n  path: f.csv\n  where: {site: [pdx1, 'p*']}\n",
    "m.json": b'{"name":"n","command":"reboot","tags":{"a":"b"},"inventory":{"path":"f.jsonl"}}',
    "m.toml": b'name = "n"\ncommand = "reboot"\n[inventory]\npath = "f.txt.gz"\n[limits]\nburst = 3\n',
}
INVENTORIES = {
    "f.csv": b'id,site,x\nsmd-1,pdx1,"q\n"\nsmd-2,pdx1,\nsmd-1,pdx2,z\n',
    "f.jsonl": b'{"id":"smd-1","x":[1,{"a":null}]}\n"smd-2"\n',
    "f.txt.gz": gzip.compress(b"smd-1 # x\nsmd-2\n"),
}
MARKS = [
    *(b"\0", b"\xff\xfe", b'"', b"'", b"[", b"]", b"{", b"}", b":", b"- ", b"\n", b"\r", b"\t", b",", b";"),
    *(b"&a ", b"*a", b"!!x ", b"? ", b"| ", b"%", b"@", b"`", b"---", b"...", b"<<: ", b"#", b"~", b"null"),
    *(b"\xed\xa0\x80", b"\\ud800", b"\xe2\x80\xa8", b"9" * 5000, b"1e999", b"NaN", b"../", b"[z-a]", b"**"),
]
"""What means something to one of the parsers."""
EDITS = st.lists(
    st.tuples(st.integers(0, 300), st.integers(0, 8), st.sampled_from(MARKS) | st.binary(max_size=3)),
    max_size=5,
)
"""Where, how much is taken away there, and what comes in its place."""


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Return the bytes with every edit made."""
    for at, gone, new in edits:
        at = at % (len(data) + 1)
        data = data[:at] + new + data[at + gone :]
    return data


def outcome_of(path: str, flags: dict[str, Any], environment: dict[str, str]) -> Preview | UsageError:
    """Plan a manifest, or return what refuses it."""
    try:
        asked, manifest = intake(path, flags=flags, environment=environment)
        return preview(manifest, asked.resolve(manifest))
    except UsageError as error:
        return error


@pytest.mark.parametrize(("name", "inventory"), list(zip(MANIFESTS, INVENTORIES, strict=True)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, rows=EDITS, burst=st.none() | st.just(0), skip=st.booleans())
def test_any_bytes_are_planned_or_refused(
    tmp_path: Path,
    name: str,
    inventory: str,
    edits: list[tuple[int, int, bytes]],
    rows: list[tuple[int, int, bytes]],
    *,
    burst: int | None,
    skip: bool,
) -> None:
    """No traceback, one line, code 2; a plan counts at least one device."""
    (tmp_path / name).write_bytes(edited(MANIFESTS[name], edits))
    (tmp_path / inventory).write_bytes(edited(INVENTORIES[inventory], rows))
    flags = {"burst": burst, "skip_bad_rows": skip}
    found = outcome_of(str(tmp_path / name), flags, {"DISPATCHER_STATE_DIR": str(tmp_path / "state")})
    if isinstance(found, UsageError):
        assert found.exit_code == 2
        assert "\n" not in found.one_line()
        assert len(found.problems) in (0, *range(2, 60))
    else:
        assert burst is None
        assert found.devices >= 1
