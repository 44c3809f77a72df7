"""Group gradients of the engine against plain autograd, one backward a sequence, in float64 and float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zslx.gradients import group_stats, sequence_stats
from zslx.model.transformer import ModelConfig, Transformer

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
    gramian = sum(g.double().view(count, -1) @ g.double().view(count, -1).T for g in expected.values())
    for budget in (None, 0):
        stats = sequence_stats(model, loss_fn, batch, groups=groups, keep=True, memory_budget=budget, **options)
        assert stats.slow == tuple(slow)
        combined = stats.combined(weights)
        assert_close(stats.gramian.double(), gramian, tolerance, "gramian")
        assert_close(stats.norms.double(), gramian.diagonal().sqrt(), tolerance, "norms")
        for name, g in expected.items():
            assert not (name in stats.unused and g.any()), name
            if name in stats.unused:
                assert not stats.sum[name].any() and not stats.abs_sum[name].any() and not stats.sign_sum[name].any()
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


@pytest.mark.parametrize("variant", ["tied", "biased"])
@pytest.mark.parametrize("tokens", ["one token", "few tokens"])
def test_repeated_tokens_meet_in_the_tied_matrix(variant, tokens):
    ids, targets = draw(4, 6)
    ids = ids * 0 + 3 if tokens == "one token" else ids % 3
    assert_matches_loop(build(**VARIANTS[variant]), token_losses, (ids, targets))


@pytest.mark.parametrize("ids", [[0, 0, 1, 1], [1, 0, 1, 0], [2, 0, 2, 2], [0, 0, 0, 0]])
@pytest.mark.parametrize("variant", ["tied", "biased"])
def test_groups_of_sequences(ids, variant):
    groups = torch.tensor(ids), max(ids) + 1
    stats = assert_matches_loop(build(**VARIANTS[variant]), token_losses, draw(4, 6), groups)
    losses = token_losses(build(**VARIANTS[variant]), draw(4, 6))
    share = torch.stack([losses[groups[0] == k].sum() / losses.numel() for k in range(groups[1])])
    assert_close(stats.group_losses, share, 1e-12, "group losses")
    assert stats.group_losses.sum().item() == pytest.approx(losses.mean().item())


def test_padded_sequences_count_their_own_tokens_only():
    lengths = torch.tensor([6, 1, 3, 4])
    mask = torch.arange(6) < lengths[:, None]
    stats = assert_matches_loop(build(), lambda m, b: (token_losses(m, b), mask), draw(4, 6))
    assert stats.num_tokens == 14
    model = build()
    losses = token_losses(model, draw(4, 6))
    (losses[mask].mean()).backward()
    for name, p in model.named_parameters():
        assert_close(stats.sum[name], p.grad, 1e-10, name)


def test_token_weights_pass_through():
    weights = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert_matches_loop(build(), lambda m, b: token_losses(m, b) * weights, draw(4, 6))


def test_frozen_and_unused_parameters():
    model = build(bias=True, norm="layernorm", norm_gain=True)
    model.blocks[0].attention.qkv.weight.requires_grad_(False)
    model.blocks[1].mlp_norm.weight.requires_grad_(False)
    model.blocks[0].attention.out.bias.requires_grad_(False)
    model.spare = nn.Linear(3, 3).double()
    stats = assert_matches_loop(model, token_losses, draw(4, 6))
    assert stats.unused == ("spare.weight", "spare.bias") and "blocks.0.attention.qkv.weight" not in stats.sum
    stats = sequence_stats(model, token_losses, draw(4, 6), keep=True)
    stats.combine(torch.ones(4, dtype=torch.float64))
    assert model.spare.weight.grad is None and model.blocks[1].mlp_norm.weight.grad is None


def test_a_subset_of_the_parameters():
    model, batch = build(bias=True), draw(4, 6)
    everything = sequence_stats(model, token_losses, batch)
    names = ["blocks.1.mlp.up.weight", "blocks.0.attention.out.bias"]
    for selection in (names, lambda name, p: name in names):
        some = sequence_stats(model, token_losses, batch, parameters=selection)
        assert set(some.sum) == set(names)
        for name in names:
            torch.testing.assert_close(some.sum[name], everything.sum[name])
        torch.testing.assert_close(some.gramian, sum(everything.gramians[name] for name in names))
    with pytest.raises(ValueError, match=r"parameters: nonsense not among"):
        sequence_stats(model, token_losses, batch, parameters=["nonsense"])


def test_combining_adds_to_grad_as_a_backward_does():
    model, batch, other = build(), draw(4, 6), draw(4, 6, seed=5)
    token_losses(model, batch).mean().backward()
    token_losses(model, other).mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for part in (batch, other):
        stats = sequence_stats(model, token_losses, part, keep=True)
        before = {name: p.grad for name, p in model.named_parameters()}
        stats.combine(torch.ones(4))
        assert all(p.grad is not None for p in model.parameters()), before
    for name, p in model.named_parameters():
        assert_close(p.grad, expected[name], 1e-10, name)


def test_nothing_outside_the_result_changes():
    model, batch = build(), draw(4, 6)
    state = torch.get_rng_state()
    parameters = [p.clone() for p in model.parameters()]
    generator = torch.Generator().manual_seed(0)
    sequence_stats(model, token_losses, batch, keep=True, chance=generator)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), parameters, strict=True))


def test_chance_level_is_the_sum_with_the_drawn_signs():
    model, batch = build(), draw(5, 6)
    expected = loop(model, token_losses, batch)
    signs = torch.randint(2, (5,), generator=torch.Generator().manual_seed(11)) * 2.0 - 1
    stats = sequence_stats(model, token_losses, batch, chance=torch.Generator().manual_seed(11))
    for name, g in expected.items():
        assert_close(stats.chance_sum[name], torch.tensordot(signs.double(), g, dims=1), 1e-10, name)


def test_a_budget_in_between_keeps_some_gradients_whole():
    model, batch = build(), draw(4, 2)  # short: output gradients and activations are the smaller ones
    whole = sequence_stats(model, token_losses, batch, keep=True)
    parts = sequence_stats(model, token_losses, batch, keep=True, memory_budget=0)
    some = sequence_stats(model, token_losses, batch, keep=True, memory_budget=whole.kept_bytes // 2)
    assert parts.kept_bytes < some.kept_bytes <= whole.kept_bytes // 2 + parts.kept_bytes
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    for name, g in whole.combined(weights).items():
        assert_close(some.combined(weights)[name], g, 1e-10, name)


@pytest.mark.parametrize("K", [1, 3])
def test_groups_of_tokens(K):
    model, batch = build(bias=True), draw(4, 6)
    ids = torch.randint(K, (4, 6), generator=torch.Generator().manual_seed(3))
    losses = token_losses(model, batch)
    parameters = dict(model.named_parameters())
    rows = [
        torch.autograd.grad((losses * (ids == k)).sum() / 24, list(parameters.values()), retain_graph=True)
        for k in range(K)
    ]
    expected = {name: torch.stack(c) for name, c in zip(parameters, zip(*rows, strict=True), strict=True)}
    gramian = sum(g.flatten(1) @ g.flatten(1).T for g in expected.values())
    stats = group_stats(model, token_losses, batch, (ids, K), keep=True)
    weights = torch.randn(K, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert_close(stats.gramian, gramian, 1e-10, "gramian")
    proxy = group_stats(model, token_losses, batch, (ids, K), want=("gramian",), proxy=True)
    head = (losses * 0 + 1, build(bias=True, tied=False))[1]
    head.load_state_dict(model.state_dict())
    head_rows = [
        torch.autograd.grad((token_losses(head, batch) * (ids == k)).sum() / 24, head.unembedding.weight)[0]
        for k in range(K)
    ]
    head_gramian = torch.stack([torch.stack([(a * b).sum() for b in head_rows]) for a in head_rows])
    assert_close(proxy.gramian, head_gramian, 1e-10, "proxy gramian")
    by_proxy = proxy.combined(weights)
    for name, g in expected.items():
        assert_close(stats.sum[name], g.sum(0), 1e-10, name)
        assert_close(stats.abs_sum[name], g.abs().sum(0), 1e-10, name)
        assert_close(stats.combined(weights)[name], torch.tensordot(weights, g, dims=1), 1e-10, name)
        assert_close(by_proxy[name], torch.tensordot(weights, g, dims=1), 1e-10, name)
    share = torch.stack([(losses * (ids == k)).sum() / 24 for k in range(K)])
    assert_close(stats.group_losses, share, 1e-12, "group losses")


def test_torchjd_agrees_where_it_is_right():
    """Untied only: for tied matrices TorchJD 0.18 drops the cross term."""
    autogram = pytest.importorskip("torchjd.autogram")
    model, batch = build(tied=False), draw(4, 6)
    engine = autogram.Engine(model, batch_dim=0)
    gramian = engine.compute_gramian(token_losses(model, batch).sum(1) / 24)
    assert_close(sequence_stats(model, token_losses, batch).gramian, gramian, 1e-10, "gramian")


def test_published_values_of_a_linear_layer_and_an_embedding():
    linear = nn.Linear(2, 2, bias=False).double()
    a = torch.tensor([[[1.0, 2], [3, -1]], [[0, 1], [1, 1]]], dtype=torch.float64)
    delta = torch.tensor([[[1.0, 0], [2, 1]], [[-1, 1], [0.5, 0]]], dtype=torch.float64)
    stats = sequence_stats(linear, lambda m, b: (m(b) * delta).sum(-1) * 4, a)
    assert_close(stats.gramian, torch.tensor([[59, 2.5], [2.5, 1.5]]).double(), 1e-12, "gramian")
    assert_close(stats.norms, torch.tensor([7.68114575, 1.22474487], dtype=torch.float64), 1e-8, "norms")
    embedding = nn.Embedding(3, 1).double()  # the example in the documentation of Opacus
    ids = torch.tensor([[1, 1], [2, 0], [2, 0]])
    back = torch.tensor([[0.2, 0.2], [0.3, 0.1], [0.3, 0.1]], dtype=torch.float64)
    stats = sequence_stats(embedding, lambda m, b: m(b).squeeze(-1) * back * 6, ids)
    assert_close(stats.norms, torch.tensor([0.4, 0.31622776, 0.31622776], dtype=torch.float64), 2e-8, "norms")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"groups": (torch.tensor([0, 1, 5, 0]), 3)}, r"groups: ids must lie in 0\.\.2"),
        (
            {"groups": (torch.tensor([0, 1]), 2)},
            r"groups: ids must be whole numbers of shape \(4,\), got torch.int64 \(2,\)",
        ),
        ({"want": ("sum", "nonsense")}, "want: nonsense unknown; allowed are sum"),
        ({"parameters": []}, "parameters: none is left"),
    ],
)
def test_errors_name_what_is_wrong(bad, message):
    with pytest.raises(ValueError, match=message):
        sequence_stats(build(), token_losses, draw(4, 6), **bad)


def test_wrong_losses_and_weights_are_refused():
    model, batch = build(), draw(4, 6)
    with pytest.raises(ValueError, match=r"must return losses \(B, T\)"):
        sequence_stats(model, lambda m, b: token_losses(m, b).mean(), batch)
    with pytest.raises(ValueError, match="losses of 2 sequences for a batch of 4"):
        sequence_stats(model, lambda m, b: token_losses(m, b)[:2], batch)
    with pytest.raises(ValueError, match="the mask leaves no token"):
        sequence_stats(model, lambda m, b: (token_losses(m, b), torch.zeros(4, 6)), batch)
    with pytest.raises(ValueError, match="not kept"):
        sequence_stats(model, token_losses, batch).combine(torch.ones(4))
    with pytest.raises(ValueError, match=r"weights of shape \(3,\), expected \(4,\)"):
        sequence_stats(model, token_losses, batch, keep=True).combine(torch.ones(3))


def test_group_stats_goes_by_the_shape_of_the_ids():
    model, batch = build(), draw(4, 6)
    ids = torch.tensor([0, 1, 0, 1])
    by_sequence = group_stats(model, token_losses, batch, (ids, 2))
    by_token = group_stats(model, token_losses, batch, (ids[:, None].expand(4, 6), 2))
    assert_close(by_token.gramian, by_sequence.gramian, 1e-10, "gramian")
    own = sequence_stats(model, token_losses, batch).gramian
    assert torch.equal(group_stats(model, token_losses, batch).gramian, own)
    with pytest.raises(ValueError, match=r"ids must be whole numbers of shape \(4, 6\), got torch.int64 \(4, 5\)"):
        group_stats(model, token_losses, batch, (torch.zeros(4, 5, dtype=torch.int64), 2))
    with pytest.raises(ValueError, match="only groups of tokens"):
        group_stats(model, token_losses, batch, (ids, 2), proxy=True)
