"""Where a setting comes from, and what holds in the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from dispatcher.errors import UsageError
from dispatcher.manifest import InventorySpec, Limits, Manifest
from dispatcher.manifest_text import Written
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


def test_every_problem_of_every_source_is_told_at_once(tmp_path: Path) -> None:
    """Settings file, environment and flags: one look tells what is to be put right, in that order."""
    config = tmp_path / "s.toml"
    config.write_text("burst = 0\nrat_per_s = 1\n")
    with pytest.raises(UsageError) as caught:
        Settings.layered(
            flags={"rate_per_s": Written("fast"), "limit": 0, "yes": True},
            environment={"DISPATCHER_YES": "1", "DISPATCHER_PATIENCE_S": "-1", "DISPATCHER_BURST": "3"},
            config=config,
        )
    problems = [line.removeprefix(f"{tmp_path}/") for line in caught.value.problems]
    assert [line.partition(": must")[0].partition(": unknown")[0] for line in problems] == [
        "s.toml: burst",
        "s.toml: rat_per_s",
        "DISPATCHER_YES",
        "DISPATCHER_PATIENCE_S",
        "--rate",
        "--limit",
    ]
    assert caught.value.count == 6
    assert caught.value.message.startswith("6 problems: ")


def test_a_flag_in_words_stands_for_a_number() -> None:
    """The command line hands texts on, so that the schema says what is wrong with them."""
    found = Settings.layered(flags={"rate_per_s": Written("2.5"), "burst": Written("3")}, environment={})
    assert (found.rate_per_s, found.burst) == (2.5, 3)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("state_dir", "{here}/file", "file is not a folder"),
        ("state_dir", "{here}/file/below/it", "file is not a folder"),
        ("state_dir", "/dev/null", "/dev/null is not a folder"),
        ("state_dir", "~nobody-at-all/x", "home folder that is not known"),
        ("checkpoint", "{here}/file/c.db", "file is not a folder"),
        ("checkpoint", "~nobody-at-all/c.db", "home folder that is not known"),
        ("checkpoint", "x" * 256, "at most 255 bytes"),
    ],
)
def test_a_place_that_cannot_be_is_named(tmp_path: Path, key: str, value: str, words: str) -> None:
    """The error names who said so, before anything is looked for there."""
    (tmp_path / "file").touch()
    environment = {f"DISPATCHER_{key.upper()}": value.format(here=tmp_path)}
    settings = Settings.layered(flags={}, environment=environment)
    with pytest.raises(UsageError, match=words) as caught:
        settings.resolve()
    assert caught.value.message.startswith(f"DISPATCHER_{key.upper()}: ")


def test_a_place_that_is_not_there_yet_is_fine(tmp_path: Path) -> None:
    """Folders are made when they are needed."""
    found = Settings(state_dir=tmp_path / "a" / "b", checkpoint=tmp_path / "c" / "d.db").resolve()
    assert found.state_dir == tmp_path / "a" / "b"
