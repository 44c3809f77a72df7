"""Sums over token gradients against one backward a token, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from zslx.config.run_config import Config, override
from zslx.gradients import token_sums
from zslx.model.losses import token_losses
from zslx.model.transformer import build_model
from zslx.text.loader import Batch

B, T, V = 3, 5, 17


@pytest.fixture(scope="module")
def world():
    """A model, a batch, and the gradient of each token's share of the mean loss: (N, *shape) by parameter."""
    values = {"model.d_model": 8, "model.n_layers": 1, "model.n_heads": 2, "train.dtype": "float64"}
    config = override(Config(), list((values | {"data.seq_len": T}).items()))
    model = build_model(config, V, torch.Generator().manual_seed(0)).double()
    ids = torch.randint(V, (B, T + 1), generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens=ids[:, :-1], targets=ids[:, 1:], domains=torch.zeros(B, dtype=torch.int64))
    every: dict[str, list[torch.Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for i in range(B * T):
        model.zero_grad()
        (token_losses(model, batch).flatten()[i] / (B * T)).backward()
        for name, p in model.named_parameters():
            every[name].append(p.grad.clone())
    model.zero_grad(set_to_none=True)
    return model, batch, {name: torch.stack(found) for name, found in every.items()}


def test_all_tokens_give_the_sums_of_single_backwards(world):
    model, batch, every = world
    found = token_sums(model, token_losses, batch, B * T, generator=torch.Generator().manual_seed(2), step=7)
    assert (found.step, found.count, found.num_tokens) == (7, B * T, B * T)
    assert found.sum.keys() == found.abs_sum.keys() == found.signed_sum.keys() == every.keys()
    for name, g in every.items():
        torch.testing.assert_close(found.sum[name], g.sum(0))
        torch.testing.assert_close(found.abs_sum[name], g.abs().sum(0))
        assert (found.signed_sum[name].abs() <= g.abs().sum(0) + 1e-12).all()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("samples", [0, B])
def test_the_signed_sum_is_one_over_all_tokens(world, samples):
    """The signs that explain one parameter explain all others."""
    model, batch, every = world
    found = token_sums(model, token_losses, batch, samples, generator=torch.Generator().manual_seed(3))
    assert bool(found.abs_sum) == bool(samples) and found.count == samples
    flat = {name: g.flatten(1) for name, g in every.items()}
    joined = torch.cat(list(flat.values()), dim=1)
    signed = torch.cat([found.signed_sum[name].flatten() for name in flat])
    signs = torch.linalg.lstsq(joined.T, signed[:, None]).solution.flatten()
    torch.testing.assert_close(signs.abs(), torch.ones(B * T, dtype=torch.float64), atol=1e-6, rtol=0)
    assert len(set(signs.round().tolist())) == 2
    torch.testing.assert_close(torch.cat([found.sum[name].flatten() for name in flat]), joined.sum(0))


def test_a_sample_and_random_signs_are_right_on_average(world):
    model, batch, every = world
    draws, generator = 300, torch.Generator().manual_seed(4)
    absolute = {name: torch.zeros_like(g[0]) for name, g in every.items()}
    square = {name: torch.zeros_like(g[0]) for name, g in every.items()}
    for _ in range(draws):
        found = token_sums(model, token_losses, batch, B, generator=generator)
        for name in every:
            absolute[name] += found.abs_sum[name] / draws
            square[name] += found.signed_sum[name].square() / draws
    for name, g in every.items():
        # The largest of a few hundred standard errors; a relative one is at most √(N/n) and √2.
        error = 5 / math.sqrt(draws)
        scale = g.abs().sum(0)
        assert ((absolute[name] - scale).abs() <= error * math.sqrt(T) * scale + 1e-12).all(), name
        scale = g.square().sum(0)
        assert ((square[name] - scale).abs() <= error * math.sqrt(2) * scale + 1e-12).all(), name
