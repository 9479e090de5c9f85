"""docs/library.md and docs/metrics.md: every public name is there, and the programs run as they stand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dispatcher
from tests.e2e.conftest import Emulators, Site, emulate, site

if TYPE_CHECKING:
    pass

__all__ = ["emulate", "site"]

DOCS = Path(__file__).parents[2] / "docs"
LIBRARY = (DOCS / "library.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", LIBRARY, re.DOTALL)


def run_program(text: str, place: Site, url: str, ids: list[str], **limits: Any) -> str:
    """Run a program of the page beside a `reboot.yaml`; return what it printed."""
    content = {"name": "night", "command": "reboot", "region": "us-west-2", "endpoint_url": url}
    manifest = content | {"inventory": {"targets": ids}, "limits": limits}
    (place.folder / "reboot.yaml").write_text(json.dumps(manifest))
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=place.folder,
        env=place.env | {"XDG_STATE_HOME": str(place.folder / "home")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_documented() -> None:
    """In the table of names, as the code spells it."""
    table = LIBRARY[LIBRARY.index("## Names") : LIBRARY.index("## Hooks")]
    assert set(dispatcher.__all__) <= set(re.findall(r"`(\w+)`", table))


def test_the_first_program(site: Site, emulate: Emulators) -> None:
    """It plans, runs, tells events and lists who was rejected."""
    service = emulate(30)
    out = run_program(PROGRAMS[0], site, service.url, [*site.ids(30), "smd-nobody"])
    assert "31 devices in 4 calls" in out
    assert "run ended: exit 1" in out
    assert "smd-nobody ResourceNotFoundException" in out


def test_a_program_stops_a_run_at_rejections_and_resumes(site: Site, emulate: Emulators) -> None:
    """The worked example: a gentle stop in the middle, then every device, once."""
    service = emulate(2000, latency_s=0.02)
    bad = [f"smd-0bad{number}" for number in range(5)]
    out = run_program(PROGRAMS[1], site, service.url, [*site.ids(2000), *bad])
    assert re.search(r"stopped after \d+ rejections: [1-9]\d* pending", out)
    assert out.splitlines()[1:] == ["resumable", "2000 accepted, 5 rejected"]
    assert max(service.tasks_of_devices().values()) == 1
