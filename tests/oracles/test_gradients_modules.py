"""The engine on modules it was not written for: each against a loop of backwards, slow parameters named."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from test_gradients import assert_close, assert_matches_loop, build, draw, loop, token_losses

from zslx.gradients import sequence_stats

V, D, B, T = 19, 8, 4, 5


class Small(nn.Module):
    """embedding → body → head, with whatever body and head a test gives."""

    def __init__(self, body=None, head=None, position=None):
        super().__init__()
        self.wte, self.body, self.position = nn.Embedding(V, D), body, position
        self.head = head or nn.Linear(D, V)

    def forward(self, tokens):
        x = self.wte(tokens)
        if self.position is not None:
            x = self.position(x, tokens)
        if self.body is not None:
            x = x + self.body(torch.tanh(x))
        return self.head(x)


def check(module, slow=(), batch=None, loss_fn=token_losses):
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    batch = batch or draw(B, T, V)
    groups = torch.tensor([1, 0, 1, 1]), 2
    for g in (None, groups):
        assert_matches_loop(module.double(), loss_fn, batch, g, slow=slow)


class Functional(nn.Module):
    """A tied head in one of the ways that people write it."""

    def __init__(self, wte, how):
        super().__init__()
        self.wte, self.how = wte, how

    def forward(self, h):
        w = self.wte.weight
        if self.how == "linear":
            return F.linear(h, w)
        if self.how == "transposed":
            return h @ w.T
        if self.how == "t":
            return torch.matmul(h, w.t())
        if self.how == "cast":
            return F.linear(h, w.to(torch.float64) * 1.0)
        return torch.einsum("btd,vd->btv", h, w)


@pytest.mark.parametrize("how", ["linear", "transposed", "t", "cast", "einsum"])
def test_tied_head_in_functional_form(how):
    module = Small()
    module.head = Functional(module.wte, how)
    check(module, slow=["wte.weight"] if how == "einsum" else [])


class Position(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.table, self.how = nn.Embedding(9, D), how

    def forward(self, x, tokens):
        index = torch.arange(tokens.shape[1])
        if self.how == "arange":
            return x + self.table(index)
        if self.how == "row":
            return x + self.table(index[None])
        if self.how == "unsqueezed":
            return self.table(index).unsqueeze(0) * 0.5 + x
        if self.how == "slice":
            return x + self.table.weight[: tokens.shape[1]]
        if self.how == "in place":
            p = self.table(index)
            p *= 0.5
            return x + p
        return x + self.table(index.expand(len(tokens), -1))


@pytest.mark.parametrize("how", ["arange", "row", "unsqueezed", "slice", "in place", "expanded"])
def test_position_tables_are_kept_apart_by_sequence(how):
    check(Small(position=Position(how)))


@pytest.mark.parametrize("how", ["arange", "row"])
def test_as_many_positions_as_sequences(how):
    check(Small(position=Position(how)), batch=draw(4, 4, V))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, x):
        return self.linear(torch.tanh(self.linear(x)))


class Scale(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(shape))

    def forward(self, x):
        return self.gain * x


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(D))

    def forward(self, x):
        y = x * 1.0
        y += self.bias
        return y


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(D, D, 3, padding=1)

    def forward(self, x):
        return self.conv(x.mT).mT


class TimeFirst(nn.Module):
    """Sequences along the second dimension of what the layer sees."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, x):
        return self.linear(x.transpose(0, 1)).transpose(0, 1)


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, x):
        return self.linear(x.reshape(-1, D)).view(x.shape)


class Experts(nn.Module):
    """Tokens sorted by expert: rows of no fixed sequence."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(D, D) for _ in range(2)])

    def forward(self, x):
        flat, out = x.reshape(-1, D), torch.zeros_like(x).reshape(-1, D)
        for expert, side in zip(self.experts, (flat[:, 0] > 0, flat[:, 0] <= 0), strict=True):
            out[side] = expert(flat[side])
        return out.view(x.shape)


class Hyper(nn.Module):
    """A weight matrix computed from other parameters, and a table of constants through a layer."""

    def __init__(self):
        super().__init__()
        self.v, self.g = nn.Parameter(torch.ones(D, D)), nn.Parameter(torch.ones(D, 1))
        self.features = nn.Linear(3, D)
        self.register_buffer("constants", torch.randn(T, 3, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        weight = self.g * self.v / self.v.norm(dim=1, keepdim=True)
        return F.linear(x, weight) + self.features(self.constants)


class Unbatched(nn.Module):
    """Concatenates a learned token that all sequences share."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 1, D))

    def forward(self, x):
        return torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)[:, 1:] + x.mean(1, keepdim=True) * self.token


BODIES = {
    "used twice": (Twice(), []),
    "layer norm": (nn.LayerNorm(D), []),
    "layer norm without bias": (nn.LayerNorm(D, bias=False), []),
    "rms norm": (nn.RMSNorm(D), []),
    "vector gain": (Scale((D,)), []),
    "scalar gain": (Scale(()), []),
    "in-place bias": (InPlace(), []),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(D, D)), []),
    "hyper": (Hyper(), []),
    "flattened": (Flat(), []),
    "feed-forward": (nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D)), []),
    "convolution": (Conv(), ["body.conv.bias", "body.conv.weight"]),
    "time first": (TimeFirst(), ["body.linear.bias", "body.linear.weight"]),
    "recurrent": (
        nn.GRU(D, D, batch_first=True),
        ["body.bias_hh_l0", "body.bias_ih_l0", "body.weight_hh_l0", "body.weight_ih_l0"],
    ),
    "shared token": (Unbatched(), ["body.token"]),
}


class First(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)[0]


@pytest.mark.parametrize("name", BODIES)
def test_bodies(name):
    body, slow = BODIES[name]
    if name == "recurrent":
        body, slow = First(body), [s.replace("body.", "body.module.") for s in slow]
    check(Small(body), slow=slow)


@pytest.mark.parametrize("seed", range(12))
def test_routed_experts_take_the_slow_way(seed):
    """By chance an expert's rows may lie as if they were sequences, for one sequence or for most."""
    module = Small(Experts()).double()
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    stats = assert_matches_loop_any(module)
    assert all("experts" in name for name in stats.slow)


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [0, 1, 3, 2], [0, 2, 1, 3], [3, 1, 2, 0]])
def test_sequences_that_change_places_take_the_slow_way(order):
    class Exchanged(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(D, D)

        def forward(self, x):
            return self.linear(x[order])[torch.tensor(order).argsort()]

    check(Small(Exchanged()), slow=["body.linear.bias", "body.linear.weight"])


def test_a_layout_is_checked_again_when_its_shape_changes():
    """One expert gets every row of the first batch, in order; of the second, some rows of some sequences."""
    module = Small(Experts()).double()
    ids, targets = draw(B, T, V)
    module.wte.weight.data[:, 0] = 1.0
    assert "body.experts.0.weight" not in sequence_stats(module, token_losses, (ids, targets)).slow
    module.wte.weight.data[::2, 0] = -1.0
    assert "body.experts.0.weight" in assert_matches_loop_any(module).slow


def assert_matches_loop_any(module):
    """As assert_matches_loop, for whatever parameters turn out slow."""
    expected = loop(module, token_losses, draw(B, T, V))
    stats = sequence_stats(module, token_losses, draw(B, T, V))
    for name, g in expected.items():
        assert_close(stats.abs_sum[name], g.abs().sum(0), 1e-10, name)
    return stats


def test_sequences_that_mix_take_the_slow_way():
    """Batch norm: a sequence's loss depends on all; its gradient still is that of its loss."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(D, D), nn.BatchNorm1d(D, track_running_stats=False)

        def forward(self, x):
            return self.norm(self.linear(x).flatten(0, 1)).view(x.shape)

    stats = assert_matches_loop_any(Small(Mixed()).double())
    assert "body.linear.weight" in stats.slow and "wte.weight" in stats.slow
    assert "head.weight" not in stats.slow


def test_own_autograd_function_is_noticed():
    """Operations inside a custom autograd function are not seen; the gradient that arrives is."""

    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g * w, (g * x).sum((0, 1))

    class Body(Scale):
        def forward(self, x):
            return Hidden.apply(x, self.gain)

    check(Small(Body((D,))), slow=["body.gain"])


def test_padding_row_gets_no_gradient():
    module = Small()
    module.wte = nn.Embedding(V, D, padding_idx=3)
    tokens, targets = draw(B, T, V)
    tokens[:, 2] = 3
    check(module, batch=(tokens, targets))


@pytest.mark.parametrize(
    "variant", [{}, {"bias": True, "norm": "layernorm", "norm_gain": True, "positions": "learned"}]
)
def test_activation_checkpointing(variant):
    def checkpointed(model, batch):
        blocks = [block.forward for block in model.blocks]
        try:
            for block in model.blocks:
                plain = block.forward
                block.forward = lambda *a, f=plain: checkpoint(f, *a, use_reentrant=False)
            return token_losses(model, batch)
        finally:
            for block, plain in zip(model.blocks, blocks, strict=True):
                block.forward = plain

    model, batch = build(**variant), draw(4, 6)
    assert_matches_loop(model, checkpointed, batch)


def test_reentrant_checkpointing_is_refused():
    class Body(nn.Linear):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=True)

    with pytest.raises(ValueError, match="use_reentrant=False"):
        sequence_stats(Small(Body(D, D)), token_losses, draw(B, T, V))


@pytest.mark.parametrize("inside", [True, False])
def test_autocast(inside):
    model, batch = build(torch.float32, bias=True, norm="layernorm", norm_gain=True, positions="learned"), draw(4, 6)

    def loss_fn(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return token_losses(model, batch).float()

    if inside:
        stats = sequence_stats(model, loss_fn, batch)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            stats = sequence_stats(model, loss_fn, batch)
    expected = loop(model, loss_fn, batch)
    assert stats.gramian.dtype == torch.float32
    gramian = sum(g.flatten(1) @ g.flatten(1).T for g in expected.values())
    # bfloat16 has 8 bits: products rounded in another order differ by some units of 2⁻⁸.
    assert_close(stats.gramian, gramian, 0.02, "gramian")
    for name, g in expected.items():
        assert stats.sum[name].dtype == torch.float32
        assert_close(stats.sum[name], g.sum(0), 0.03, name)
        assert_close(stats.abs_sum[name], g.abs().sum(0), 0.03, name)


@pytest.mark.medium
def test_compiled_models_run_eagerly_here():
    model, batch = build(), draw(4, 6)
    expected = sequence_stats(model, token_losses, batch)
    compiled = torch.compile(model, backend="eager")
    token_losses(compiled, batch)
    stats = sequence_stats(compiled, token_losses, batch, keep=True)
    assert not stats.slow
    torch.testing.assert_close(stats.gramian, expected.gramian)
    stats.combine(torch.ones(4))
    assert model.embedding.weight.grad is not None
    model.blocks[0].compile(backend="eager")
    torch.testing.assert_close(sequence_stats(model, token_losses, batch).abs_sum, expected.abs_sum)


def test_data_parallel_wrappers_are_refused():
    class DistributedDataParallel(nn.Module):
        pass

    with pytest.raises(ValueError, match="DistributedDataParallel is not supported"):
        sequence_stats(DistributedDataParallel(), token_losses, draw(B, T))


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped product")
def test_experts_that_torch_cannot_multiply_in_float64_are_named():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 8, 8, dtype=torch.float64))

        def forward(self, x):
            ends = torch.tensor([len(x) // 2, len(x)], dtype=torch.int32)
            return F.grouped_mm(x, self.weight.transpose(1, 2), offs=ends)

    model = nn.ModuleDict({"mlp": Experts()})

    def loss_fn(model, batch):
        return model["mlp"](batch.flatten(0, 1)).sum(1).view(batch.shape[:2])

    with pytest.raises(
        ValueError, match=r"^mlp: torch's grouped product of experts does not take float64; use float32"
    ):
        sequence_stats(model, loss_fn, torch.ones(B, T, 8, dtype=torch.float64))
