"""docs/failures.md and the classifier are one: kinds, facts, verdicts, codes and rehearsals."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from dispatcher.cli import cli
from dispatcher.emulator.faults import Fault
from dispatcher.model import Answer, Created, Kind
from dispatcher.policy.verdict import Verdict, verdict_for
from dispatcher.transport.base import _DENIED_CODES, _EXPIRED_CODES, _POISON_CODES, answer_for

TEXT = (Path(__file__).parents[2] / "docs" / "failures.md").read_text(encoding="utf-8")
COLUMNS = ["kind", "what came back", "task made", "the batch", "sent again", "you"]


def rows(first_heading: str) -> dict[str, list[str]]:
    """The table whose heading row begins so: first cell → the others; a key must not repeat."""
    found: dict[str, list[str]] = {}
    lines = iter(TEXT.splitlines())
    for line in lines:
        if line.startswith(f"| {first_heading} |"):
            next(lines)
            for row in lines:
                if not row.startswith("|"):
                    return found
                key, *cells = (cell.strip() for cell in row.strip("|").split("|"))
                assert key not in found, key
                found[key.strip("`")] = cells
    raise AssertionError(f"no table begins with {first_heading}")


KINDS = rows(" | ".join(COLUMNS))
CODES = rows("kind | codes")
REHEARSALS = rows("kind | `dispatcher emulator` with")


def test_every_kind_of_answer_has_its_row_and_no_other() -> None:
    """In the order of the code, each cell filled."""
    assert list(KINDS) == [kind.value for kind in Kind]
    assert all(len(cells) == len(COLUMNS) - 1 and all(cells) for cells in KINDS.values())


@pytest.mark.parametrize("kind", Kind)
def test_the_page_tells_the_facts_and_the_verdict(kind: Kind) -> None:
    """Whether a task was made, and whether the batch is sent again, is what the policy says."""
    _, made, batch, again, _ = KINDS[kind.value]
    created = kind.created
    assert made == created.value
    verdict = verdict_for(
        Answer(kind=kind), targets=1, tainted=created is Created.UNKNOWN, unknown=1, max_attempts=8
    )
    assert re.split(r"\W", again)[0] == ("yes" if verdict is Verdict.RETRY else "no")
    assert ("in doubt" in batch) is (created is Created.UNKNOWN)
    assert ("parked" in batch) is (verdict is Verdict.PARK)
    assert ("rejected" in batch) is (verdict is Verdict.REJECT)


def test_every_code_is_listed_under_its_kind() -> None:
    """All that the classifier knows by name, and nothing else; each is classified as listed."""
    listed = {kind: {code.strip() for code in cells[0].split(",")} for kind, cells in CODES.items()}
    assert listed == {
        "throttled": {"ThrottlingException"},
        "quota": {"ServiceQuotaExceededException"},
        "poison": _POISON_CODES,
        "denied": _DENIED_CODES,
        "expired": _EXPIRED_CODES,
    }
    for kind, codes in listed.items():
        assert {answer_for(400, code, None).kind for code in codes} == {Kind(kind)}


def test_every_rehearsal_is_one_of_the_emulator() -> None:
    """The flags parse, the faults exist, and the kinds are kinds."""
    emulator = cli.get_command(click.Context(cli), "emulator")
    assert emulator is not None
    for kind, (cell,) in REHEARSALS.items():
        assert Kind(kind).value == kind
        for flags in re.findall(r"`([^`]+)`", cell):
            context = emulator.make_context("emulator", shlex.split(flags))
            for fault in context.params["fault"]:
                assert Fault(str(fault).split("=")[0])
