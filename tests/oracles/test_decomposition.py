"""The decomposition against its definitions, token by token, and against cross-entropy computed on its own."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zslx.instruments.rank_decomposition import Decomposition, target_ranks
from zslx.model.losses import cross_entropy


def definition(logits: torch.Tensor, targets: torch.Tensor, log2: bool = False) -> dict[str, float]:
    """EE, SA, Conf by loops over tokens and ranks, from the probabilities themselves."""
    by_rank: dict[int, list[float]] = defaultdict(list)
    for row, target in zip(logits.flatten(0, -2).tolist(), targets.flatten().tolist(), strict=True):
        biggest = max(row)
        weights = [math.exp(x - biggest) for x in row]
        rank = sum(x > row[target] for x in row)
        by_rank[int(math.log2(rank + 1)) if log2 else rank].append(weights[target] / sum(weights))
    n = sum(map(len, by_rank.values()))
    p = {e: len(s) / n for e, s in by_rank.items()}
    big_q = {e: math.exp(sum(map(math.log, s)) / len(s)) for e, s in by_rank.items()}
    c = sum(big_q.values())
    return {
        "ee": -sum(x * math.log(x) for x in p.values()),
        "sa": sum(x * math.log(x / (big_q[e] / c)) for e, x in p.items()),
        "conf": math.log(c),
    }


def draw(seed: int, tokens: int, vocabulary: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64) * scale
    # Rounded, so that ties occur.
    return (logits * 4).round() / 4, torch.randint(vocabulary, (tokens,), generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 80),
    vocabulary=st.integers(1, 40),
    scale=st.floats(0, 20),
    bins=st.sampled_from(["rank", "log2"]),
)
def test_identity_and_definitions(seed: int, tokens: int, vocabulary: int, scale: float, bins: str) -> None:
    logits, targets = draw(seed, tokens, vocabulary, scale)
    losses = F.cross_entropy(logits, targets, reduction="none")
    streamed = Decomposition(bins)
    for part in range(0, tokens, 7):  # in uneven chunks
        here = slice(part, part + 7)
        streamed.add(logits[here], targets[here], losses[here])
    found = streamed.record()
    own = float(F.cross_entropy(logits, targets))
    assert abs(found["ee"] + found["sa"] - found["conf"] - own) < 1e-10
    assert abs(found["ce"] - own) < 1e-10
    for key, value in definition(logits, targets, bins == "log2").items():
        assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-9), key
    assert found["sa"] >= -1e-12 and found["ee"] >= 0
    assert found["n"] == tokens


def test_half_is_the_mean_over_odd_and_even_tokens_however_the_chunks_fall() -> None:
    logits, targets = draw(3, 51, 17, 2.0)
    losses = F.cross_entropy(logits, targets, reduction="none")
    streamed = Decomposition()
    for here in (slice(0, 3), slice(3, 4), slice(4, 51)):
        streamed.add(logits[here], targets[here], losses[here])
    halves = [definition(logits[start::2], targets[start::2]) for start in (0, 1)]
    found = streamed.record()["half"]
    for key in ("ee", "sa", "conf"):
        assert found[key] == pytest.approx((halves[0][key] + halves[1][key]) / 2, rel=1e-9)
    assert found["n"] == 25.5


def test_ranks_count_strictly_larger_ones() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]]).expand(4, 4)
    assert target_ranks(logits, torch.arange(4)).tolist() == [3, 0, 0, 2]


def test_log2_bins_at_their_edges() -> None:
    found = Decomposition("log2")
    found.add_ranks(torch.tensor([0, 1, 2, 3, 6, 7, 1022, 1023, 2046, 2047]), torch.ones(10))
    assert found.counts.sum(0).tolist() == [1, 2, 2, 1, 0, 0, 0, 0, 0, 1, 2, 1]


def test_from_float32_logits_in_chunks_it_is_the_mean_loss() -> None:
    logits, targets = draw(5, 300, 64, 3.0)
    logits, targets = logits.float().view(6, 50, 64), targets.view(6, 50)
    losses = cross_entropy(logits, targets)
    found = Decomposition()
    found.add(logits, targets, losses)
    record = found.record()
    assert record["ee"] + record["sa"] - record["conf"] == pytest.approx(float(losses.double().mean()), abs=1e-12)
    assert record["accuracy"] == pytest.approx(float((target_ranks(logits, targets) == 0).double().mean()))


def test_errors() -> None:
    with pytest.raises(ValueError, match="no token was added"):
        Decomposition().record()
    with pytest.raises(ValueError, match="bins='deciles': allowed are rank, log2"):
        Decomposition("deciles")
