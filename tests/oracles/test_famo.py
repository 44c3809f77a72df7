"""FAMO against published values and TorchJD's."""

from functools import cache

import pytest
import torch

from zslx.intervention.base import RunView, StepStats, StepView
from zslx.intervention.registry import load_intervention

load = cache(load_intervention)


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_published_values():
    method = load("famo")
    state = method.init_groups(2, torch.Generator())
    weights = method.weights(values(1, 2), state)
    assert weights.tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-8)
    method.update(values(1, 2), values(0.5, 1.5), state)
    assert state["logits"].tolist() == pytest.approx([-0.025, 0.025], abs=1e-6)
    weights = method.weights(values(0.5, 1.5), state)
    assert weights.tolist() == pytest.approx([0.74050833, 0.25949167], abs=1e-6)
    method.update(values(0.5, 1.5), values(0.45, 1.2), state)
    assert state["logits"].tolist() == pytest.approx([-0.03589254, 0.03589254], abs=1e-6)


def test_torchjd_agrees():
    scalarization = pytest.importorskip("torchjd.scalarization")
    theirs, ours = scalarization.FAMO(5).double(), load("famo")
    state = ours.init_groups(5, torch.Generator())
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        before = (torch.rand(5, dtype=torch.float64, generator=generator) + 0.1).requires_grad_()
        after = torch.rand(5, dtype=torch.float64, generator=generator) + 0.1
        theirs(before).backward()
        assert torch.allclose(ours.weights(before, state), before.grad, rtol=1e-6)
        theirs.update(after)
        ours.update(before.detach(), after, state)
        assert torch.allclose(state["logits"], theirs._w.detach(), rtol=1e-6, atol=1e-12)


def view_of(losses: torch.Tensor) -> StepView:
    zeros = torch.zeros(losses.shape, dtype=torch.int64)
    domains = torch.tensor([0, 0, 2])
    return StepView(tokens=zeros, targets=zeros, losses=losses, domains=domains)


def test_observe_measures_the_groups():
    """Domains 0, 0, 2 of three: domain 1 is empty and keeps its logit but for the decay."""
    method = load("famo", groups="domain", weight_decay=0.0)
    state, expected = (method.init_groups(3, torch.Generator()) for _ in range(2))
    before, after = values(1, 2, 3)[:, None].repeat(1, 4), values(0.5, 1, 3)[:, None].repeat(1, 4)
    run = RunView(step=1, domains=("a", "b", "c"))
    method.observe(run, StepStats(view=view_of(before), post_losses=after), state)
    method.update(values(1, 0, 1), values(0.5, 0, 1), expected)
    assert torch.equal(state["logits"], expected["logits"])
    assert state["logits"][1] == 0
    weights = method.weights(values(1, 0, 1), state)
    assert weights[1] == 0 and weights.sum().item() == pytest.approx(1)
    assert weights[2] > weights[0]  # the domain whose loss did not fall


def test_hostile_losses():
    method = load("famo")
    with pytest.raises(ValueError, match="famo: group losses must be finite"):
        method.weights(values(1, float("nan")), method.init_groups(2, torch.Generator()))
    assert method.weights(values(0, 0), method.init_groups(2, torch.Generator())).tolist() == [1, 1]
    state = method.init_groups(2, torch.Generator())
    method.update(values(1, 2), values(0.5, 1.5), state)
    assert method.weights(values(1, 2, 3), state).shape == (3,)  # another K: afresh
