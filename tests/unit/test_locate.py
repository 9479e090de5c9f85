"""What a word of the command line means: a run, or the path of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dispatcher.checkpoint.registry import Record, Registry
from dispatcher.errors import UsageError
from dispatcher.locate import find_checkpoint
from dispatcher.settings import Resolved, Settings

if TYPE_CHECKING:
    from pathlib import Path


def remember(state_dir: Path, run: str, checkpoint: Path) -> None:
    """Put a run into the registry."""
    Registry(state_dir).put(
        Record(
            run=run,
            checkpoint=str(checkpoint),
            plan_id="p",
            intent_digest="i",
            selection_digest="s",
            inventory_digest="v",
            token_version=1,
            endpoint_url=None,
            region="us-west-2",
            planned_at=900.0,
        )
    )


@pytest.fixture
def settings(tmp_path: Path) -> Resolved:
    """A state folder that knows two runs."""
    for run in ("nightly", "nightly@tonight"):
        (tmp_path / f"{run}.sqlite").touch()
        remember(tmp_path / "state", run, tmp_path / f"{run}.sqlite")
    return Settings(state_dir=tmp_path / "state").resolve()


def test_a_known_run_is_found(settings: Resolved, tmp_path: Path) -> None:
    """By its id, with its key or without."""
    for run in ("nightly", "nightly@tonight"):
        assert find_checkpoint(run, settings) == tmp_path / f"{run}.sqlite"


def test_a_slip_is_told(settings: Resolved) -> None:
    """An unknown run is compared with those that there are."""
    with pytest.raises(UsageError, match=r"no run or checkpoint is called nigthly, did you mean 'nightly'\?"):
        find_checkpoint("nigthly", settings)


@pytest.mark.parametrize("word", ["../x", "a/b", "", "..", "a@b@c", "x" * 5000, "a" * 4000 + "/b.db", "a\0b"])
def test_a_word_that_can_be_no_run_is_not_looked_up(settings: Resolved, word: str) -> None:
    """It never becomes a path in the state folder, nor an error of the system."""
    with pytest.raises(UsageError, match="no run or checkpoint is called") as caught:
        find_checkpoint(word, settings)
    assert len(caught.value.message) < 300


def test_a_damaged_registry_suggests_nothing(settings: Resolved) -> None:
    """A record that cannot be read is no reason to fail differently."""
    (settings.state_dir / "registry" / "nightly.json").write_text("{")
    with pytest.raises(UsageError, match="no run or checkpoint is called other"):
        find_checkpoint("other", settings)
