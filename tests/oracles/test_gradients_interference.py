"""Interference of tokens and positions, and the first-order decomposition, against one backward a token."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from test_gradients import assert_close, build, draw, token_losses

from zslx.gradients import (
    Totals,
    first_order,
    histogram,
    parameter_roles,
    position_interference,
    sequence_stats,
    token_changes,
    token_interference,
    totals,
)
from zslx.gradients.engine.token_sample import sample_tokens
from zslx.gradients.token_interference import jackknife_mean


def token_gradients(model, batch, mask=None):
    """name -> (N, *shape): one backward a token."""
    losses = token_losses(model, batch)
    losses = losses.flatten() if mask is None else losses[mask]
    parameters = dict(model.named_parameters())
    rows = [torch.autograd.grad(loss, list(parameters.values()), retain_graph=True) for loss in losses]
    return {name: torch.stack(c) for name, c in zip(parameters, zip(*rows, strict=True), strict=True)}


def ratio_and_mean(gradients, names):
    whole = torch.cat([gradients[n].sum(0).abs().flatten() for n in names])
    size = torch.cat([gradients[n].abs().sum(0).flatten() for n in names])
    live = size > 0
    return 1 - whole.sum() / size.sum(), 1 - (whole[live] / size[live]).mean(), 1 - live.double().mean()


@pytest.mark.parametrize("masked", [False, True])
def test_all_tokens_are_exact_in_both_forms(masked):
    model, batch = build(bias=True), draw(4, 6)
    mask = torch.arange(6) < torch.tensor([6, 2, 0, 4])[:, None] if masked else None
    loss_fn = (lambda m, b: (token_losses(m, b), mask)) if masked else token_losses
    gradients = token_gradients(model, batch, mask)
    measured = token_interference(model, loss_fn, batch, "all", chance=torch.Generator().manual_seed(4))
    assert measured.exact and measured.count == measured.num_tokens == (12 if masked else 24)
    for names in (measured.body, ["embedding.weight"], list(gradients)):
        ratio, mean, dead = ratio_and_mean(gradients, names)
        assert measured.ratio_of(names) == (pytest.approx(ratio.item(), rel=1e-10), 0.0)
        assert measured.mean_of(names) == pytest.approx(mean.item(), rel=1e-10)
        parts = sum((measured.by_parameter[n] for n in names), start=Totals())
        assert parts.dead_share == pytest.approx(dead.item(), abs=1e-12)
    signs = torch.randint(2, (24,), generator=torch.Generator().manual_seed(4)) * 2.0 - 1
    signs = signs if mask is None else signs[mask.flatten()]
    flipped = {n: g * signs.view(-1, *[1] * (g.ndim - 1)) for n, g in gradients.items()}
    expected = ratio_and_mean(flipped, measured.body)[0].item()
    assert measured.chance_ratio == pytest.approx(expected, rel=1e-10)
    assert all(role.body for name, role in parameter_roles(model).items() if name in measured.body)


def test_a_batch_in_pieces_gives_the_same():
    model, batch = build(), draw(5, 6)
    whole = token_interference(model, token_losses, batch, "all")
    pieces = token_interference(model, token_losses, batch, "all", sequences_at_once=2)
    assert pieces.ratio == pytest.approx(whole.ratio, rel=1e-12)
    assert pieces.mean == pytest.approx(whole.mean, rel=1e-12)
    assert pieces.num_tokens == 30


def test_sampled_numerator_is_exact_and_the_form_that_is_biased_is_withheld():
    model, batch = build(), draw(4, 12)
    exact = token_interference(model, token_losses, batch, "all")
    sampled = token_interference(model, token_losses, batch, 6)
    assert sampled.count == 8  # one token of each sequence a backward
    assert sampled.mean is None and sampled.ratio_se > 0
    for name in exact.by_parameter:
        expected = exact.by_parameter[name].abs_of_sum
        assert sampled.by_parameter[name].abs_of_sum == pytest.approx(expected, rel=1e-12)
    again = token_interference(model, token_losses, batch, 6)
    assert (again.ratio, again.ratio_se) == (sampled.ratio, sampled.ratio_se)
    other = token_interference(model, token_losses, batch, 6, generator=torch.Generator().manual_seed(9))
    assert other.ratio != sampled.ratio
    for bad in (0, -3, 2.5, "most"):
        with pytest.raises(ValueError, match="must be a number of tokens from 1, or 'all'"):
            token_interference(model, token_losses, batch, bad)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**31), st.one_of(st.none(), st.integers(1, 9)), st.data())
def test_samples_are_without_replacement_and_estimate_counts(B, T, seed, rounds, data):
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    lengths[0] = T
    mask = torch.arange(T) < lengths[:, None]
    sample = sample_tokens(mask, rounds, torch.Generator().manual_seed(seed))
    places = sample.sequence * T + sample.position
    assert len(places.unique()) == sample.count and bool(mask.flatten()[places].all())
    assert sample.weights.sum().item() == pytest.approx(int(mask.sum()))
    for r in range(sample.rounds):
        assert len(sample.sequence[sample.round == r].unique()) == int((sample.round == r).sum())
    if rounds is None:
        assert sample.count == sample.num_tokens == int(mask.sum())


def test_every_token_is_equally_likely():
    counts = torch.zeros(3, 7)
    for seed in range(3000):
        sample = sample_tokens(torch.ones(3, 7).bool(), 2, torch.Generator().manual_seed(seed))
        counts[sample.sequence, sample.position] += 1
    expected = 3000 * 2 / 7
    # χ² over 21 cells (row sums are fixed: 18 free): 99.9 % point 42.3.
    assert ((counts - expected) ** 2 / expected / (1 - 2 / 7)).sum() < 42.3


@pytest.mark.slow
def test_interval_of_the_sampled_ratio_covers_the_exact_value():
    """200 seeds, ±1.96 standard errors, n = 256 and 1,024 of 4,096 tokens: 90 to 98 %; n < N biased by < se/4."""
    model = build(torch.float32, d_model=24, n_layers=2, n_heads=2, vocab_size=64, max_positions=128)
    generator = torch.Generator().manual_seed(0)
    # Sequences of different entropy, so that neither tokens nor sequences are alike.
    sharpness = torch.rand(32, 1, generator=generator) * 2 + 0.2
    shares = (1 / torch.arange(1.0, 65))[None] ** sharpness
    ids = torch.multinomial(shares, 129, replacement=True, generator=generator)
    batch = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    exact = token_interference(model, token_losses, batch, "all", mean=False)
    l1 = torch.stack([exact.l1[name] for name in exact.body]).sum(0)
    table = torch.zeros(32, 128, dtype=torch.float64)
    table[exact.sample.sequence, exact.sample.position] = l1
    numerator = sum(exact.by_parameter[name].abs_of_sum for name in exact.body)
    # What token_interference does with the same draws, without its backwards; compared once below.
    for n in (256, 1024):
        covered, errors = 0, []
        for seed in range(200):
            sample = sample_tokens(torch.ones(32, 128).bool(), n // 32, torch.Generator().manual_seed(seed))
            z = sample.weights * table[sample.sequence, sample.position]
            ratio = 1 - numerator / z.sum().item()
            se = (1 - ratio) * sample.relative_error(z)
            errors.append(ratio - exact.ratio)
            covered += abs(errors[-1]) <= 1.96 * se
        assert 180 <= covered <= 196, (n, covered)
        assert abs(sum(errors) / 200) < se / 4
    drawn = token_interference(model, token_losses, batch, 256, generator=torch.Generator().manual_seed(7))
    sample = sample_tokens(torch.ones(32, 128).bool(), 8, torch.Generator().manual_seed(7))
    z = sample.weights * table[sample.sequence, sample.position]
    assert drawn.ratio == pytest.approx(1 - numerator / z.sum().item(), rel=1e-4)
    assert drawn.ratio_se == pytest.approx((1 - drawn.ratio) * sample.relative_error(z), rel=1e-3)
    whole = token_interference(model, token_losses, batch, "all")
    assert drawn.mean == pytest.approx(whole.mean, abs=0.004)


def test_the_jackknife_removes_a_bias_of_order_one_over_n():
    generator = torch.Generator().manual_seed(0)
    total = torch.full((2000,), 4.0, dtype=torch.float64)
    size = torch.rand(64, 2000, generator=generator, dtype=torch.float64) * 2  # mean 1 a token, 64 tokens
    exact = 1 - (4 / size.sum(0)).mean().item()
    rows = size[torch.randperm(64, generator=generator)[:16]] * 4
    parts = [rows[i : i + 2].sum(0) for i in range(0, 16, 2)]
    plain = 1 - (4 / rows.sum(0)).mean().item()
    assert abs(jackknife_mean(total, parts, 16 / 64) - exact) < abs(plain - exact) / 2
    assert jackknife_mean(total, parts[:3], 16 / 64) is None


def test_sequence_interference_and_histogram():
    model, batch = build(), draw(5, 6)
    stats = sequence_stats(model, token_losses, batch)
    parts = totals(stats.sum, stats.abs_sum)
    losses = token_losses(model, batch)
    p = model.blocks[0].mlp.up.weight
    g = torch.stack([torch.autograd.grad(losses[i].sum(), p, retain_graph=True)[0] for i in range(5)])
    c = g.sum(0).abs() / g.abs().sum(0)
    one = parts["blocks.0.mlp.up.weight"]
    assert one.mean == pytest.approx(1 - c.mean().item(), rel=1e-10)
    assert one.ratio == pytest.approx(1 - (g.sum(0).abs().sum() / g.abs().sum()).item(), rel=1e-10)
    counts = histogram(stats.sum, stats.abs_sum, ["blocks.0.mlp.up.weight"])
    assert counts == [int(x) for x in torch.histc(c.float(), 100, 0, 1)] and sum(counts) == p.numel()


def test_position_proxy_is_the_sum_of_the_absolute_outer_products():
    model, batch = build(bias=True, norm="layernorm", norm_gain=True, positions="learned"), draw(4, 6)
    seen = {}
    layers = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    handles = []
    for name, layer in layers.items():

        def hook(module, args, out, name=name):
            out.register_hook(lambda grad: seen.__setitem__(name, (args[0].detach(), grad)))

        handles.append(layer.register_forward_hook(hook))
    token_losses(model, batch).mean().backward()
    for handle in handles:
        handle.remove()
    proxy = position_interference(model, token_losses, batch)
    assert proxy.count == 24 and "embedding.weight" in proxy.by_parameter
    for name, (x, delta) in seen.items():
        outer = delta.flatten(0, 1)[:, :, None] * x.flatten(0, 1)[:, None, :]
        whole, size = outer.sum(0).abs(), outer.abs().sum(0)
        found = proxy.by_parameter["embedding.weight" if name == "unembedding" else name + ".weight"]
        assert found.ratio == pytest.approx(1 - (whole.sum() / size.sum()).item(), rel=1e-10)
        assert found.mean == pytest.approx(1 - (whole / size)[size > 0].mean().item(), rel=1e-10)
    assert "norm.weight" in proxy.left_out and "position_embedding.weight" in proxy.left_out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_first_order_decomposition(tied, masked):
    model, batch = build(tied=tied, bias=True), draw(4, 6)
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 4])[:, None] if masked else torch.ones(4, 6).bool()
    generator = torch.Generator().manual_seed(2)
    update = {
        name: 1e-3 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in model.named_parameters()
    }
    gradients = token_gradients(model, batch, mask)
    p = torch.cat([(gradients[n] * update[n]).flatten(1) for n in gradients], dim=1)
    found = first_order(model, lambda m, b: (token_losses(m, b), mask), batch, update)
    assert_close(found.change[mask], p.sum(1), 1e-10, "change")
    assert not found.change[~mask].any()
    assert found.C_g == pytest.approx((p.sum(0).abs().sum() / p.abs().sum()).item(), rel=1e-10)
    assert found.C_ug == pytest.approx((p.sum(1).abs().sum() / p.abs().sum()).item(), rel=1e-10)
    assert found.C_uG == pytest.approx((p.sum().abs() / p.sum(0).abs().sum()).item(), rel=1e-10)
    magnitude, interference = found.M, found.D
    assert magnitude == pytest.approx(p.sum(1).abs().mean().item(), rel=1e-10)
    # Two routes to the same number: forward mode a token, sums over coordinates.
    assert interference == pytest.approx(1 - found.C_g * found.C_uG / found.C_ug, rel=1e-10)
    before = token_losses(model, batch)
    moved = build(tied=tied, bias=True)
    with torch.no_grad():
        for name, q in moved.named_parameters():
            q += update[name]
    true = (token_losses(moved, batch) - before)[mask]
    assert_close(found.true_change[mask], true, 1e-10, "true change")
    assert found.error == pytest.approx(((true - p.sum(1)).abs().sum() / true.abs().sum()).item(), rel=1e-8)
    assert abs(found.true_change.sum().abs().item() / int(mask.sum()) - found.true_M * (1 - found.true_D)) < 1e-14


def test_sampling_leaves_the_quotient_exact_and_both_methods_agree():
    model, batch = build(), draw(4, 6)
    update = {name: 1e-3 * torch.ones_like(p) for name, p in model.named_parameters()}
    exact = first_order(model, token_losses, batch, update)
    sampled = first_order(model, token_losses, batch, update, n=8)
    assert sampled.C_g != exact.C_g and sampled.relative_error > 0 == exact.relative_error
    assert sampled.C_g / sampled.C_ug == pytest.approx(exact.C_g / exact.C_ug, rel=1e-12)
    change, true = token_changes(model, token_losses, batch, update, method="difference")
    assert_close(change, exact.change, 1e-7, "central difference")
    assert_close(true, exact.true_change, 1e-12, "true change")
    with pytest.raises(ValueError, match="method='backward': allowed are forward, difference"):
        first_order(model, token_losses, batch, update, method="backward")
    with pytest.raises(ValueError, match=r"update: embedding.weight has shape \(2,\)"):
        first_order(model, token_losses, batch, {"embedding.weight": torch.ones(2)})
    some = first_order(model, token_losses, batch, {"embedding.weight": update["embedding.weight"]})
    assert set(some.sum_of_abs) == {"embedding.weight"}
