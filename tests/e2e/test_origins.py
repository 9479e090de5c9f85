"""`config show`: every setting, its value, and where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.settings import _SCHEMA

if TYPE_CHECKING:
    from tests.e2e.conftest import Site


def test_every_layer_is_named(site: Site) -> None:
    """Defaults < settings file < manifest < environment < flags; each setting says which one it has."""
    manifest = site.manifest(
        ["smd-a"],
        limits={"rate_per_s": 100, "burst": 7, "max_in_flight": 9, "max_attempts": 3},
        endpoint_url="https://example.com",
    )
    config = site.folder / "my settings.toml"
    config.write_text('rate_per_s = 1\nburst = 1\npatience_s = 60\nprofile = "ops"\nmax_attempts = 4\n')
    site.env |= {"DISPATCHER_MAX_IN_FLIGHT": "5", "DISPATCHER_MAX_ATTEMPTS": "6"}
    words = ("config", "show", "--manifest", manifest, "--config", config, "--max-attempts", "2", "--yes")
    found = site.do(*words, "--json").summary
    assert found.keys() == _SCHEMA.rules.keys()
    expected = {
        "max_attempts": (2, "flag"),
        "yes": (True, "flag"),
        "max_in_flight": (5, "environment DISPATCHER_MAX_IN_FLIGHT"),
        "state_dir": (str(site.state), "environment DISPATCHER_STATE_DIR"),
        "rate_per_s": (100, manifest),
        "burst": (7, manifest),
        "region": ("us-west-2", manifest),
        "endpoint_url": ("https://example.com", manifest),
        "patience_s": (60, str(config)),
        "profile": ("ops", str(config)),
        "token_window_s": (600, "default"),
        "checkpoint": (None, "default"),
        "take_over": (False, "default"),
    }
    assert {name: (found[name]["value"], found[name]["origin"]) for name in expected} == expected
    shown = {line.split()[0]: line for line in site.do(*words).out.splitlines()}
    assert shown.keys() == found.keys()
    for name, row in found.items():
        assert shown[name].endswith(f"  {row['origin']}")
        assert ("-" if row["value"] is None else str(row["value"])) in shown[name]
