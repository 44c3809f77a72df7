"""Methods that learn the domains' shares: each against its formula, and in a world whose right mixture is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from zslx import RunView, StepView, load_intervention
from zslx.intervention.base import StepStats


def run_of(count: int, **values) -> RunView:
    """The view of a run with `count` domains."""
    sizes = [1000] * count
    return RunView(**({"domains": [f"d{i}" for i in range(count)], "domain_tokens": sizes, "steps": 1000} | values))


def fresh(method, run: RunView) -> dict:
    return method.init_state(run, torch.Generator().manual_seed(0))


def stats_of(losses: Tensor, domains: list[int]) -> StepStats:
    """What a method sees of a batch with these losses (B, T)."""
    ids = torch.zeros(losses.shape, dtype=torch.int64)
    return StepStats(view=StepView(tokens=ids, targets=ids, losses=losses, domains=torch.tensor(domains)))


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_odm_draws_by_the_rewards_and_keeps_the_least_share():
    method, run = load_intervention("odm", warmup=0.0), run_of(3, step=100)
    state = fresh(method, run) | {"rewards": doubles(10.0, 8.0, 6.0)}
    method.observe(run, stats_of(torch.zeros(3, 2), [0, 1, 2]), state)
    epsilon = [np.sqrt(np.log(3) / (3 * t)) for t in (99, 100)]
    assert epsilon[1] == pytest.approx(0.0605148, abs=1e-7)
    odds = np.exp(epsilon[0] * np.array([10.0, 8.0, 6.0]))
    expected = (1 - 3 * epsilon[1]) * odds / odds.sum() + epsilon[1]
    assert method.mixture(run, state) == pytest.approx(expected, rel=1e-12)


def test_odm_rewards_a_loss_by_the_inverse_of_its_share():
    method, run = load_intervention("odm", warmup=0.0), run_of(3, step=1)
    state = fresh(method, run)
    losses = torch.tensor([[1.0, 3.0], [4.0, 4.0], [2.0, 2.0]])
    method.observe(run, stats_of(losses, [0, 0, 2]), state)
    assert state["rewards"].tolist() == pytest.approx([0.9, 0.0, 0.6])  # 3 / 10 / (1/3), and 2 / 10 / (1/3)
    assert method.mixture(run, state) == pytest.approx([1 / 3] * 3)  # ε = 1/3 until step 4
    run.step = 5
    state["shares"] = doubles(0.5, 0.25, 0.25)
    method.observe(run, stats_of(losses, [1, 0, 2]), state)
    assert state["rewards"].tolist() == pytest.approx([0.9 + 0.8, 0.8, 0.6 + 0.8])


def test_odm_learns_nothing_in_its_warmup():
    method, run = load_intervention("odm", warmup=0.1), run_of(2, step=100, steps=1000)
    state = fresh(method, run)
    method.observe(run, stats_of(torch.tensor([[1.0], [5.0]]), [0, 1]), state)
    assert state["rewards"].tolist() == [0.0, 0.0] and method.mixture(run, state) == [0.5, 0.5]
