"""Controls: what a placebo permutes and what it keeps, and random weights of a given spread."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interventions.controls.random import with_spread
from zslx import CoordinateSums, RunView, StepView
from zslx.intervention.composed import Methods
from zslx.intervention.registry import load_intervention

load = cache(load_intervention)


def sums_of_noise(groups: int = 16, coordinates: int = 20_000) -> CoordinateSums:
    """Gradients that nearly cancel at many coordinates, as those of a batch do."""
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(groups, coordinates, generator=generator, dtype=torch.float64)
    g += 0.1 * torch.randn(1, coordinates, generator=generator, dtype=torch.float64)
    return CoordinateSums(name="w", sum=g.sum(0), abs_sum=g.abs().sum(0), sign_sum=g.sign().sum(0), count=groups)


def combine(name: str, sums: CoordinateSums, **settings) -> torch.Tensor:
    method = load(name, **settings)
    run = RunView(batch_size=sums.count)
    return method.combine(run, sums, method.init_state(run, torch.Generator().manual_seed(0)))


ELEMENTWISE = [("graddrop", {}), ("graddrop", {"leak": 0.4}), ("and_mask", {}), ("agreement", {}),
               ("agreement", {"power": -1.0}), ("agreement", {"power": 0.5})]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), ELEMENTWISE)
def test_an_elementwise_placebo_is_as_large_as_its_method_and_no_few_coordinates(name, settings):
    sums = sums_of_noise()
    true, placebo = combine(name, sums, **settings), combine(f"placebo:{name}", sums, **settings)
    assert not torch.equal(true, placebo) and 0.6 < float(placebo.norm() / true.norm()) < 1.4
    squares = placebo.square()
    assert squares.topk(20).values.sum() < 0.05 * squares.sum()


@pytest.mark.parametrize(("name", "settings"), ELEMENTWISE)
def test_what_a_mask_says_gives_the_combined_gradient_back(name, settings):
    sums, method = sums_of_noise(), load(name, **settings)
    true = combine(name, sums, **settings)
    assert torch.allclose(method.apply_mask(sums, method.mask(sums, true)), true, rtol=1e-9, atol=1e-12)


def test_the_placebo_of_graddrop_keeps_as_many_parts_of_either_sign():
    sums = sums_of_noise()
    mask, placebo = (load("graddrop").mask(sums, combine(n, sums)) for n in ("graddrop", "placebo:graddrop"))
    assert torch.equal(mask.sort().values, placebo.sort().values) and not torch.equal(mask, placebo)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_the_placebo_of_dropped_sequences_drops_sequences(level):
    losses = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(6, 5, dtype=torch.int64)
    run, view = RunView(step=9, steps=9), StepView(tokens=ids, targets=ids, losses=losses, domains=ids[:, 0])
    method = load("placebo:truncation", drop=0.4, start=1, level=level)
    weights = method.token_weights(run, view, method.init_state(run, torch.Generator().manual_seed(3)))
    whole = bool((weights == weights[:, :1]).all())
    assert whole == (level == "sequence") and 0 < int(weights.sum()) < 30


@given(st.integers(1, 40), st.floats(0, 8), st.integers(0, 99))
def test_random_weights_have_the_spread_that_was_asked_for(groups, spread, seed):
    weights = with_spread(np.random.default_rng(seed).normal(size=groups), spread)
    assert (weights >= 0).all() and weights.mean() == pytest.approx(1)
    most = max(0.0, groups - 1) ** 0.5
    if spread < 0.95 * most:
        assert weights.std() == pytest.approx(spread, abs=1e-6)
    elif spread > most:
        assert weights.std() <= most + 1e-9 and weights.std() >= 0.99 * most


def test_a_signed_method_may_turn_the_step_around():
    """AdaCons on a long gradient and a short one against it: a negative total, which other methods may not have."""
    jacobian = torch.tensor([[10.0, 0.0], [-0.05, 0.1]], dtype=torch.float64)
    methods = Methods([load("adacons")], RunView(step=1, batch_size=2))
    weights = methods.group_weights(jacobian @ jacobian.T, torch.ones(2, dtype=torch.float64))
    assert weights.sum() < 0
