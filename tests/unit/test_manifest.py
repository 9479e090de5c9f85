"""The manifest: what is accepted as written, and what a run is bound to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import botocore.loaders
import pytest

from dispatcher.errors import ManifestError, UsageError
from dispatcher.manifest import (
    DESCRIPTION_PATTERN,
    Inventory,
    InventorySpec,
    Limits,
    Manifest,
    canonical_json,
    digest_of,
)
from dispatcher.model import Command

if TYPE_CHECKING:
    from pathlib import Path

FULL = """\
name: nightly-reboot            # a comment
run_key: 2026-11-23
command: reboot
description: Nightly reboot
tags: {owner: ops, ticket: 0123, no: no, "empty": ""}
region: us-gov-west-1
account: 012345678901
endpoint_url: http://127.0.0.1:8080
system_tags: false
inventory:
  path: fleet.csv
  format: csv
  id_column: managed_device_id
  where: {site: [pdx1, sea2], rack: 01*}
limits: {rate_per_s: 10, burst: 10, max_in_flight: 64, attempt_timeout_s: 2.5,
  max_attempts: 8, patience_s: 3.6e3, token_window_s: 600}
"""

BASE = "name: n\ncommand: reboot\ninventory: {targets: [a]}\n"
"""Three lines: a case's own lines begin at line 4."""


def write(folder: Path, text: str | bytes, name: str = "m.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_key_is_read_as_it_is_written(tmp_path: Path) -> None:
    """Dates, octals and booleans stay text where text is meant; numbers and flags are read."""
    path = write(tmp_path, FULL)
    manifest = Manifest.load(path)
    assert manifest == Manifest(
        name="nightly-reboot",
        run_key="2026-11-23",
        command=Command.REBOOT,
        description="Nightly reboot",
        tags={"owner": "ops", "ticket": "0123", "no": "no", "empty": ""},
        region="us-gov-west-1",
        account="012345678901",
        endpoint_url="http://127.0.0.1:8080",
        system_tags=False,
        inventory=InventorySpec(
            path="fleet.csv",
            format="csv",
            id_column="managed_device_id",
            where={"site": ["pdx1", "sea2"], "rack": ["01*"]},
        ),
        limits=Limits(
            rate_per_s=10.0,
            burst=10,
            max_in_flight=64,
            attempt_timeout_s=2.5,
            max_attempts=8,
            patience_s=3600.0,
            token_window_s=600.0,
        ),
        source=str(path),
        base_dir=tmp_path,
    )
    assert type(manifest.name) is str
    assert type(manifest.limits.burst) is int


def test_inline_targets_are_taken_as_written(tmp_path: Path) -> None:
    """No target turns into a number, a boolean, a date or null."""
    text = (
        "name: 1\ncommand: unlock\ninventory:\n  targets: [0123, no, 2026-11-23, 1e3, null, ~, 'q', \"d\"]\n"
    )
    targets = Manifest.load(write(tmp_path, text)).inventory.targets
    assert targets == ("0123", "no", "2026-11-23", "1e3", "null", "~", "q", "d")
    assert {type(target) for target in targets} == {str}


def test_yaml_json_and_toml_give_the_same_manifest(tmp_path: Path) -> None:
    """Three formats, one schema."""
    yaml = write(tmp_path, BASE + "limits: {burst: 3, rate_per_s: 2.5}\nsystem_tags: true\n", "m.yml")
    content = {
        "name": "n",
        "command": "reboot",
        "inventory": {"targets": ["a"]},
        "limits": {"burst": 3, "rate_per_s": 2.5},
        "system_tags": True,
    }
    as_json = write(tmp_path, json.dumps(content), "m.json")
    toml = write(
        tmp_path,
        'name = "n"\ncommand = "reboot"\nsystem_tags = true\n[inventory]\ntargets = ["a"]\n'
        "[limits]\nburst = 3\nrate_per_s = 2.5\n",
        "m.toml",
    )
    first, second, third = (Manifest.load(path) for path in (yaml, as_json, toml))
    assert first.intent() == second.intent() == third.intent()
    assert first.limits == second.limits == third.limits
    assert first.inventory == second.inventory == third.inventory


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbf" + BASE.encode(), BASE.replace("\n", "\r\n"), f"--- \n{BASE}"]
)
def test_a_byte_order_mark_crlf_and_a_document_start_are_fine(tmp_path: Path, text: str | bytes) -> None:
    """What other editors write is read."""
    assert Manifest.load(write(tmp_path, text)).name == "n"


def test_a_manifest_built_in_python_is_checked_the_same_way() -> None:
    """The constructor refuses what a file may not say, naming the key."""
    inventory = Inventory(targets=["smd-1"])
    manifest = Manifest(name="n", command=Command.UNLOCK, inventory=inventory)
    assert manifest.inventory.targets == ("smd-1",)
    with pytest.raises(ManifestError, match=r"limits\.burst: must be a whole number"):
        Manifest(name="n", command=Command.UNLOCK, inventory=inventory, limits=Limits(burst=0))
    with pytest.raises(ManifestError, match="name: must be 1 to 64 letters"):
        Manifest(name="-n", command=Command.UNLOCK, inventory=inventory)
    with pytest.raises(ManifestError, match="not both"):
        Manifest(name="n", command=Command.UNLOCK, inventory=Inventory(path="a.csv", targets=["a"]))
    with pytest.raises(ManifestError, match="must be a list of texts"):
        Manifest(name="n", command=Command.UNLOCK, inventory=Inventory(targets="smd-1"))
    with pytest.raises(ManifestError, match="must be more than 0, not nan"):
        Manifest(
            name="n", command=Command.UNLOCK, inventory=inventory, limits=Limits(rate_per_s=float("nan"))
        )


def test_a_command_given_as_text_becomes_a_command() -> None:
    """Python callers may write the word."""
    manifest = Manifest(name="n", command="reboot", inventory=Inventory(path="a.txt"))  # type: ignore[arg-type]
    assert manifest.command is Command.REBOOT


def test_a_run_id_is_the_name_and_the_key() -> None:
    """A run key makes another run; the flag's goes before the manifest's, and is checked."""
    inventory = Inventory(targets=["a"])
    assert Manifest(name="n", command=Command.REBOOT, inventory=inventory).run_id() == "n"
    keyed = Manifest(name="n", command=Command.REBOOT, inventory=inventory, run_key="k1")
    assert keyed.run_id() == "n@k1"
    assert keyed.run_id("k2") == "n@k2"
    with pytest.raises(UsageError, match="run key 'a b'"):
        keyed.run_id("a b")


def test_the_intent_holds_neither_limits_nor_devices() -> None:
    """What binds a run changes with its words and not with its speed or its fleet."""
    one = Manifest(
        name="n", command=Command.REBOOT, inventory=Inventory(targets=["a"]), tags={"b": "1", "a": "2"}
    )
    two = Manifest(
        name="n",
        command=Command.REBOOT,
        inventory=Inventory(targets=["b"]),
        tags={"a": "2", "b": "1"},
        limits=Limits(burst=2),
        system_tags=True,
    )
    other = Manifest(name="n", command=Command.UNLOCK, inventory=Inventory(targets=["a"]))
    assert digest_of(one.intent()) == digest_of(two.intent())
    assert digest_of(one.intent()) != digest_of(other.intent())
    assert digest_of(one.intent()) != digest_of(one.intent("again"))
    assert canonical_json({"b": 1, "a": "é"}) == b'{"a":"\\u00e9","b":1}'


def test_the_selection_tells_which_rows_are_meant() -> None:
    """The selection is the same however its values are ordered or its file is called."""

    def selection(**keys: object) -> dict[str, object]:
        spec = Inventory(**keys)  # type: ignore[arg-type]
        return Manifest(name="n", command=Command.REBOOT, inventory=spec).selection()

    one = selection(path="a.csv", where={"site": ["b", "a"]})
    assert one == {"format": "csv", "id_column": None, "where": {"site": ["a", "b"]}}
    assert one == selection(path="x/b.CSV.gz", where={"site": ("a", "b", "a")})
    assert one != selection(path="a.tsv", where={"site": ["a", "b"]})
    assert selection(path="a.csv", where={"site": "a"})["where"] == {"site": ["a"]}


def test_the_description_is_the_service_models() -> None:
    """The constant written down here is the one in botocore's model."""
    model = botocore.loaders.Loader().load_service_model("snow-device-management", "service-2")
    shape = model["shapes"]["TaskDescriptionString"]
    assert f"{shape['pattern'].removesuffix('*')}{{{shape['min']},{shape['max']}}}" == DESCRIPTION_PATTERN
