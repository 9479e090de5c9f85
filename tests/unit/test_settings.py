"""Where a setting comes from, and what holds in the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from dispatcher.errors import UsageError
from dispatcher.manifest import InventorySpec, Limits, Manifest
from dispatcher.model import Command
from dispatcher.settings import TOKEN_WINDOW_S, Settings, unknown_variables


def manifest(**limits: float) -> Manifest:
    return Manifest(
        name="n", command=Command.REBOOT, inventory=InventorySpec(targets=["a"]), limits=Limits(**limits)
    )


def test_each_layer_goes_before_the_one_below(tmp_path: Path) -> None:
    """defaults < settings file < manifest < environment < flags, and each origin is told."""
    config = tmp_path / "settings.toml"
    config.write_text("rate_per_s = 1\nburst = 1\nmax_in_flight = 1\nmax_attempts = 1\n")
    settings = Settings.layered(
        flags={"rate_per_s": 4.0, "burst": None},
        environment={"DISPATCHER_RATE_PER_S": "3", "DISPATCHER_BURST": "3", "PATH": "x"},
        config=config,
    )
    found = settings.resolve(manifest(rate_per_s=2, burst=2, max_in_flight=2))
    assert (found.rate_per_s, found.burst, found.max_in_flight, found.max_attempts) == (4.0, 3, 2, 1)
    assert found.origins["rate_per_s"] == "flag"
    assert found.origins["burst"] == "environment DISPATCHER_BURST"
    assert found.origins["max_in_flight"] == "manifest"
    assert found.origins["max_attempts"] == str(config)
    assert found.origins["patience_s"] == "default"


def test_the_token_window_follows_the_command() -> None:
    """A second reboot harms, a second unlock does not."""
    assert Settings().resolve(command=Command.REBOOT).token_window_s == TOKEN_WINDOW_S[Command.REBOOT] == 600
    assert Settings().resolve(command=Command.UNLOCK).token_window_s == 21_600


def test_resume_takes_the_limits_that_the_plan_remembers() -> None:
    """`resume` reads no manifest, but keeps to its limits unless a flag says otherwise."""
    found = Settings(burst=7).resolve(command=Command.REBOOT, stored={"rate_per_s": 55.0, "burst": 5})
    assert (found.rate_per_s, found.burst, found.origins["rate_per_s"]) == (55.0, 7, "stored plan")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DISPATCHER_RATE_PER_S", "fast"),
        ("DISPATCHER_RATE_PER_S", "0"),
        ("DISPATCHER_RATE_PER_S", "nan"),
        ("DISPATCHER_BURST", "1.5"),
        ("DISPATCHER_YES", "perhaps"),
        ("DISPATCHER_ENDPOINT_URL", "http://example.com"),
        ("DISPATCHER_REGION", "Oregon"),
        ("DISPATCHER_RUN_KEY", "../up"),
    ],
)
def test_a_bad_variable_is_named(variable: str, value: str) -> None:
    """The error names the variable, and not its value where that may be a secret."""
    with pytest.raises(UsageError, match=variable):
        Settings.layered(flags={}, environment={variable: value})


@pytest.mark.parametrize("text", ["rate_per_s = 'x'", "rat_per_s = 1", "rate_per_s =", "[limits]\nburst = 1"])
def test_a_bad_settings_file_is_named(tmp_path: Path, text: str) -> None:
    """The error names the file."""
    config = tmp_path / "s.toml"
    config.write_text(text)
    with pytest.raises(UsageError, match=r"s\.toml"):
        Settings.layered(flags={}, environment={}, config=config)


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    """So is one that is not there."""
    with pytest.raises(UsageError, match="nowhere"):
        Settings.layered(flags={}, environment={}, config=tmp_path / "nowhere.toml")


def test_a_misspelt_variable_is_warned_of() -> None:
    """It is no setting, so it cannot be an error; but it is not passed over in silence."""
    (warning,) = unknown_variables({"DISPATCHER_RATE_PERS": "1", "DISPATCHER_YES": "1"})
    assert "DISPATCHER_RATE_PER_S" in warning
