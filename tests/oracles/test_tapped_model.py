"""Gradients by sequence from taps against plain autograd, in float64, and through torch.compile in float32."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from test_gradients import VARIANTS, assert_close, build, draw, loop, token_losses

from zslx.gradients import sequence_stats
from zslx.gradients.tapped_model import TappedModel

WANT = ("sum", "abs_sum", "sign_sum", "gramian")


def assert_is_the_loop(tapped, model, batch, groups=None, tolerance=1e-10):
    expected = loop(model, token_losses, batch, groups)
    stats = tapped.stats(token_losses, batch, groups=groups, want=WANT, keep=True)
    count = len(next(iter(expected.values())))
    gramian = sum(g.view(count, -1) @ g.view(count, -1).T for g in expected.values())
    assert_close(stats.gramian, gramian, tolerance, "gramian")
    weights = torch.randn(count, generator=torch.Generator().manual_seed(7), dtype=gramian.dtype)
    combined = stats.combined(weights)
    assert list(combined) == list(expected)
    for name, g in expected.items():
        assert_close(stats.sum[name], g.sum(0), tolerance, f"sum {name}")
        assert_close(stats.abs_sum[name], g.abs().sum(0), tolerance, f"abs_sum {name}")
        assert_close(combined[name], torch.tensordot(weights, g, dims=1), tolerance, f"combined {name}")
        clear = g.abs() > tolerance  # below it a sign is rounding
        assert ((stats.sign_sum[name] - torch.where(clear, g.sign(), 0).sum(0)).abs() <= (~clear).sum(0)).all()
    assert all(p.grad is None for p in model.parameters())


def drawn(model):
    """The model in float64, its parameters from a generator of their own."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5, generator=generator)
    return model.double()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1), (3, 7)])
def test_taps_give_what_a_backward_a_sequence_gives(variant, shape):
    model = build(**VARIANTS[variant])
    assert_is_the_loop(TappedModel(model), model, draw(*shape))


@pytest.mark.parametrize("ids", [[0, 0, 1, 0, 1], [2, 1, 0, 4, 3], [0, 0, 0, 0, 0]])
def test_groups_of_sequences_are_the_sums_of_theirs(ids):
    model = build()
    assert_is_the_loop(TappedModel(model), model, draw(5, 4), (torch.tensor(ids), max(ids) + 1))


def test_repeated_tokens_add_up_in_a_tied_table():
    model = build()
    tokens, targets = draw(3, 6)
    tokens[0] = 4
    tokens[1, 3:] = tokens[1, 0]
    assert_is_the_loop(TappedModel(model), model, (tokens, targets))


def test_a_batch_may_be_longer_than_what_the_model_is_given():
    model, (tokens, targets) = build(), draw(3, 6)
    whole = torch.cat([tokens, targets[:, -1:]], 1)
    tapped = TappedModel(model)

    def losses(model, ids):
        return token_losses(model, (ids[:, :-1], ids[:, 1:].contiguous()))

    expected = tapped.stats(token_losses, (tokens, targets), want=WANT)
    found = tapped.stats(losses, whole, want=WANT)
    assert torch.equal(found.gramian, expected.gramian)


def test_weights_moved_between_two_calls_are_seen():
    model, batch = build(), draw(3, 4)
    tapped = TappedModel(model)
    tapped.stats(token_losses, batch, want=("gramian",))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    assert_is_the_loop(tapped, model, batch)
    assert_is_the_loop(tapped, model, draw(2, 5))


def test_a_layer_used_twice_adds_up_both_uses():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.layer, self.head = nn.Embedding(9, 5), nn.Linear(5, 5), nn.Linear(5, 9)

        def forward(self, tokens):
            x = self.embedding(tokens)
            return self.head(torch.tanh(self.layer(x)))

    model = drawn(Twice())
    assert_is_the_loop(TappedModel(model), model, draw(3, 4, vocabulary=9))


def test_what_no_tap_can_follow_is_refused():
    class Lookups(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 5), nn.Linear(5, 9)

        def forward(self, tokens):
            return self.head(self.embedding(tokens) + self.embedding(tokens.flip(1)))

    class Flat(Lookups):
        def forward(self, tokens):
            return self.head(self.embedding(tokens).flatten(0, 1)).view(*tokens.shape, 9)

    batch = draw(3, 4, vocabulary=9)
    with pytest.raises(ValueError, match="looked up once"):
        TappedModel(Lookups()).stats(token_losses, batch, want=WANT)
    with pytest.raises(ValueError, match=r"takes \(B, T, in\)"):
        TappedModel(Flat()).stats(token_losses, batch, want=WANT)


def test_a_norm_of_each_head_has_its_sequences_first():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.norm, self.head = nn.Embedding(9, 6), nn.LayerNorm(3), nn.Linear(6, 9)

        def forward(self, tokens):
            x = self.embedding(tokens).unflatten(-1, (2, 3)).transpose(1, 2)  # (B, H, T, D/H)
            return self.head(self.norm(x).transpose(1, 2).flatten(2))

    model = drawn(Heads())
    for shape in [(4, 4), (2, 5), (5, 2)]:
        assert_is_the_loop(TappedModel(model), model, draw(*shape, vocabulary=9))


def test_bfloat16_products_are_as_near_as_those_of_the_tape():
    model, batch = build(torch.float32), draw(4, 6)

    def losses(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return token_losses(model, batch).float()

    exact = sequence_stats(model, token_losses, batch, want=WANT)
    stats = TappedModel(model, dtype=torch.bfloat16).stats(losses, batch, want=WANT, keep=True)
    tape = sequence_stats(model, losses, batch, want=WANT)
    assert stats.gramian.dtype == torch.float32
    scale = exact.gramian.abs().max()
    assert (stats.gramian - exact.gramian).abs().max() <= 3 * (tape.gramian - exact.gramian).abs().max() + 1e-3 * scale


def test_a_module_with_parameters_of_its_own_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.shift = nn.Linear(3, 3), nn.Parameter(torch.zeros(3))

    with pytest.raises(ValueError, match="Odd has parameters of its own"):
        TappedModel(Odd())


@pytest.mark.medium
@pytest.mark.filterwarnings("default")  # torch's own, while it compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("variant", ["tied", pytest.param("biased", marks=pytest.mark.slow)])
def test_compiled_taps_are_the_eager_ones(variant):
    model, compiled = build(**VARIANTS[variant]), torch.compile(token_losses)
    tapped = TappedModel(model, compiled=True)
    for seed in range(2):
        expected = TappedModel(model).stats(token_losses, draw(3, 7, seed=seed), want=WANT, keep=True)
        stats = tapped.stats(compiled, draw(3, 7, seed=seed), want=WANT, keep=True)
        assert_close(stats.gramian, expected.gramian, 1e-10, "gramian")
        weights = torch.arange(3.0, dtype=torch.float64)
        for name, g in expected.combined(weights).items():
            assert_close(stats.combined(weights)[name], g, 1e-10, name)
            assert_close(stats.abs_sum[name], expected.abs_sum[name], 1e-10, name)
