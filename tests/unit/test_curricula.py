"""Curricula over batches, against what was worked out by hand."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

from zslx import RunView, load_intervention
from zslx.text.loader import Ids, Walk


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


def walk_over(scores: list[list[float]], domains: list[int], windows: list[int]) -> Walk:
    """A walk whose windows have these reference losses, by domain, and as text as many different letters."""

    def text(domains: Ids, windows: Ids) -> list[str]:
        letters = [int(scores[d][w]) for d, w in zip(domains, windows, strict=True)]
        return [("abcdefghijklmnopqrstuvwxyz"[:n] * 99)[:99] for n in letters]

    return Walk(
        domains=np.array(domains),
        windows=np.array(windows),
        length=1,
        streams=[np.zeros(1 + len(s), dtype=np.int64) for s in scores],
        counts=np.array([len(s) for s in scores]),
        taken=np.zeros(len(scores), dtype=np.int64),
        read=lambda domains, windows: np.zeros((len(domains), 2), dtype=np.int64),
        text=text,
        reference_losses=lambda domains, windows: np.array(
            [scores[d][w] for d, w in zip(domains, windows, strict=True)]
        ),
    )


SCORES = [[4.0, 1.0, 9.0, 1.0], [26.0, 2.0]]


@pytest.mark.parametrize("name", ["difficulty", "compressibility"])
def test_a_step_draws_from_the_easiest_windows_of_each_domain(name):
    method = load_intervention(name, start=0.5, duration=1.0)
    state: dict = {}
    walk = walk_over(SCORES, [0, 0, 0, 0, 1, 1], [0, 1, 2, 3, 0, 1])
    assert method.windows(RunView(step=1, steps=4), walk, state).tolist() == [1, 1, 3, 3, 1, 1]
    assert [order.tolist() for order in state["order"]] == [[1, 3, 0, 2], [1, 0]]
    third = method.windows(RunView(step=3, steps=4), walk, state)  # c = √(½ · ¾ + ¼) = .79: all but none of 4
    assert third.tolist() == [1, 3, 0, 2, 1, 0]
    assert method.windows(RunView(step=5, steps=4), walk, state) is None and not state


@pytest.mark.parametrize(("step", "competence"), [(1, 0.1), (26, (0.5 * 0.99 + 0.01) ** 0.5), (51, 1.0), (100, 1.0)])
def test_competence_is_the_published_one(step, competence):
    method = load_intervention("difficulty", start=0.1, duration=0.5)
    assert method.competence(RunView(step=step, steps=100)) == pytest.approx(competence, rel=1e-12)


def test_the_placebo_reads_other_windows_as_often():
    scores = [[float(n % 25 + 1) for n in range(100)], [3.0]]
    walk = walk_over(scores, [0] * 100 + [1], [*range(100), 0])
    method, placebo = (load_intervention(name, start=0.2) for name in ("difficulty", "placebo:difficulty"))
    run = RunView(step=1, steps=100)
    true = method.windows(run, walk, {})
    state = placebo.init_state(run, torch.Generator().manual_seed(3))
    found = [placebo.windows(run, walk, state) for _ in range(2)]
    assert (found[0] == found[1]).all() and (found[0] < walk.counts[walk.domains]).all()
    # Each true window is always exchanged for the same other one, so that repetitions remain.
    pairs = set(zip(true[:100].tolist(), found[0][:100].tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 20
    assert {b for _, b in pairs} != {a for a, _ in pairs}


def test_documents_are_cut_by_the_binary_digits_of_their_lengths():
    from interventions.curriculum.dataset_decomposition import cut

    # Documents of 11, 0, 4 and 1 predictions from tokens 0, 12, 13 and 18; what follows has no end and is left out.
    stream = np.array([*[1] * 11, 0, 0, *[1] * 4, 0, 1, 0, 1, 1, 1])
    assert [firsts.tolist() for firsts in cut(stream, [4, 2, 1])] == [[0, 4, 13], [8], [10, 18]]
    assert [firsts.tolist() for firsts in cut(np.array([0, 0]), [1])] == [[]]


def test_every_length_gets_its_steps_and_short_ones_come_first():
    method = load_intervention("dataset_decomposition", lengths=3, odds=100.0, cycles=2)
    state: dict = {"generator": torch.Generator().manual_seed(0)}
    lengths = [method.sequence(RunView(step=t, steps=24, seq_len=16), state) for t in range(1, 25)]
    for half in (lengths[:12], lengths[12:]):
        assert sorted(half) == [4] * 4 + [8] * 4 + [16] * 4
        assert sum(half[:6]) < sum(half[6:])
    assert load_intervention("dataset_decomposition").sizes(12) == [12, 6, 3]


def test_no_sequence_crosses_a_document():
    method = load_intervention("dataset_decomposition", lengths=2)
    stream = np.array([*range(1, 12), 0, *range(1, 10), 0])
    run = RunView(step=1, steps=5, seq_len=4, batch_size=2)
    state: dict = {"generator": torch.Generator().manual_seed(0)}
    for length in (4, 2, 2, 4):
        walk = dataclasses.replace(walk_over([[1.0] * 5], [0, 0], [0, 1]), length=length, streams=[stream])
        domains, firsts = method.windows(run, walk, state)
        assert domains.tolist() == [0] * (8 // length)
        for first in firsts.tolist():
            read = stream[first : first + length + 1]
            assert (np.diff(read[:-1]) == 1).all() and read[-1] in (0, read[-2] + 1)
    longer = dataclasses.replace(walk, streams=[np.array([1, 2, 0])])
    with pytest.raises(ValueError, match=r"data\.seq_len=4"):
        method.windows(run, longer, {"generator": torch.Generator()})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([0], [0]), "must be 2 whole numbers"),
        (([0, 1], [0, 0]), "domains must lie from 0 to 0"),
        (([0, 0], [0, 3]), "must lie in its domain's text"),
        (([0, 0], [0.0, 1.0]), "whole numbers"),
    ],
)
def test_sequences_that_are_not_in_the_text_are_refused(given, message):
    from zslx.intervention.hooks import HOOKS

    walk = dataclasses.replace(walk_over([[1.0] * 2], [0], [0]), length=2, streams=[np.ones(5)])
    method, run = load_intervention("dataset_decomposition"), RunView(seq_len=4)
    with pytest.raises(ValueError, match=message):
        HOOKS["windows"].check(given, method, run, walk)
    found = HOOKS["windows"].check(([0, 0], [0, 2]), method, run, walk)
    assert [part.tolist() for part in found] == [[0, 0], [0, 2]]


def test_no_more_windows_are_ranked_than_the_run_reads():
    walk = walk_over([[float(n) for n in range(1000)]], [0] * 1000, [*range(1000)])
    method, run = load_intervention("difficulty", start=0.5), RunView(step=1, steps=5, batch_size=8)
    state: dict = {"generator": torch.Generator().manual_seed(0)}
    chosen = method.windows(run, walk, state)
    order = state["order"][0].tolist()
    assert len(order) == 40 and order == sorted(set(order))  # scores rise with the window
    assert sorted(set(chosen.tolist())) == order[:20]
