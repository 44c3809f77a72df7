"""Masked contexts against sequences that are cut, in float64, and the published windows."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from zslx import RunView, load_intervention
from zslx.config.groups import ModelConfig
from zslx.gradients import group_stats
from zslx.model.losses import token_losses
from zslx.model.transformer import Transformer
from zslx.text.loader import Batch

SIZES = {"vocab_size": 11, "d_model": 8, "n_layers": 2, "n_heads": 2}


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(ModelConfig(**SIZES), torch.Generator().manual_seed(0)).double()


def tokens(sequences: int, length: int) -> torch.Tensor:
    return torch.randint(1, 11, (sequences, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("sequences", "length", "window"), [(1, 1, 1), (1, 6, 1), (3, 6, 2), (2, 6, 3), (2, 6, 6)])
def test_a_window_that_divides_the_sequence_is_the_model_on_cut_sequences(model, sequences, length, window):
    ids = tokens(sequences, length)
    first = (torch.arange(length) // window * window).expand(ids.shape)
    cut = model(ids.view(-1, window)).view(sequences, length, -1)
    assert torch.allclose(model(ids, first), cut, rtol=0, atol=1e-12)


def test_the_whole_context_as_a_mask_is_the_model_without_one(model):
    ids = tokens(3, 7)
    assert torch.allclose(model(ids, torch.zeros_like(ids)), model(ids), rtol=0, atol=1e-12)


def test_no_position_sees_the_document_before_its_own(model):
    ids = tokens(1, 7)
    ids[0, 2] = 0
    method = load_intervention("skyladder", duration=0.0, documents=True)
    first = method.context(RunView(step=1), ids, {})
    assert first.tolist() == [[0, 0, 0, 3, 3, 3, 3]]
    assert torch.allclose(model(ids, first)[:, 3:], model(ids[:, 3:]), rtol=0, atol=1e-12)


PUBLISHED = {  # windows at t = 1, 250, 500, 750, 999 of 1,000, from 32 to 8,192
    "linear": [40, 2072, 4112, 6152, 8183],
    "sine": [44, 3154, 5801, 7570, 8191],
    "exponential": [32, 128, 512, 2048, 8146],
}


@pytest.mark.parametrize("growth", PUBLISHED)
def test_windows_are_the_published_ones(growth):
    method = load_intervention("skyladder", start=32, duration=1.0, growth=growth)
    found = [method.window(RunView(step=t + 1, steps=1000), 8192) for t in (1, 250, 500, 750, 999)]
    assert found == pytest.approx(PUBLISHED[growth], abs=0.5 if growth != "exponential" else 1)
    assert method.window(RunView(step=1001, steps=1000), 8192) == 8192


def test_windows_need_not_divide_the_sequence():
    method = load_intervention("skyladder", start=3, duration=1.0)
    first = method.context(RunView(step=1, steps=10), tokens(2, 7), {})
    assert first.tolist() == [[0, 0, 0, 3, 3, 3, 6]] * 2
    assert method.context(RunView(step=11, steps=10), tokens(2, 7), {}) is None
    assert method.context(RunView(step=1, steps=10), tokens(1, 1), {}) is None


@pytest.mark.parametrize("by_token", [False, True])
def test_the_engine_sees_the_mask(model, by_token):
    """Σ_k g_k of the engine is the gradient of the masked loss."""
    ids = tokens(3, 7)
    batch = Batch(tokens=ids[:, :-1], targets=ids[:, 1:], domains=torch.zeros(3, dtype=torch.int64))
    masked = dataclasses.replace(batch, context=(torch.arange(6) // 4 * 4).expand(3, 6))
    losses = token_losses(model, masked)
    assert not torch.allclose(losses, token_losses(model, batch))
    expected = torch.autograd.grad(losses.mean(), list(model.parameters()))
    groups = (ids[:, 1:] % 2, 2) if by_token else None
    found = group_stats(model, token_losses, masked, groups, by_token=by_token, want=("sum", "gramian"), keep=False).sum
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        assert torch.allclose(found[name], gradient, rtol=0, atol=1e-12), name
