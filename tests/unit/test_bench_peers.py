"""The comparison with other clients: what it writes, and that its contestants send what they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from bench import drawing, stub
from bench.harness import planned_ids
from bench.peers import Result
from bench.peers.building import NotHere, built
from bench.peers.report import table

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
RESULTS = {
    "base": Result(100, [1.0, 2.0, 4.0], [5.0, 5.0, 5.0], [1.0], [2.0], [50.0]),
    "ours": Result(100, [0.1, 0.2, 0.3], [0.5, 0.5, 0.5], [], [], [60.0]),
}


def test_the_table_has_the_fastest_first() -> None:
    """Medians of the repetitions, and how many times the base's."""
    head, _, first, second = table(RESULTS, base="base")
    assert head.startswith("| client | calls per CPU-s | x base |")
    assert first == "| ours | 500 | 10.0 | 2,000 | 200 |  |  | 60 |"
    assert second == "| base | 50 | 1.0 | 20,000 | 20 | 1.0 | 2.0 | 50 |"


@pytest.mark.parametrize(
    "plot",
    [
        drawing.bars("a < b", {"x & y": 3.0, "ours": 30_000.0}, ours="ours"),
        drawing.curves("a < b", {"<plan>": [(10_000, 0.5), (1_000_000, 40.0)], "one": [(10_000, 0.0)]}),
    ],
)
def test_plots_are_well_formed(plot: str) -> None:
    """Names of any kind, values of any size."""
    assert ElementTree.fromstring(plot).tag.endswith("svg")


def test_a_peer_without_its_tools_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotHere, match="cargo is not installed"):
        built("rust")


@pytest.mark.parametrize(
    "how",
    [("sdk", "boto3"), ("sdk", "aiobotocore"), ("ours", "wire"), ("ours", "aiobotocore"), ("ours", "whole")],
)
def test_every_contestant_sends_every_device_once(how: Sequence[str], tmp_path: Path) -> None:
    """The ledger decides: what is compared did the same work."""
    module, name = how
    ids = tmp_path / "ids.txt"
    wanted = planned_ids(300)
    ids.write_text("\n".join(wanted))
    with stub.running() as server:
        command = [sys.executable, "-m", f"bench.peers.{module}", name, server.url, str(ids), "4"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        server.verify(wanted)
