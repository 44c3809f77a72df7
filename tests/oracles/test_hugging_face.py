"""Models of transformers: the losses of their own forward, and every gradient measurement against plain autograd."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from test_gradients import assert_close, assert_matches_loop, draw

from zslx.config.run_config import Config, parse_overrides
from zslx.gradients import first_order, position_interference, token_group_stats, token_interference
from zslx.model.losses import token_losses as losses_of_batch
from zslx.model.transformer import build_model
from zslx.text.loader import Batch

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.medium

TYPES = ("gpt2", "llama", "olmo2", "gpt_neox", "qwen2", "qwen3", "mamba")
# Llama, Qwen 2 and Qwen 3 have OLMo 2's layers in another order: they take as long again, and say little more.
SOME = [pytest.param(kind, marks=pytest.mark.slow) if kind in ("llama", "qwen2", "qwen3") else kind for kind in TYPES]
# The norms of the others, and Mamba's states, are in float32 whatever the type of the model.
TOLERANCE = {"gpt2": 1e-9, "gpt_neox": 1e-9}
SLOW = ("conv1d.bias", "conv1d.weight", "dt_proj.weight")
V = 31


def build(kind: str, *more: str, seed: int = 0):
    heads = () if kind == "mamba" else ("model.n_heads=2",)
    items = (f"model=hf:{kind}", "model.d_model=8", "model.n_layers=1", "data.seq_len=9", *heads, *more)
    return build_model(parse_overrides(Config(), items), V, torch.Generator().manual_seed(seed))


def token_losses(model, batch):
    tokens, targets = batch
    return losses_of_batch(model, Batch(tokens=tokens, targets=targets, domains=tokens[:, 0]))


@pytest.mark.parametrize("kind", TYPES)
def test_losses_are_those_of_transformers_own_forward(kind):
    """Its forward takes all T + 1 tokens of a window, shifts the labels itself and gives their mean."""
    model, ids = build(kind), torch.randint(V, (3, 8), generator=torch.Generator().manual_seed(5))
    losses = token_losses(model, (ids[:, :-1], ids[:, 1:]))
    theirs = model.inner(input_ids=ids, labels=ids)
    each = F.cross_entropy(theirs.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(3, 7)
    torch.testing.assert_close(losses, each, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.mean(), theirs.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", SOME)
def test_gradients_of_sequences_match_a_loop_of_backwards(kind):
    model, mixer = build(kind, "train.dtype=float64"), "inner.backbone.layers.0.mixer."
    # Of the convolution, and of a product whose factors are turned, one backward a group.
    slow = [mixer + name for name in SLOW] if kind == "mamba" else ()
    tolerance = 1e-6 if kind == "mamba" else None
    groups = torch.tensor([1, 0, 1]), 2
    assert_matches_loop(model, token_losses, draw(3, 7, V), groups, slow=slow, tolerance=tolerance)


@pytest.mark.parametrize("kind", SOME)
def test_gradients_of_tokens_match_a_loop_of_backwards(kind):
    model, batch, tolerance = build(kind, "train.dtype=float64"), draw(2, 3, V), TOLERANCE.get(kind, 1e-6)
    parameters = dict(model.named_parameters())
    rows = [torch.autograd.grad(one, list(parameters.values()), retain_graph=True, materialize_grads=True)
            for one in token_losses(model, batch).flatten()]  # fmt: skip
    gradients = dict(zip(parameters, map(torch.stack, zip(*rows, strict=True)), strict=True))

    measured = token_interference(model, token_losses, batch, "all")
    for name, g in gradients.items():
        totals = measured.by_parameter[name]
        assert totals.abs_of_sum == pytest.approx(float(g.sum(0).abs().sum()), rel=tolerance, abs=1e-12), name
        assert totals.sum_of_abs == pytest.approx(float(g.abs().sum()), rel=tolerance, abs=1e-12), name

    generator = torch.Generator().manual_seed(3)
    update = {n: 1e-3 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in parameters.items()}
    effect = first_order(model, token_losses, batch, update)
    expected = sum((g * update[n]).flatten(1).sum(1) for n, g in gradients.items())
    torch.testing.assert_close(effect.change.flatten(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    over = {n: float((g.flatten(1).sum(0) * update[n].flatten()).abs().sum()) for n, g in gradients.items()}
    assert sum(effect.abs_of_sum.values()) == pytest.approx(sum(over.values()), rel=tolerance)

    ids = torch.arange(6).view(2, 3) % 3
    stats = token_group_stats(model, token_losses, batch, (ids, 3))
    member = F.one_hot(ids.flatten(), 3).double() / 6
    flat = torch.cat([g.flatten(1) for g in gradients.values()], 1)
    assert_close(stats.gramian, (member.T @ flat) @ (member.T @ flat).T, tolerance, "gramian")


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("mamba", marks=pytest.mark.slow)])
def test_the_proxy_over_positions_holds_its_bounds(kind):
    measured = position_interference(build(kind, "train.dtype=float64"), token_losses, draw(3, 6, V))
    assert 0 <= measured.ratio <= 1
