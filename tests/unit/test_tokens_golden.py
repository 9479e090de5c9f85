"""Client token version 1, pinned for ever: its encoding is written out here by hand.

If one of these fails, runs that are under way would send every batch again under another token. The
algorithm may only change as another version, beside this one.
"""

from __future__ import annotations

import hashlib

import pytest

from dispatcher.checkpoint.base import Plan
from dispatcher.plan import ClientTokens

PLAIN = Plan(
    plan_id="p",
    run="nightly",
    command="reboot",
    region="us-west-2",
    intent_digest="i",
    selection_digest="s",
    inventory_digest="v",
    planned_at=900.0,
)
FULL = Plan(
    plan_id="p",
    run="nightly@2026-11-23",
    generation=12,
    command="unlock",
    description="Unlock all",
    tags={"team": "", "owner": "ops"},
    region="eu-central-1",
    account="123456789012",
    intent_digest="i",
    selection_digest="s",
    inventory_digest="v",
    planned_at=900.0,
)
EMPTY_TEXT = Plan(
    plan_id="p",
    run="r",
    command="reboot",
    description="",
    region="us-west-2",
    account="",
    intent_digest="i",
    selection_digest="s",
    inventory_digest="v",
    planned_at=900.0,
)

VECTORS = [
    (
        PLAIN,
        ["smd-a", "smd-b"],
        (
            b"\x00\x00\x00\x011"  # version
            b"\x00\x00\x00\x07nightly"  # run id
            b"\x00\x00\x00\x010"  # generation
            b"\x00\x00\x00\x09us-west-2"  # region
            b"\x00"  # no account
            b"\x00\x00\x00\x06reboot"  # command
            b"\x00"  # no description
            b"\x00\x00\x00\x00"  # no tags
            b"\x00\x00\x00\x02\x00\x00\x00\x05smd-a\x00\x00\x00\x05smd-b"
        ),  # targets
        "fcf6d718310e3cb77565813b35dc407db8588f0b83b84ed3bbbecea1688ab113",
    ),
    (
        FULL,
        ["smd-é"],
        (
            b"\x00\x00\x00\x011"
            b"\x00\x00\x00\x12nightly@2026-11-23"
            b"\x00\x00\x00\x0212"
            b"\x00\x00\x00\x0ceu-central-1"
            b"\x01\x00\x00\x00\x0c123456789012"
            b"\x00\x00\x00\x06unlock"
            b"\x01\x00\x00\x00\x0aUnlock all"
            b"\x00\x00\x00\x04"  # keys and values, by key
            b"\x00\x00\x00\x05owner\x00\x00\x00\x03ops\x00\x00\x00\x04team\x00\x00\x00\x00"
            b"\x00\x00\x00\x01\x00\x00\x00\x06smd-\xc3\xa9"
        ),  # UTF-8, its length in bytes
        "ec4f2c8c01403ce2ee9cfcf84af79547b47324a56ce4548bce5a6988874013ba",
    ),
    (
        EMPTY_TEXT,
        [f"d{number}" for number in range(10)],
        (
            b"\x00\x00\x00\x011"
            b"\x00\x00\x00\x01r"
            b"\x00\x00\x00\x010"
            b"\x00\x00\x00\x09us-west-2"
            b"\x01\x00\x00\x00\x00"  # present and empty is not absent
            b"\x00\x00\x00\x06reboot"
            b"\x01\x00\x00\x00\x00"
            b"\x00\x00\x00\x00"
            b"\x00\x00\x00\x0a"
            b"\x00\x00\x00\x02d0\x00\x00\x00\x02d1\x00\x00\x00\x02d2\x00\x00\x00\x02d3\x00\x00\x00\x02d4"
            b"\x00\x00\x00\x02d5\x00\x00\x00\x02d6\x00\x00\x00\x02d7\x00\x00\x00\x02d8\x00\x00\x00\x02d9"
        ),
        "685eda96d984d954a3ce1cce674e3ac1933783d9dee83b05a2802ee1caab9c8a",
    ),
]


@pytest.mark.parametrize(("plan", "targets", "encoding", "pinned"), VECTORS)
def test_version_1_never_changes(plan: Plan, targets: list[str], encoding: bytes, pinned: str) -> None:
    """The token is the SHA-256 of the encoding written out above, and the pinned string."""
    token = ClientTokens(plan).of(targets)
    assert token == hashlib.sha256(encoding).hexdigest()
    assert token == pinned


def test_an_unknown_version_is_refused() -> None:
    """A checkpoint of a later algorithm is never sent under this one's tokens."""
    later = Plan(
        plan_id="p",
        run="r",
        token_version=2,
        command="reboot",
        region="us-west-2",
        intent_digest="i",
        selection_digest="s",
        inventory_digest="v",
        planned_at=900.0,
    )
    with pytest.raises(ValueError, match="version 2"):
        ClientTokens(later)
