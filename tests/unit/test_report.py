"""Receipts: complete, in every format, and inert."""

from __future__ import annotations

import csv
import io
import json

import pytest

from dispatcher.checkpoint.base import Plan
from dispatcher.checkpoint.memory import MemoryCheckpoint
from dispatcher.inventory import open_inventory
from dispatcher.manifest import InventorySpec
from dispatcher.model import DEVICE_CLASSES, BatchState, Lane, Outcome
from dispatcher.plan import ClientTokens, cut
from dispatcher.report import COLUMNS, receipts, render
from dispatcher.spool import SortedSpool

HOSTILE = [
    "=cmd|' /C calc'!A0".replace(" ", "_"),
    "<script>",
    "\u202egnp.exe",
    "@sum",
    "+1",
    "-1",
    "a,b",
    'q"q',
    "'=x",
]


def checkpoint(devices: list[str]) -> MemoryCheckpoint:
    store = MemoryCheckpoint()
    plan = Plan(
        plan_id="p", run="r", command="reboot", region="us-west-2", intent_digest="", selection_digest="",
        inventory_digest="", planned_at=0.0,
    )  # fmt: skip
    store.write_plan(plan, [Lane(index=0, region="us-west-2")], cut([sorted(devices)]))
    store.acquire("t", now=1.0)
    return store


def rendered(store: MemoryCheckpoint, form: str, states: set[str] | None = None) -> str:
    out = io.StringIO()
    render(receipts(store, states=states), form, out.write)
    return out.getvalue()


def test_one_receipt_per_device_whatever_its_state() -> None:
    """Sent, settled, doubtful, planned and cancelled: every device has its row and class."""
    store = checkpoint([f"d{i:02d}" for i in range(45)])
    store.claim(limit=4, max_devices=None, now=2.0)
    store.record([Outcome(1, BatchState.ACCEPTED, 10, 1, 2.0, 3.0, "st-1", "arn:1")], now=3.0)
    store.record([Outcome(2, BatchState.IN_DOUBT, 10, 2, 2.0, 3.0, code="Timeout", message="late")], now=3.0)
    rows = list(receipts(store))
    assert [row.device_id for row in rows] == [f"d{i:02d}" for i in range(45)]
    assert [row.state for row in rows[::10]] == ["accepted", "in_doubt", "in_doubt", "in_doubt", "pending"]
    assert {row.state for row in rows} <= set(DEVICE_CLASSES)
    assert rows[0].task_id == "st-1"
    assert rows[0].client_token == ClientTokens(store.plan()).of([f"d{i:02d}" for i in range(10)])
    assert rows[0].settled_at == "1970-01-01T00:00:03.000Z"
    assert (rows[10].error_code, rows[10].settled_at) == ("Timeout", None)


@pytest.mark.parametrize("form", ["text", "json", "jsonl", "csv"])
def test_every_format_has_every_device(form: str) -> None:
    """All four renderings name all devices."""
    text = rendered(checkpoint(["one", "two"]), form)
    assert "one" in text
    assert "two" in text


def test_json_lines_have_the_contract_fields() -> None:
    """Scripts count on these names, in this order."""
    row = json.loads(rendered(checkpoint(["one"]), "jsonl"))
    assert tuple(row) == COLUMNS == (
        "device_id", "region", "account", "wave", "batch", "client_token", "task_id", "task_arn", "state",
        "error_code", "error_message", "attempts", "first_sent_at", "settled_at",
    )  # fmt: skip


def test_a_csv_report_is_inert_and_an_inventory(tmp_path: object) -> None:
    """Cells that a spreadsheet would run get an apostrophe, which our own reader takes off again."""
    from pathlib import Path

    folder = Path(str(tmp_path))
    devices = [device for device in HOSTILE if "\u202e" not in device]
    text = rendered(checkpoint(devices), "csv")
    for row in csv.reader(io.StringIO(text)):
        assert not row[0].startswith(("=", "+", "-", "@", "\t", "\r"))
    (folder / "again.csv").write_text(text)
    with (
        open_inventory(InventorySpec(path="again.csv"), base_dir=folder) as inventory,
        SortedSpool() as spool,
    ):
        inventory.read_into(spool)
        assert [d for block in spool.sorted_blocks() for d in block] == sorted(devices)


def test_text_reports_escape_what_a_terminal_would_act_on() -> None:
    """Direction overrides and escapes are shown, not obeyed."""
    assert "\u202e" not in rendered(checkpoint(["\u202egnp.exe"]), "text")


def test_states_filter() -> None:
    """`--state` chooses classes."""
    assert rendered(checkpoint(["one"]), "jsonl", {"accepted"}) == ""
