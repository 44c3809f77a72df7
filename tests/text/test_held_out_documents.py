"""Which documents are held out: by their text alone, copies together, to the share that is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text.made_text import verse
from zslx.text import heldout_split


def test_a_rank_is_of_the_text_alone_and_copies_share_it() -> None:
    ranks = np.array([heldout_split.rank(verse(i).encode()) for i in range(2000)])
    assert ranks.min() >= 0 and ranks.max() < heldout_split.RANKS
    share = (ranks < heldout_split.RANKS // 4).mean()
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(ranks))
    for i in range(20):
        text = verse(i)
        assert heldout_split.rank(f"\n  {text}  \n".encode()) == ranks[i]
    near = [heldout_split.rank("\n".join([*verse(i).split("\n")[:3], verse(i + 5000, 1)]).encode()) for i in range(500)]
    assert 0.5 < (near == ranks[:500]).mean() < 0.7  # 3 of 5 lines in common


@settings(max_examples=60, deadline=None)
@given(documents=st.lists(st.tuples(st.integers(0, heldout_split.RANKS - 1), st.integers(1, 10**7)), min_size=1))
def test_a_cutoff_keeps_both_sides_and_the_share(documents: list[tuple[int, int]]) -> None:
    sizes = np.zeros(heldout_split.RANKS, dtype=np.int64)
    for rank, size in documents:
        sizes[rank] += size
    low = sizes[: heldout_split.TRAINED]
    if not low.any() or np.count_nonzero(sizes) == 1:
        with pytest.raises(ValueError, match="too few"):
            heldout_split.cutoff(sizes)
        return
    cut = heldout_split.cutoff(sizes)
    held, wanted = int(sizes[:cut].sum()), heldout_split.target(int(sizes.sum()))
    assert cut <= heldout_split.TRAINED and 0 < held < sizes.sum()
    assert held <= 1.25 * wanted or np.count_nonzero(sizes[:cut]) == 1  # more than the share only where one is more
