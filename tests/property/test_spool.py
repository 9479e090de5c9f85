"""Properties of the sorting spool."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher import spool as spool_module
from dispatcher.spool import SortedSpool

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=20)


@settings(max_examples=200, deadline=None)
@given(
    blocks=st.lists(st.lists(TEXT | st.sampled_from(["a", "ab", "b"]), max_size=30), max_size=12),
    chunk=st.integers(1, 40),
    merge_bytes=st.integers(1, 400),
)
def test_a_spool_gives_what_sorted_gives(blocks: list[list[str]], chunk: int, merge_bytes: int) -> None:
    """For any strings, chunk and block size, the blocks concatenate to `sorted` of everything."""
    kept = spool_module.MERGE_BYTES, spool_module.MIN_BLOCK_BYTES
    spool_module.MERGE_BYTES, spool_module.MIN_BLOCK_BYTES = merge_bytes, 1
    try:
        with SortedSpool(chunk=chunk) as spool:
            for block in blocks:
                spool.extend(block)
            found = list(spool.sorted_blocks())
    finally:
        spool_module.MERGE_BYTES, spool_module.MIN_BLOCK_BYTES = kept
    assert all(found)
    assert [text for block in found for text in block] == sorted(text for block in blocks for text in block)
