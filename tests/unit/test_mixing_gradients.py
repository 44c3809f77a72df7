"""Methods that learn the domains' shares from gradients: each against its formula on explicit gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from interventions.data_mixing.domain_gradients import without_noise
from interventions.data_mixing.interference_mixing import agreement, least_conflict
from zslx import RunView, load_intervention

DOMAINS, EACH = 3, 4


def run_of(gramian, variance=None, losses=None, **values) -> RunView:
    """The view of a run after these were measured on a control set with EACH sequences a domain."""
    count = len(gramian)
    return RunView(
        step=1,
        batch_size=count * EACH,
        domains=[f"d{i}" for i in range(count)],
        domain_gramian=torch.as_tensor(np.array(gramian, dtype=float)),
        domain_variance=torch.as_tensor(np.zeros(count) if variance is None else np.array(variance, dtype=float)),
        domain_losses=losses,
        control_sequences=[EACH] * count,
        **values,
    )


def learned(method, run: RunView, **state) -> dict:
    kept = method.init_state(run, torch.Generator().manual_seed(0))
    kept |= {key: torch.tensor(value, dtype=torch.float64) for key, value in state.items()}
    method.observe(run, None, kept)
    return kept


def sequences(seed: int) -> np.ndarray:
    """Gradients (D, n, P) of sequences: a direction of the domain's own, a common one, and noise."""
    draws = np.random.default_rng(seed)
    common, own = draws.normal(size=5), draws.normal(size=(DOMAINS, 1, 5))
    return common + own + draws.normal(size=(DOMAINS, EACH, 5)) * np.array([0.5, 1, 2])[:, None, None]


def measured(gradients: np.ndarray, **values) -> RunView:
    """The view of a run on whose control set the sequences have these gradients."""
    means = gradients.mean(1)
    variance = ((gradients - means[:, None]) ** 2).sum((1, 2)) / (EACH - 1)
    return run_of(means @ means.T, variance, **values)


def test_noise_is_taken_off_the_squares_of_the_gradients_alone():
    gradients = sequences(0)
    found = without_noise(measured(gradients)).numpy()
    for d in range(DOMAINS):
        for e in range(DOMAINS):
            pairs = [
                g @ h for i, g in enumerate(gradients[d]) for j, h in enumerate(gradients[e]) if (d, i) != (e, j)
            ]  # of different sequences
            assert found[d, e] == pytest.approx(np.mean(pairs), rel=1e-10)


def test_doge_has_the_reference_shares():
    rows = np.array([[1.0, 0], [0, 2], [-1, 1]])
    method = load_intervention("doge", rate=1.0)
    assert learned(method, run_of(rows @ rows.T))["shares"].tolist() == pytest.approx(
        [0.14563707, 0.56700171, 0.28736122], abs=1e-6
    )
    # A target of its own that pulls along (1, 1).
    target = np.vstack([rows, [1.0, 1.0]])
    run = run_of(target @ target.T)
    norm = np.linalg.norm(target, axis=1).mean()
    scores = np.clip(target @ [1.0, 1.0] / (norm + 1e-6), 0, 5)
    found = learned(load_intervention("doge", rate=0.5, target="d3"), run, shares=[0.1, 0.2, 0.3, 0.4])["shares"]
    expected = np.array([0.1, 0.2, 0.3, 0.4]) * np.exp(0.5 * scores)
    assert found.numpy() == pytest.approx(expected / expected.sum(), rel=1e-10)
    own = learned(load_intervention("doge", rate=0.5, own=True), run)["shares"]
    odds = np.exp(0.5 * np.clip(target @ target.sum(0) / (norm + 1e-6), 0, 5))
    assert own.numpy() == pytest.approx(odds / odds.sum(), rel=1e-10)


def test_doge_names_the_domains_that_may_be_its_target():
    method = load_intervention("doge", target="law")
    with pytest.raises(ValueError, match=r"doge\.target='law': allowed are d0, d1 and nothing"):
        method.init_state(run_of(np.eye(2)), torch.Generator())


def test_shares_change_at_measurements_alone():
    method = load_intervention("doge", cadence=3)
    run = run_of([[1.0, 0.5, 0.5], [0.5, 1, 0], [0.5, 0, 1]])
    state = learned(method, run)
    seen = state["shares"]
    for step, changed in ((2, False), (3, True), (4, False)):
        run.step = step
        method.observe(run, None, state)
        assert torch.equal(state["shares"], seen) is not changed
        seen = state["shares"]


def test_pike_has_the_reference_shares():
    variance = np.array([4.0, 1.0, 2.0])
    squares = np.array([1.0, 2.0, 0.5])
    method = load_intervention("pike", zeta1=0.1, zeta2=0.2)
    run = run_of(np.diag(squares + variance / EACH), variance)
    run.batch_size = 8
    state = learned(method, run, shares=[0.5, 0.3, 0.2])
    assert state["shares"].tolist() == pytest.approx([0.48110115, 0.33120977, 0.18768909], abs=1e-8)


def test_methods_that_need_a_variance_need_two_sequences_a_domain():
    run = run_of(np.eye(3))
    run.batch_size = 5
    for name in ("pike", "grape", "interference_mixing"):
        with pytest.raises(ValueError, match=rf"data\.batch_size=5: {name} needs two sequences .* at least 6"):
            load_intervention(name).init_state(run, torch.Generator())


def test_grape_moves_to_the_task_that_improves_least():
    # Reference numbers: z = (.5, .5), a = (.2, −.1), γμ = .05; then as much of equal weights as the authors' code adds.
    gramian, losses = np.array([[0.6, 0.2], [0.2, -0.6]]), [2.0, 2.0]
    state = learned(load_intervention("grape", task_rate=0.05), run_of(gramian, losses=losses))
    z = np.array([0.49625007, 0.50374993])
    assert state["tasks"].tolist() == pytest.approx(z * 0.999 + 0.0005, abs=1e-8)


@pytest.mark.parametrize("length", [0.1, 1.0, 10.0])  # nothing is clipped, some gradients, all
def test_grape_multiplies_clipped_gradients(length: float):
    draws = np.random.default_rng(1)
    means = draws.normal(size=(DOMAINS, 3)) * length
    losses = np.array([2.0, 3.0, 4.0])
    run = run_of(means @ means.T, losses=losses.tolist())
    z, p = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.3, 0.2])

    def clipped(vector: np.ndarray) -> np.ndarray:
        return vector / max(1, np.linalg.norm(vector))

    mixture = clipped(p @ means)
    z = z * np.exp([-0.3 * clipped(means[n] / losses[n]) @ mixture for n in range(3)])
    z = z / z.sum() * 0.999 + 0.001 / 3
    target = clipped(z @ (means / losses[:, None]))
    q = p * np.exp([0.2 * clipped(means[d]) @ target for d in range(3)])
    method = load_intervention("grape", rate=0.2, task_rate=0.3)
    state = learned(method, run, shares=[0.5, 0.3, 0.2], tasks=[0.2, 0.3, 0.5])
    assert state["tasks"].numpy() == pytest.approx(z, rel=1e-10)
    assert state["shares"].numpy() == pytest.approx(q / q.sum(), rel=1e-10)


def test_agreement_is_that_of_pairs_of_sequences():
    gradients = sequences(2)
    found = agreement(measured(gradients)).numpy()
    for d in range(DOMAINS):
        for e in range(DOMAINS):
            pairs = [g @ h for i, g in enumerate(gradients[d]) for j, h in enumerate(gradients[e]) if (d, i) != (e, j)]
            sizes = [np.sqrt((gradients[k] ** 2).sum(1).mean()) for k in (d, e)]
            assert found[d, e] == pytest.approx(np.mean(pairs) / np.prod(sizes), rel=1e-10)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_shares_minimise_the_expected_conflict(seed: int, strength: float):
    draws = np.random.default_rng(seed)
    a = draws.normal(size=(4, 4)) * 10.0 ** draws.integers(-3, 2)
    a = (a + a.T) / 2
    found = least_conflict(torch.from_numpy(a), strength).numpy()
    tau = abs(a).max() / strength

    def objective(p: np.ndarray) -> float:
        return p @ ((1 - a) / 2) @ p + tau * (p @ np.log(4 * p))

    def by_logits(x: np.ndarray) -> float:
        odds = np.exp(x - x.max())
        return objective(odds / odds.sum()) / tau

    best = min((minimize(by_logits, draws.normal(size=4), method="BFGS") for _ in range(3)), key=lambda one: one.fun)
    assert objective(found) / tau <= best.fun + 1e-12
    assert found.sum() == pytest.approx(1) and found.max() / found.min() <= np.exp(2)
    hessian = tau * np.diag(1 / found) - a
    assert np.linalg.eigvalsh(hessian).min() > -1e-9 * tau


def test_interference_mixing_averages_what_it_measures():
    method = load_intervention("interference_mixing", memory=0.75)
    first, second = measured(sequences(3)), measured(sequences(4))
    state = learned(method, first)
    assert torch.allclose(state["shares"], least_conflict(agreement(first), 1.0))
    method.observe(second, None, state)
    mean = 0.75 * 0.25 * agreement(first) + 0.25 * agreement(second)
    assert torch.allclose(state["agreement"], mean)
    assert torch.allclose(state["shares"], least_conflict(mean, 1.0))
    still = learned(method, run_of(np.zeros((3, 3))))
    assert still["shares"].tolist() == [1 / 3] * 3  # no gradient at all
