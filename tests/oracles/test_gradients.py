"""Group gradients of the engine against plain autograd, one backward a sequence, in float64 and float32."""

import pytest
import torch
import torch.nn.functional as F

from zslx.gradients import sequence_stats
from zslx.model import ModelConfig, Transformer

VARIANTS = {
    "tied": {},
    "untied": {"tied": False},
    "biased": {"bias": True, "norm": "layernorm", "norm_gain": True, "positions": "learned"},
    "gains": {"norm_gain": True, "gated_mlp": False},
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def build(dtype=torch.float64, **config):
    small = {"d_model": 12, "n_layers": 2, "n_heads": 2, "vocab_size": 23, "mlp_ratio": 2, "max_positions": 16}
    return Transformer(ModelConfig(**(small | config)), torch.Generator().manual_seed(0)).to(dtype)


def draw(sequences, positions, vocabulary=23, seed=1):
    ids = torch.randint(vocabulary, (sequences, positions + 1), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def token_losses(model, batch):
    tokens, targets = batch
    logits = model(tokens)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def loop(model, loss_fn, batch, groups=None):
    """name -> (K, *shape), and losses: one backward a group."""
    result = loss_fn(model, batch)
    losses, mask = result if isinstance(result, tuple) else (result, torch.ones_like(result))
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ids, count = groups or (torch.arange(len(losses)), len(losses))
    rows = []
    for k in range(count):
        total = (losses * mask)[ids == k].sum() / mask.sum()
        rows.append(torch.autograd.grad(total, list(parameters.values()), retain_graph=True, materialize_grads=True))
    return {name: torch.stack(column) for name, column in zip(parameters, zip(*rows, strict=True), strict=True)}


def assert_close(found, expected, tolerance, what):
    scale = expected.abs().max().clamp_min(1e-30)
    assert found.shape == expected.shape, what
    assert ((found - expected).abs().max() / scale).item() <= tolerance, what


def assert_matches_loop(model, loss_fn, batch, groups=None, *, slow=(), tolerance=None, **options):
    """Every statistic, and both ways of combining, against the loop."""
    expected = loop(model, loss_fn, batch, groups)
    dtype = next(iter(expected.values())).dtype
    tolerance = tolerance or TOLERANCE[dtype]
    count = len(next(iter(expected.values())))
    weights = torch.randn(count, generator=torch.Generator().manual_seed(7), dtype=dtype)
    gramian = sum(g.double().flatten(1) @ g.double().flatten(1).T for g in expected.values())
    for budget in (None, 0):
        stats = sequence_stats(model, loss_fn, batch, groups=groups, keep=True, memory_budget=budget, **options)
        assert stats.slow == tuple(slow)
        combined = stats.combined(weights)
        assert_close(stats.gramian.double(), gramian, tolerance, "gramian")
        assert_close(stats.norms.double(), gramian.diagonal().sqrt(), tolerance, "norms")
        for name, g in expected.items():
            if name not in stats.sum:
                assert not g.any(), name
                continue
            assert_close(stats.sum[name], g.sum(0), tolerance, f"sum {name}")
            assert_close(stats.abs_sum[name], g.abs().sum(0), tolerance, f"abs_sum {name}")
            assert_close(combined[name], torch.tensordot(weights, g, dims=1), tolerance, f"combined {name}")
            if dtype == torch.float64:
                clear = g.abs() > 1e-15  # below it a sign is rounding
                signs = torch.where(clear, g.sign(), 0).sum(0)
                assert ((stats.sign_sum[name] - signs).abs() <= (~clear).sum(0)).all(), name
    return stats


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(5, 7), (1, 5), (3, 1)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_native_model_matches_a_loop_of_backwards(variant, shape, dtype):
    assert_matches_loop(build(dtype, **VARIANTS[variant]), token_losses, draw(*shape))
