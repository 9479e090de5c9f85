"""Properties of the cut, the fold and the client token."""

from __future__ import annotations

import hashlib
import re

import msgspec
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dispatcher.checkpoint.base import Plan
from dispatcher.model import MAX_TARGETS
from dispatcher.plan import ClientTokens, Fold, cut, halves

IDS = st.text(st.characters(exclude_categories=["Z", "Cc", "Cs"]), min_size=1, max_size=64)
PLAN = Plan(
    plan_id="p",
    run="nightly",
    command="reboot",
    region="us-west-2",
    intent_digest="i",
    selection_digest="s",
    inventory_digest="v",
    planned_at=900.0,
)


@settings(deadline=None)
@given(
    targets=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), min_size=1, max_size=10)
)
@example(targets=["a" * 127, "b" * 128, "c" * 256])
def test_a_client_token_hashes_what_it_says(targets: list[str]) -> None:
    """Each part preceded by its length in bytes, however long or foreign; ASCII has a way of its own."""
    parts = ["1", PLAN.run, "0", PLAN.region, None, PLAN.command, None]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"\0" if part is None else _sized(part))
    digest.update((0).to_bytes(4, "big"))  # no user tags
    digest.update(len(targets).to_bytes(4, "big") + b"".join(map(_sized, targets)))
    assert ClientTokens(PLAN).of(targets) == digest.hexdigest()


def _sized(text: str) -> bytes:
    return len(text.encode()).to_bytes(4, "big") + text.encode()


def chunked(ids: list[str], sizes: list[int]) -> list[list[str]]:
    """Cut a list into blocks of the given sizes, over and over; empty blocks are allowed."""
    blocks: list[list[str]] = []
    start = turn = 0
    while start < len(ids):
        size = sizes[turn % len(sizes)]
        blocks.append(ids[start : start + size])
        start += size
        turn += 1
    return blocks


SIZES = st.lists(st.integers(0, 25), min_size=1, max_size=6).filter(any)


@settings(deadline=None)
@given(devices=st.sets(st.integers(0, 500).map(str), max_size=120), sizes=SIZES, first=st.integers(1, 10**6))
def test_a_cut_is_a_partition(devices: set[str], sizes: list[int], first: int) -> None:
    """Every device is in one batch; batches are sorted, full but the last, and numbered without gaps."""
    ids = sorted(devices)
    batches = list(cut(chunked(ids, sizes), lane=2, wave=3, first=first))
    assert [device for batch in batches for device in batch.targets] == ids
    assert [batch.number for batch in batches] == list(range(first, first + len(batches)))
    assert all(len(batch.targets) == MAX_TARGETS for batch in batches[:-1])
    assert all(1 <= len(batch.targets) <= MAX_TARGETS for batch in batches)
    assert all((batch.lane, batch.wave, batch.parent, batch.fresh) == (2, 3, None, True) for batch in batches)
    assert batches == list(cut([ids], lane=2, wave=3, first=first))


@settings(deadline=None)
@given(devices=st.lists(IDS, max_size=60), order=st.randoms(use_true_random=False), sizes=SIZES)
def test_the_order_of_rows_never_matters(devices: list[str], order: object, sizes: list[int]) -> None:
    """Shuffled and repeated rows give the same batches under the same client tokens."""
    shuffled = [*devices, *devices[:7]]
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    tokens = ClientTokens(PLAN)
    one = list(cut(Fold().distinct([sorted(devices)])))
    two = list(cut(Fold().distinct(chunked(sorted(shuffled), sizes))))
    assert one == two
    assert [tokens.of(batch.targets) for batch in one] == [tokens.of(batch.targets) for batch in two]


@settings(deadline=None)
@given(rows=st.lists(st.sampled_from("abcdefg"), max_size=60), sizes=SIZES)
def test_a_fold_counts_what_it_keeps_and_drops(rows: list[str], sizes: list[int]) -> None:
    """Kept and dropped sum to the rows; what is kept is each id once, wherever the blocks break."""
    fold = Fold()
    blocks = list(fold.distinct(chunked(sorted(rows), sizes)))
    assert [device for block in blocks for device in block] == sorted(set(rows))
    assert all(blocks)
    assert (fold.devices, fold.duplicates) == (len(set(rows)), len(rows) - len(set(rows)))


INTENT = st.fixed_dictionaries(
    {
        "run": st.sampled_from(["a", "a@b", "nightly"]),
        "generation": st.integers(0, 2),
        "region": st.sampled_from(["us-west-2", "eu-west-1"]),
        "account": st.sampled_from([None, "", "123456789012"]),
        "command": st.sampled_from(["reboot", "unlock"]),
        "description": st.sampled_from([None, "", "x"]),
        "tags": st.dictionaries(st.sampled_from(["a", "b", "ab"]), st.sampled_from(["", "b", "c"])),
    }
)
TARGETS = st.lists(st.sampled_from(["a", "b", "ab", "é", "b\u200b"]), min_size=1, max_size=5, unique=True)


@settings(max_examples=300, deadline=None)
@given(intents=st.tuples(INTENT, INTENT), targets=st.tuples(TARGETS, TARGETS))
@example(
    intents=(
        {"run": "a", "region": "r", "command": "reboot", "tags": {"a": "b"}},
        {"run": "a", "region": "r", "command": "reboot", "tags": {"ab": ""}},
    ),
    targets=(["a"], ["a"]),
)
def test_distinct_intents_have_distinct_tokens(
    intents: tuple[dict[str, object], dict[str, object]], targets: tuple[list[str], list[str]]
) -> None:
    """Any field or target that differs gives another token; equal intents give the same."""
    plans = [msgspec.structs.replace(PLAN, **intent) for intent in intents]
    one, two = (ClientTokens(plan).of(sorted(ids)) for plan, ids in zip(plans, targets, strict=True))
    same = plans[0] == plans[1] and sorted(targets[0]) == sorted(targets[1])
    assert (one == two) is same
    for token in (one, two):
        assert re.fullmatch(r"[0-9a-f]{64}", token)
        assert re.fullmatch(r"[!-~]{1,64}", token)


def test_every_field_of_the_intent_changes_the_token() -> None:
    """Each hashed field counts alone, and text never slips from one field into the next."""
    plan = msgspec.structs.replace(PLAN, account="1", description="d", tags={"k": "v"})
    changes: list[dict[str, object]] = [
        {},
        {"run": "nightly2"},
        {"generation": 1},
        {"region": "us-west-1"},
        {"account": None},
        {"account": "2"},
        {"command": "unlock"},
        {"description": None},
        {"description": ""},
        {"tags": {}},
        {"tags": {"kv": ""}},
        {"tags": {"k": "w"}},
        {"run": "nightly1", "generation": 0},
        {"run": "nightly", "region": "us-west-21", "account": None},
    ]
    tokens = [ClientTokens(msgspec.structs.replace(plan, **change)).of(["a"]) for change in changes]
    assert len(set(tokens)) == len(tokens)


def test_what_is_no_intent_leaves_the_token_alone() -> None:
    """Neither instants, digests, endpoint, limits nor system tags are hashed; nor is the order of tags."""
    plan = msgspec.structs.replace(PLAN, tags={"a": "1", "b": "2"})
    token = ClientTokens(plan).of(["a"])
    for change in (
        {"plan_id": "q"},
        {"planned_at": 1.0},
        {"endpoint_url": "http://127.0.0.1:1"},
        {"system_tags": False},
        {"intent_digest": "x", "selection_digest": "y", "inventory_digest": "z"},
        {"rebuilt": True, "bad_rows": 3},
        {"tags": {"b": "2", "a": "1"}},
    ):
        assert ClientTokens(msgspec.structs.replace(plan, **change)).of(["a"]) == token


@given(targets=st.lists(IDS, min_size=2, max_size=10, unique=True))
def test_halves_have_their_own_tokens(targets: list[str]) -> None:
    """A batch and its halves partition its devices and never share a token."""
    whole = tuple(sorted(targets))
    left, right = halves(whole)
    assert left + right == whole
    assert left
    assert right
    assume(left != right)
    tokens = ClientTokens(PLAN)
    assert len({tokens.of(whole), tokens.of(left), tokens.of(right)}) == 3


def calls_to_isolate(targets: tuple[str, ...], bad: str) -> int:
    """Count the calls that halving makes after the first refusal."""
    if bad not in targets or len(targets) == 1:
        return 0
    return 2 + sum(calls_to_isolate(half, bad) for half in halves(targets))


def test_one_bad_device_in_ten_costs_at_most_eight_calls() -> None:
    """The bound that the split promises, for every position of the bad device."""
    targets = tuple("abcdefghij")
    assert max(calls_to_isolate(targets, bad) for bad in targets) == 8
