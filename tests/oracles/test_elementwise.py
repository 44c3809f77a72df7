"""AND-mask, GradDrop and agreement against the same on full group gradients."""

from functools import cache

import pytest
import torch

from zslx import CoordinateSums, RunView
from zslx.intervention.registry import load_intervention

load = cache(load_intervention)

# TorchJD's example: signs +−, ++, ++ over the coordinates.
J2 = torch.tensor([[-4.0, 1, 1], [6, 1, 1]], dtype=torch.float64)


def sums_of(jacobian: torch.Tensor, name: str = "layer.weight") -> CoordinateSums:
    return CoordinateSums(
        name=name,
        sum=jacobian.sum(0),
        abs_sum=jacobian.abs().sum(0),
        sign_sum=jacobian.sign().sum(0),
        count=len(jacobian),
    )


def combine(name: str, jacobian: torch.Tensor, tensor: str = "layer.weight", **settings) -> torch.Tensor:
    method = load(name, **settings)
    state = method.init_groups(len(jacobian), torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    gradient = method.combine(RunView(), sums_of(jacobian, tensor), state)
    assert torch.equal(before, torch.get_rng_state())
    assert gradient.dtype == jacobian.dtype and torch.isfinite(gradient).all()
    return gradient


def random_jacobian(seed: int, shape=(9, 6, 5)) -> torch.Tensor:
    jacobian = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.2
    jacobian[:, 0] = 0  # rows of tokens that are not in the batch
    return jacobian


@pytest.mark.parametrize("threshold", [0.0, 0.2, 1 / 3, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_and_mask(threshold, seed):
    jacobian = random_jacobian(seed)
    mask = jacobian.sign().mean(0).abs() >= threshold - 1e-9
    kept = mask * jacobian.sum(0)
    assert torch.equal(combine("and_mask", jacobian, threshold=threshold, inverse_sparsity=False), kept)
    share = mask[1:].double().mean()  # among coordinates with a gradient
    expected = kept / share if share > 0 else kept
    assert torch.allclose(combine("and_mask", jacobian, threshold=threshold), expected, rtol=1e-12)


def test_and_mask_counts_ties_in_thresholds():
    jacobian = torch.ones(15, 1, dtype=torch.float64)
    jacobian[:6] = -1  # |9 − 6| / 15 = 0.2
    assert combine("and_mask", jacobian, threshold=0.2) != 0


def test_graddrop_is_the_draw_on_full_gradients():
    for seed in range(5):
        jacobian = random_jacobian(seed)
        draw = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        purity = 0.5 * (1 + jacobian.sum(0) / jacobian.abs().sum(0))
        kept = torch.where(draw < purity, jacobian.clamp(min=0).sum(0), jacobian.clamp(max=0).sum(0))
        expected = torch.where(jacobian.abs().sum(0) > 0, kept, 0.0)
        assert torch.allclose(combine("graddrop", jacobian), expected, rtol=1e-12, atol=1e-14)
        mixed = 0.3 * jacobian.sum(0) + 0.7 * expected
        assert torch.allclose(combine("graddrop", jacobian, leak=0.3), mixed, rtol=1e-12, atol=1e-14)


def test_graddrop_purity_and_expectation():
    """P = .6, 1, 1 and E[d] = 2, 2, 2."""
    method = load("graddrop")
    state = method.init_groups(2, torch.Generator().manual_seed(0))
    draws = torch.stack([method.combine(RunView(), sums_of(J2), state) for _ in range(4000)])
    assert set(draws[:, 0].tolist()) == {6.0, -4.0}
    assert (draws[:, 1:] == 2).all()
    assert draws[:, 0].eq(6).double().mean().item() == pytest.approx(0.6, abs=0.031)  # 4 standard errors
    assert draws[:, 0].mean().item() == pytest.approx(2, abs=0.31)


@pytest.mark.parametrize("power", [-1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(2))
def test_agreement(power, seed):
    jacobian = random_jacobian(seed)
    total, whole = jacobian.sum(0), jacobian.abs().sum(0)
    expected = torch.where(whole > 0, total * (total.abs() / whole) ** power, 0.0)
    got = combine("agreement", jacobian, power=power)
    assert torch.allclose(got, expected, rtol=1e-12)
    normed = combine("agreement", jacobian, power=power, normalise="tensor")
    assert normed.norm().item() == pytest.approx(total.norm().item(), rel=1e-12)
    assert torch.allclose(normed / normed.norm(), got / got.norm(), rtol=1e-12)


def test_agreement_of_cancelled_coordinates_is_zero():
    jacobian = torch.tensor([[1.0, 1e-30, 0], [-1, 1e-30, 0]])
    for power in (-1.0, -0.5, 1.0):
        gradient = combine("agreement", jacobian, power=power)
        assert gradient[0] == 0 and gradient[2] == 0 and gradient[1] > 0


def test_agreement_warms_up_and_leaves_embeddings():
    jacobian = random_jacobian(0)
    full = combine("agreement", jacobian, power=1.0)
    first = combine("agreement", jacobian, power=1.0, warmup=4)
    assert torch.allclose(first, combine("agreement", jacobian, power=0.25), rtol=1e-12)
    method = load("agreement", power=1.0, warmup=4)
    assert torch.equal(method.combine(RunView(), sums_of(jacobian), {"step": 10}), full)
    for name in ("embedding.weight", "unembedding.weight", "lm_head.weight"):
        assert torch.equal(combine("agreement", jacobian, name, layers="body"), jacobian.sum(0))
    assert not torch.equal(combine("agreement", jacobian, layers="body"), jacobian.sum(0))


@pytest.mark.parametrize("name", ["and_mask", "graddrop", "agreement"])
def test_neutral_settings_are_the_plain_gradient(name):
    jacobian = random_jacobian(1)
    neutral = load(name).neutral
    assert torch.equal(combine(name, jacobian, **neutral), jacobian.sum(0))
