"""The first command that a newcomer gives shows what it promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import demo

if TYPE_CHECKING:
    import pytest


def test_make_demo_proves_what_it_shows(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A smaller fleet, planned, killed in mid-run, resumed: receipts and ledger agree, nothing stands out."""
    monkeypatch.setattr(demo, "DEVICES", 6000)
    monkeypatch.setattr(demo, "KILL_AT_TASKS", 150)
    assert demo.main() == 0
    said = capfd.readouterr().out
    assert "$ kill -9 " in said
    assert "devices    6000: 6000 accepted" in said
    assert "PROVEN: every one of 6,000 devices got exactly one task" in said
