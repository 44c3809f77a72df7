"""Curricula over batches, against what was worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from zslx import RunView, load_intervention


@pytest.mark.parametrize(("size", "steps"), [(16, 100), (5, 7), (16, 1)])
def test_growing_batches_have_the_tokens_of_the_baseline(size, steps):
    method = load_intervention("batch_warmup", start=0.25, duration=0.5)
    counts = [method.batch_size(RunView(step=t, steps=steps, batch_size=size), {}) for t in range(1, steps + 1)]
    assert sum(counts) == size * steps
    assert all(a <= b + 1 for a, b in pairwise(counts))  # but for rounding they grow


def test_batches_grow_linearly_to_the_configured_one():
    method = load_intervention("batch_warmup", start=0.25, duration=0.5, match_tokens=False)
    counts = [method.batch_size(RunView(step=t, steps=8, batch_size=64), {}) for t in range(1, 9)]
    assert counts == [22, 34, 46, 58, 64, 64, 64, 64]  # 64 · (.25 + .75 · (t − ½) / 4)
    plain = load_intervention("batch_warmup", duration=0.0)
    assert plain.batch_size(RunView(step=3, steps=8, batch_size=5), {}) == 5
