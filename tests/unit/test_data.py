"""The data order: every window once an epoch, a pure function of seed and counters, the same walk in every arm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zslx.text.corpus import Corpus
from zslx.text.loader import Batch, Loader, heldout
from zslx.text.permutation import ROUNDS, permuted

quick = settings(max_examples=40, deadline=None)


def corpus_of(*lengths: int, heldout: tuple[int, ...] = ()) -> Corpus:
    """Domain d's training stream counts up from 1,000,000 d, so that a token says where it is from."""
    held = heldout or lengths
    return Corpus(
        folder=Path(),
        domains=tuple("abcdefgh"[: len(lengths)]),
        hash="h",
        vocab_size=10**7,
        train=tuple(np.arange(n, dtype=np.uint32) + 10**6 * d for d, n in enumerate(lengths)),
        heldout=tuple(np.arange(n, dtype=np.uint32) + 10**6 * d for d, n in enumerate(held)),
        token_counts=np.zeros(10**7, dtype=np.int64),
    )


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("tokens", "targets", "domains"))


# --------------------------------------------------------------------------------------------- permutation


def order(n: int, seed: int) -> np.ndarray:
    key = np.random.default_rng(seed).integers(2**64, size=ROUNDS, dtype=np.uint64)
    return permuted(np.arange(n), np.full(n, n), np.tile(key, (n, 1)))


@pytest.mark.parametrize("seed", [0, 1])
def test_permutation_is_a_bijection_for_every_small_n(seed: int) -> None:
    for n in [*range(1, 260), 1023, 1024, 1025, 9999]:
        assert sorted(order(n, seed)) == list(range(n)), n


def test_permutation_of_a_huge_range_stays_in_it_and_repeats_nothing() -> None:
    n = 10**12 + 39
    key = np.tile(np.random.default_rng(0).integers(2**64, size=ROUNDS, dtype=np.uint64), (50_000, 1))
    values = permuted(np.arange(50_000), np.full(50_000, n), key)
    assert values.min() >= 0 and values.max() < n and len(set(values.tolist())) == 50_000
    # 50,000 uniform draws: the mean is within 5 standard errors of the middle.
    assert abs(values.mean() / n - 0.5) < 5 * np.sqrt(1 / 12 / 50_000)


@pytest.mark.parametrize("n", [7, 30, 101])
def test_permutation_puts_every_element_everywhere_equally_often(n: int) -> None:
    draws = 200 * n
    keys = np.random.default_rng(n).integers(2**64, size=(draws, ROUNDS), dtype=np.uint64)
    for element in (0, n // 2, n - 1):
        counts = np.bincount(permuted(np.full(draws, element), np.full(draws, n), keys), minlength=n)
        chi2 = ((counts - 200) ** 2 / 200).sum()
        assert abs(chi2 - (n - 1)) < 5 * np.sqrt(2 * (n - 1)), (element, chi2)


def test_permutation_leaves_no_neighbours_together() -> None:
    steps = np.diff(order(10_000, 3))
    assert (np.abs(steps) == 1).mean() < 0.002  # chance: 0.0002


# ------------------------------------------------------------------------------------------------ the walk


@quick
@given(
    lengths=st.lists(st.integers(2, 200), min_size=1, max_size=4),
    seq_len=st.integers(1, 9),
    batch_size=st.integers(1, 13),
    seed=st.integers(0, 2**40),
)
def test_every_window_comes_exactly_once_in_each_epoch(
    lengths: list[int], seq_len: int, batch_size: int, seed: int
) -> None:
    lengths = [max(n, seq_len + 1) for n in lengths]
    corpus = corpus_of(*lengths)
    loader = Loader(corpus, seed=seed, batch_size=batch_size, seq_len=seq_len)
    starts: dict[int, list[int]] = {d: [] for d in range(len(lengths))}
    step = 0
    while min(loader.epochs.values()) < 2:
        step += 1
        batch = loader.batch(step)
        assert batch.tokens.shape == batch.targets.shape == (batch_size, seq_len)
        assert torch.equal(batch.targets, batch.tokens + 1)  # the stream counts up
        for row, d in zip(batch.tokens.tolist(), batch.domains.tolist(), strict=True):
            starts[d].append(row[0] - 10**6 * d)
    for d, found in starts.items():
        windows = (lengths[d] - 1) // seq_len
        taken = int(loader.taken[d])
        assert len(found) == taken
        # A batch is shuffled, so an epoch's border lies within one: whole epochs are counted together.
        whole = taken // windows
        counts = np.bincount(np.array(found) // seq_len, minlength=windows)
        assert len(counts) == windows and counts.sum() == taken
        assert counts.min() >= whole and counts.max() <= whole + 1


def test_one_epoch_of_single_windows_is_exact_and_the_next_is_in_another_order() -> None:
    loader = Loader(corpus_of(641), seed=5, batch_size=1, seq_len=10)
    first, second = ([int(loader.batch(step).tokens[0, 0]) for step in range(1, 65)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(0, 640, 10))
    assert first != second != sorted(second)
    assert loader.epochs == {"a": 2.0}


def test_a_domain_smaller_than_a_batch_is_repeated() -> None:
    loader = Loader(corpus_of(7, 1000), seed=0, batch_size=32, seq_len=3)
    batch = loader.batch(1)
    small = batch.tokens[batch.domains == 0][:, 0].tolist()
    assert sorted(small) == [0] * 8 + [3] * 8
    assert loader.epochs["a"] == 8.0


@quick
@given(seed=st.integers(0, 1000), batch_size=st.integers(1, 7), data=st.data())
def test_mixtures_lengths_and_batch_sizes_walk_each_domain_in_the_same_order(
    seed: int, batch_size: int, data: st.DataObject
) -> None:
    corpus = corpus_of(50, 700, 900)
    single = Loader(corpus, seed=seed, batch_size=1, seq_len=12)
    reference = {
        d: [single.batch(step, mixture=np.eye(3)[d]).tokens[0].tolist() for step in range(1, 51)] for d in range(3)
    }
    loader = Loader(corpus, seed=seed, batch_size=batch_size, seq_len=12)
    for step in range(1, 8):
        shares = data.draw(st.none() | st.lists(st.floats(0.05, 1), min_size=3, max_size=3))
        before = loader.taken.copy()
        batch = loader.batch(step, mixture=shares, seq_len=data.draw(st.sampled_from([1, 2, 3, 4, 6, 12])))
        windows = batch.tokens.reshape(batch_size, 12).tolist()
        domains = batch.domains.reshape(batch_size, -1)[:, 0].tolist()
        for d in range(3):
            mine = [w for w, domain in zip(windows, domains, strict=True) if domain == d]
            assert sorted(mine) == sorted(reference[d][before[d] : loader.taken[d]])


def test_a_domain_is_walked_in_an_order_that_no_other_domain_changes() -> None:
    both, alone = corpus_of(1000, 2000), corpus_of(1000)
    one = Loader(both, seed=3, batch_size=1, seq_len=10)
    two = Loader(alone, seed=3, batch_size=1, seq_len=10)
    for step in range(1, 30):
        assert torch.equal(one.batch(step, mixture=[1, 0]).tokens, two.batch(step).tokens)


def test_seeds_give_different_orders() -> None:
    batches = [Loader(corpus_of(10_000), seed=seed, batch_size=8, seq_len=10).batch(1) for seed in (0, 1)]
    assert not torch.equal(batches[0].tokens, batches[1].tokens)


def test_a_shorter_length_has_the_same_tokens_in_more_sequences() -> None:
    full, short = (Loader(corpus_of(999, 999), seed=1, batch_size=4, seq_len=12) for _ in range(2))
    a, b = full.batch(1), short.batch(1, seq_len=3)
    assert b.tokens.shape == (16, 3)
    assert torch.equal(b.tokens.reshape(4, 12), a.tokens) and torch.equal(b.targets.reshape(4, 12), a.targets)
    assert torch.equal(b.domains, a.domains.repeat_interleave(4))
    assert full.state_dict() == short.state_dict()


# ------------------------------------------------------------------------------------------------- mixture


@quick
@given(shares=st.lists(st.floats(0, 1e6), min_size=4, max_size=4).filter(any), batch_size=st.integers(1, 70))
def test_mixture_counts_sum_to_the_batch_and_are_within_one(shares: list[float], batch_size: int) -> None:
    loader = Loader(corpus_of(99, 99, 99, 99), seed=0, batch_size=batch_size, seq_len=2)
    counts = np.bincount(loader.batch(1, mixture=shares).domains, minlength=4)
    expected = np.array(shares) / sum(shares) * batch_size
    assert counts.sum() == batch_size
    assert (np.abs(counts - expected) < 1 + 1e-6).all()
    assert not counts[np.array(shares) == 0].any()


def test_mixture_counts_average_to_the_shares() -> None:
    loader = Loader(corpus_of(99, 99, 99), seed=0, batch_size=5, seq_len=2)
    shares, steps = np.array([0.7, 0.29, 0.01]), 4000
    counts = sum(np.bincount(loader.batch(s, mixture=shares).domains, minlength=3) for s in range(1, steps + 1))
    # A count lies between two neighbouring integers: its variance is at most 1/4.
    assert np.abs(counts / steps - 5 * shares).max() < 5 * np.sqrt(0.25 / steps)


@pytest.mark.parametrize("domains, batch_size", [(4, 16), (4, 10), (3, 1), (7, 5)])
def test_the_default_is_balanced_exactly(domains: int, batch_size: int) -> None:
    loader = Loader(corpus_of(*[99] * domains), seed=0, batch_size=batch_size, seq_len=2)
    for step in range(1, domains + 1):
        loader.batch(step)
        assert loader.taken.max() - loader.taken.min() <= 1
    assert (loader.taken == batch_size).all()


def test_slots_of_a_batch_are_shuffled() -> None:
    loader = Loader(corpus_of(999, 999), seed=0, batch_size=8, seq_len=2)
    assert len({tuple(loader.batch(step).domains.tolist()) for step in range(1, 20)}) > 10


@pytest.mark.parametrize("shares", [[1, 1], [1, 1, -1], [0, 0, 0], [1, 1, float("nan")], [1, 1, float("inf")]])
def test_a_wrong_mixture_is_refused_and_moves_nothing(shares: list[float]) -> None:
    loader = Loader(corpus_of(99, 99, 99), seed=0, batch_size=5, seq_len=2)
    with pytest.raises(ValueError, match="mixture="):
        loader.batch(1, mixture=shares)
    assert not loader.taken.any()


# -------------------------------------------------------------------------------------------------- resume


@quick
@given(
    batch_size=st.integers(1, 9),
    seq_len=st.sampled_from([1, 2, 6]),
    stop=st.integers(0, 12),
    mixtures=st.lists(
        st.one_of(st.none(), st.lists(st.floats(0.01, 1), min_size=2, max_size=2)), min_size=16, max_size=16
    ),
)
def test_resume_gives_the_batches_of_a_run_that_never_stopped(
    batch_size: int, seq_len: int, stop: int, mixtures: list[list[float] | None]
) -> None:
    corpus = corpus_of(61, 97)  # so small that epochs end on the way

    def run(loader: Loader, first: int, last: int) -> list[Batch]:
        return [
            loader.batch(step, mixture=mixtures[step - 1], seq_len=seq_len if step % 2 else None)
            for step in range(first, last + 1)
        ]

    whole = Loader(corpus, seed=9, batch_size=batch_size, seq_len=6)
    expected = run(whole, 1, 16)
    before = Loader(corpus, seed=9, batch_size=batch_size, seq_len=6)
    run(before, 1, stop)
    after = Loader(corpus, seed=9, batch_size=batch_size, seq_len=6)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert all(same(a, b) for a, b in zip(run(after, stop + 1, 16), expected[stop:], strict=True))
    assert after.state_dict() == whole.state_dict()


@pytest.mark.parametrize("changed", [{"seed": 2}, {"seq_len": 5}, {"corpus": "another"}])
def test_a_place_in_another_walk_is_refused(changed: dict) -> None:
    loader = Loader(corpus_of(99), seed=1, batch_size=2, seq_len=3)
    with pytest.raises(ValueError, match=f"saved for {next(iter(changed))}="):
        loader.load_state_dict(loader.state_dict() | changed)


# ------------------------------------------------------------------------------------------------- refusal


def test_errors_name_the_domain_and_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"seq_len=8: the domain 'b' has 8 training tokens.* the 9 that one"):
        Loader(corpus_of(99, 8), seed=0, batch_size=1, seq_len=8)
    loader = Loader(corpus_of(99, 99), seed=0, batch_size=1, seq_len=8)
    for length in (0, 3, 16, -8):
        with pytest.raises(ValueError, match=r"allowed are the divisors of data.seq_len, \[1, 2, 4, 8\]"):
            loader.batch(1, seq_len=length)
    with pytest.raises(ValueError, match="batch_size=0"):
        Loader(corpus_of(99), seed=0, batch_size=0, seq_len=8)


# ------------------------------------------------------------------------------------------------ held-out


def test_heldout_is_balanced_evenly_spread_and_without_overlap() -> None:
    corpus = corpus_of(50, 50, 50, heldout=(1001, 501, 97))
    batch = heldout(corpus, sequences=32, seq_len=4)
    assert torch.equal(batch.targets, batch.tokens + 1)
    assert np.bincount(batch.domains).tolist() == [11, 11, 10]
    for d, length in enumerate((1001, 501, 97)):
        starts = np.sort(batch.tokens[batch.domains == d][:, 0].numpy() - 10**6 * d)
        gaps = np.diff(starts)
        assert gaps.min() >= 4 and gaps.max() - gaps.min() <= 4  # even to one window
        assert starts[0] <= gaps.max() and length - starts[-1] <= gaps.max() + 4


def test_heldout_takes_every_window_where_just_enough_are_there() -> None:
    batch = heldout(corpus_of(9, heldout=(41,)), sequences=10, seq_len=4)
    assert sorted(batch.tokens[:, 0].tolist()) == list(range(0, 40, 4))
    with pytest.raises(ValueError, match=r"data\.heldout_sequences=11: .* from 1 .* to 10; .*seq_len=4 .*: a 10$"):
        heldout(corpus_of(9, heldout=(41,)), sequences=11, seq_len=4)
    with pytest.raises(ValueError, match=r"data\.seq_len=4: the domain 'a' has 4 held-out tokens, fewer than"):
        heldout(corpus_of(9, heldout=(4,)), sequences=1, seq_len=4)
    two = corpus_of(50, 50, heldout=(41, 13))  # 10 and 3 windows
    assert len(heldout(two, sequences=7, seq_len=4).tokens) == 7
    for sequences in (1, 8):
        with pytest.raises(ValueError, match=rf"data\.heldout_sequences={sequences}: .* from 2 .* to 7; .*a 10, b 3$"):
            heldout(two, sequences=sequences, seq_len=4)


def test_a_batch_moves_as_a_whole() -> None:
    ids = torch.zeros(1, 2, dtype=torch.int64)
    moved = Batch(tokens=ids, targets=ids, domains=ids[:, 0]).to("meta")
    assert {moved.tokens.device.type, moved.targets.device.type, moved.domains.device.type} == {"meta"}
