"""Methods that learn the domains' shares: each against its formula, and in a world whose right mixture is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from interventions.data_mixing.ado import at_least
from interventions.data_mixing.power_law import fit_power_law, objective
from zslx import RunView, StepView, load_intervention
from zslx.intervention.base import StepStats
from zslx.testing import Subject
from zslx.testing.laws import resumes


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


def test_doremi_has_the_reference_shares_and_weighs_by_them():
    run = run_of(3)
    tokens = torch.zeros(4, 2, dtype=torch.int64)
    view = StepView(
        tokens=tokens,
        targets=tokens,
        losses=torch.tensor([[2.0, 1.0], [1.8, 1.6], [0.5, 0.5], [2.5, 1.0]], dtype=torch.float64),
        domains=torch.tensor([0, 1, 2, 0]),
    )
    # Excess losses: 0 counts where the reference is worse. Means .1, .4 and 0.
    view.reference_losses = torch.tensor([[1.6, 2.0], [1.4, 1.2], [0.9, 0.8], [2.6, 1.0]], dtype=torch.float64)
    reference = {1e-4: (0.46042419, 0.37291093, 0.16666488), 1e-3: (0.4603098, 0.3728753, 0.1668149)}
    for smoothing, expected in reference.items():
        method = load_intervention("doremi", smoothing=smoothing)
        state = fresh(method, run) | {"shares": doubles(0.5, 0.3, 0.2)}
        weights = method.token_weights(run, view, state)
        assert state["excess"].tolist() == pytest.approx([0.1, 0.4, 0.0])
        assert state["shares"].tolist() == pytest.approx(expected, abs=1e-7)
        assert (weights[:, 0] / weights[0, 0]).tolist() == pytest.approx(
            [1.0, expected[1] / expected[0], expected[2] / expected[0], 1.0], abs=1e-6
        )
        assert torch.equal(weights[:, 0], weights[:, 1])
    assert method.metrics(run, state)["mean_share/d0"] == pytest.approx(0.4603098, abs=1e-7)
    view.domains = torch.tensor([0, 0, 2, 0])  # none of domain 1: its excess stays
    method.token_weights(run, view, state)
    assert state["excess"][1] == pytest.approx(0.4)


@pytest.mark.parametrize("law", [(3.0, 0.8, 0.3), (4.0, 1.0, 0.5), (1.5, 0.7, 0.2)])
def test_a_planted_power_law_is_found(law):
    a, e, alpha = law
    n = np.arange(50, 4000, 16.0)
    noise = np.random.default_rng(0).normal(0, 2e-3, len(n))
    losses = (np.exp(e) + np.exp(a) / n**alpha) * np.exp(noise)
    found = fit_power_law(n, losses)
    assert objective(found, np.log(n), np.log(losses))[0] <= objective(np.array(law), np.log(n), np.log(losses))[0]
    slopes = [p[2] * np.exp(p[0]) * 4000 ** (-p[2] - 1) for p in (found, law)]
    assert slopes[0] == pytest.approx(slopes[1], rel=0.15)


def test_the_gradient_of_the_fit_is_that_of_its_objective():
    log_n, log_losses = np.log(np.array([10.0, 50.0, 300.0])), np.log(np.array([5.0, 3.0, 2.9]))
    for point in (np.array([2.0, 1.0, 0.4]), np.array([7.0, 0.2, 0.9])):
        step = 1e-6 * np.eye(3)
        numeric = [
            (objective(point + d, log_n, log_losses)[0] - objective(point - d, log_n, log_losses)[0]) / 2e-6
            for d in step
        ]
        assert objective(point, log_n, log_losses)[1] == pytest.approx(numeric, rel=1e-5, abs=1e-9)


def test_ado_draws_by_the_slopes_of_the_laws():
    method, run = load_intervention("ado", skip=1000), run_of(3, step=200, seq_len=4)
    state = fresh(method, run)
    laws = np.array([[3.0, 0.8, 0.5], [2.0, 1.0, 0.01], [4.0, 0.6, 0.3]])
    mean, drawn = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.25, 0.25])
    state |= {"laws": torch.from_numpy(laws), "mean": torch.from_numpy(mean), "drawn": torch.from_numpy(drawn)}
    state["history"][:199, 0] = 4.0
    method.observe(run, stats_of(torch.ones(4, 4), [0, 0, 1, 2]), state)
    n, h = 800.0, 0.9 * drawn + 0.1 * np.array([0.5, 0.25, 0.25])
    slope = np.maximum(laws[:, 2], 0.05) * np.exp(laws[:, 0]) / n ** laws[:, 2] / n
    rho = slope / 3 * np.sqrt(h)
    rho = np.maximum(rho / rho.sum(), 0.01)
    rho /= rho.sum()
    assert method.mixture(run, state) == pytest.approx(0.9 * mean + 0.1 * rho, rel=1e-12)
    assert state["mean"].numpy() == pytest.approx((1 - 1 / 202) * mean + rho / 202, rel=1e-12)
    assert state["history"][199].tolist() == [4.0, 1.0, 1.0, 1.0]
    raised = at_least(doubles(0.9, 0.099, 0.001), 0.01)
    assert raised.tolist() == pytest.approx([0.89197225, 0.09811695, 0.0099108], abs=1e-7)


def test_ado_begins_with_its_prior():
    run = run_of(2, domain_tokens=[300, 100])
    for prior, shares in (("equal", [0.5, 0.5]), ("size", [0.75, 0.25])):
        method = load_intervention("ado", prior=prior)
        assert method.mixture(run, fresh(method, run)) == shares


@pytest.mark.medium
@pytest.mark.usefixtures("cache")
def test_ado_is_the_same_run_when_it_is_resumed_between_fits(tmp_path):
    subject = Subject("ado", tmp_path, skip=1, every=2)
    resumes(subject)
    last = json.loads(subject.run().records["steps.jsonl"].splitlines()[-1])
    assert last["ado/share/code"] != 0.5
