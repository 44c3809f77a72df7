"""Gradient interference of the instruments against plain autograd, a backward a sequence, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from zslx.config.groups import ModelConfig
from zslx.gradients import parameter_roles, sequence_stats
from zslx.instruments.gradient_interference import agreement, sequence_record, spread
from zslx.model.losses import token_losses
from zslx.model.transformer import Transformer
from zslx.text.loader import Batch


def small(tied: bool = True, sequences: int = 5) -> tuple[Transformer, Batch]:
    config = ModelConfig(d_model=8, n_layers=2, n_heads=2, vocab_size=13, tied=tied, norm_gain=True, bias=True)
    model = Transformer(config, torch.Generator().manual_seed(1)).double()
    draws = torch.Generator().manual_seed(2)
    # Only some of the vocabulary occurs: an untied embedding has coordinates without a gradient.
    text = torch.randint(0, 9, (sequences, 7), generator=draws)
    return model, Batch(tokens=text[:, :-1], targets=text[:, 1:], domains=torch.zeros(sequences, dtype=torch.int64))


def gradients(model: Transformer, batch: Batch) -> dict[str, torch.Tensor]:
    """(K, numel) by parameter: ∇ (Σ_{i∈k} ℓ_i) / N, one backward a sequence."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    rows = []
    for k in range(len(batch.tokens)):
        loss = token_losses(model, batch)[k].sum() / batch.tokens.numel()
        rows.append(torch.autograd.grad(loss, parameters))
    return {name: torch.stack([row[i].flatten() for row in rows]) for i, name in enumerate(names)}


def slow(g: torch.Tensor, signs: torch.Tensor) -> dict[str, float]:
    """ratio, mean and chance levels of gradients (K, P)."""
    size = g.abs().sum(0)
    live = size > 0
    found = {}
    for key, top in (("", g.sum(0).abs()), ("chance_", (signs[:, None] * g).sum(0).abs())):
        found[f"{key}ratio"] = 1 - float(top.sum() / size.sum())
        found[f"{key}mean"] = 1 - float((top[live] / size[live]).mean())
    return found | {"dead_share": float((~live).double().mean()), "coordinates": g.shape[1]}


@pytest.mark.parametrize("tied", [True, False])
def test_every_breakdown_equals_plain_autograd(tied: bool) -> None:
    model, batch = small(tied)
    stats = sequence_stats(
        model, token_losses, batch, want=("sum", "abs_sum", "gramian"), chance=torch.Generator().manual_seed(3)
    )
    record = sequence_record(model, stats)
    g = gradients(model, batch)
    signs = torch.randint(2, (5,), generator=torch.Generator().manual_seed(3)).double() * 2 - 1

    def check(found: dict, names: list[str]) -> None:
        for key, value in slow(torch.cat([g[n] for n in names], 1), signs).items():
            assert found[key] == pytest.approx(value, rel=1e-10, abs=1e-12), key

    roles = parameter_roles(model)
    check(record, [n for n in g if roles[n].body])
    groups = {role.group for role in roles.values()}
    assert groups == {"attention", "mlp", "norm", "embedding"} | (set() if tied else {"unembedding"})
    assert record["by_group"].keys() == groups | {"all"} and record["by_layer"].keys() == {"0", "1"}
    check(record["by_group"]["all"], list(g))
    for group in groups:
        check(record["by_group"][group], [n for n in g if roles[n].group == group])
    for layer in (0, 1):
        check(record["by_layer"][str(layer)], [n for n in g if roles[n].layer == layer])
    assert (record["by_group"]["embedding"]["dead_share"] > 0) is (not tied)


def test_agreement_equals_its_definitions() -> None:
    model, batch = small()
    g = torch.cat(list(gradients(model, batch).values()), 1)
    found = agreement(g @ g.T)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    cosines = torch.stack([torch.cosine_similarity(g[i], g[j], dim=0) for i, j in pairs])
    assert found["negative_cosines"] == pytest.approx(float((cosines < 0).double().mean()))
    assert found["mean_cosine"] == pytest.approx(float(cosines.mean()), rel=1e-10)
    own = g * 5  # each sequence's own mean gradient
    trace = float((own - own.mean(0)).square().sum()) / 4
    squared = float(own.mean(0).square().sum()) - trace / 5
    assert found["noise_scale"] == pytest.approx(trace / squared if squared > 0 else None, rel=1e-9)


def test_noise_scale_of_planted_gradients() -> None:
    """Gradients μ + σ z: B_simple = P σ² / |μ|², here 16·0.25 / 4 = 1."""
    draws = torch.Generator().manual_seed(0)
    mu = torch.full((16,), 0.5, dtype=torch.float64)
    g = mu + 0.5 * torch.randn(4000, 16, dtype=torch.float64, generator=draws)
    found = agreement(g @ g.T)
    assert found["noise_scale"] == pytest.approx(1.0, rel=0.03)


def test_opposed_gradients_cancel_and_equal_ones_do_not() -> None:
    opposed = agreement(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    assert opposed == {"negative_cosines": 1.0, "mean_cosine": -1.0, "noise_scale": None}
    equal = agreement(torch.ones(3, 3))
    assert equal["negative_cosines"] == 0 and equal["mean_cosine"] == pytest.approx(1)
    assert math.isclose(equal["noise_scale"], 0, abs_tol=1e-12)
    assert agreement(torch.ones(1, 1))["mean_cosine"] is None


def test_chosen_sequences_cover_the_batch() -> None:
    _, batch = small(sequences=12)
    chosen = spread(batch, 4)
    assert torch.equal(chosen.tokens, batch.tokens[[1, 4, 7, 10]])
    assert torch.equal(spread(batch, 12).tokens, batch.tokens)
