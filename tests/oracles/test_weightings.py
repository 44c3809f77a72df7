"""Weights of the surgery methods against published values, TorchJD, and the equations that define them."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from interventions.gradient_surgery.pcgrad import project_conflicts, visiting_order
from interventions.gradient_surgery.upgrad import project
from zslx.intervention.registry import load_intervention

load = cache(load_intervention)

# G = JJᵀ of J = [[-4, 1, 1], [6, 1, 1]]: two groups at a cosine of -0.84.
J2 = torch.tensor([[-4.0, 1, 1], [6, 1, 1]], dtype=torch.float64)
GOLDEN = [
    ("pcgrad", {}, (20 / 9, 30 / 19)),
    ("pcgrad", {"order": "ascending"}, (20 / 9, 30 / 19)),
    ("pcgrad", {"reduction": "mean"}, (10 / 9, 15 / 19)),
    ("gradvac", {}, (20 / 9, 30 / 19)),
    ("mgda", {}, (0.6, 0.4)),
    ("upgrad", {}, (1.11092105, 0.78943103)),
    ("upgrad", {"reg_eps": 0.0}, (10 / 9, 15 / 19)),
    ("dualproj", {}, (0.61092105, 0.5)),
    ("dualproj", {"reg_eps": 0.0}, (11 / 18, 0.5)),
    ("cagrad", {}, (0.5 + 0.5 * 3**0.5 / 18**0.5, 0.5)),
    ("cagrad", {"c": 1.0}, (1.2, 0.8)),
    ("cagrad", {"rescale": True}, ((0.5 + 0.5 * 3**0.5 / 18**0.5) / 1.25, 0.4)),
    ("imtl_g", {}, (0.59233032, 0.40766968)),
    ("aligned_mtl", {}, (0.55907192, 0.40826107)),
    ("aligned_mtl", {"variant": "rmse"}, (1.51086564, 1.1033064)),
    ("aligned_mtl", {"preference": "sum"}, (1.11814384, 0.81652214)),
    ("config", {}, (1.22648316, 0.84412360)),
    ("adacons", {}, (-0.13445737, 0.25476133)),
    ("nash_mtl", {}, (0.41822619, 0.28784301)),
    ("nash_mtl", {"max_norm": 0.0}, (4.27765001, 2.94408065)),
    ("fairgrad", {}, (0.59146115, 0.40707148)),
    ("fairgrad", {"alpha": 2.0}, (0.47136292, 0.31945423)),
]


def gramian(groups: int, parameters: int, seed: int = 0, mean: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(groups, parameters, dtype=torch.float64, generator=generator) + mean
    return jacobian @ jacobian.T


@pytest.mark.parametrize("name, settings, expected", GOLDEN, ids=lambda v: str(v))
def test_published_values(name, settings, expected):
    weights = load(name, **settings).weights(J2 @ J2.T, torch.ones(2))
    assert weights.dtype == torch.float64
    assert weights.tolist() == pytest.approx(expected, abs=1e-7)


def test_gradvac_remembers_cosines():
    method = load("gradvac", order="ascending")
    state = method.init_groups(2, torch.Generator().manual_seed(0))
    method.weights(J2 @ J2.T, torch.ones(2), state)
    assert state["cosines"][0, 1].item() == pytest.approx(-0.42059551, abs=1e-8)
    second = method.weights(J2 @ J2.T, torch.ones(2), state)
    assert second.tolist() == pytest.approx([1.85798780, 1.40641528], abs=1e-7)


@pytest.mark.parametrize("tau", [0.97, 1.0, 1.3])
def test_gaf_skips_opposite_groups(tau):
    assert load("gaf", tau=tau).weights(J2 @ J2.T, torch.ones(2)) is None
    assert load("gaf", tau=1.9).weights(J2 @ J2.T, torch.ones(2)).tolist() == [0.5, 0.5]


def test_gaf_against_the_loop_on_full_gradients():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        jacobian = torch.randn(7, 5, dtype=torch.float64, generator=generator) + 0.3
        average, agreed = jacobian[0], 0
        for row in jacobian[1:]:
            if 1 - torch.cosine_similarity(average, row, dim=0) <= 0.97:
                average, agreed = (average + row) / 2, agreed + 1
        weights = load("gaf").weights(jacobian @ jacobian.T, torch.ones(7))
        assert (weights is None) == (agreed == 0)
        if weights is not None:
            assert torch.allclose(weights @ jacobian, average, rtol=1e-12)


def pcgrad_loop(gram: np.ndarray, order: np.ndarray) -> np.ndarray:
    total = np.zeros(len(gram))
    for i in range(len(gram)):
        row = np.zeros(len(gram))
        row[i] = 1.0
        for j in order[i]:
            if j != i and (inner := row @ gram[j]) < 0:
                row[j] -= inner / gram[j, j]
        total += row
    return total


@pytest.mark.parametrize("groups, parameters", [(1, 3), (2, 1), (3, 8), (16, 4), (16, 100), (48, 20)])
@pytest.mark.parametrize("seeded", [True, False])
def test_pcgrad_equals_the_double_loop(groups, parameters, seeded):
    gram = gramian(groups, parameters).numpy()
    order = visiting_order(groups, torch.Generator().manual_seed(1) if seeded else None)
    fast, slow = project_conflicts(gram[None], order[None])[0], pcgrad_loop(gram, order)
    assert np.abs(fast - slow).max() <= 1e-10 * np.abs(slow).max()


TORCHJD = {
    "pcgrad": ("PCGradWeighting", {}),
    "gradvac": ("GradVacWeighting", {}),
    "upgrad": ("UPGradWeighting", {}),
    "dualproj": ("DualProjWeighting", {}),
    "imtl_g": ("IMTLGWeighting", {}),
    "aligned_mtl": ("AlignedMTLWeighting", {}),
}


@pytest.mark.parametrize("name", TORCHJD)
@pytest.mark.parametrize("groups", [1, 2, 5, 16])
@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_torchjd_agrees(name, groups, mean):
    """Draw for draw: our generator and TorchJD's global one are seeded alike."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    cls, arguments = TORCHJD[name]
    theirs, ours = getattr(aggregation, cls)(**arguments), load(name)
    state = ours.init_groups(groups, torch.Generator().manual_seed(5))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for step in range(3):  # more than one, for what GradVac remembers
            gram = gramian(groups, groups + 10, seed=step, mean=mean)
            expected = theirs(gram)
            got = ours.weights(gram, torch.ones(groups), state)
            assert torch.allclose(got, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("variant", ["min", "median", "rmse"])
@pytest.mark.parametrize("decades", [0, 3.5, 7])
def test_aligned_mtl_with_gradients_of_very_different_length(variant, decades):
    """Against the formula in 60 digits: norms over up to 14 decades, Gramian entries over 28."""
    mpmath = pytest.importorskip("mpmath")
    cosines = gramian(5, 15, seed=3)
    cosines = cosines / cosines.diagonal().sqrt().outer(cosines.diagonal().sqrt())
    norms = 10.0 ** torch.linspace(-decades, decades, 5, dtype=torch.float64)[[2, 0, 4, 1, 3]]
    ours = load("aligned_mtl", variant=variant).weights(cosines * norms.outer(norms), torch.ones(5))
    with mpmath.workdps(60):
        exact = mpmath.matrix(5, 5)
        for i, j in itertools.product(range(5), repeat=2):
            exact[i, j] = mpmath.mpf(cosines[i, j].item()) * mpmath.mpf(norms[i].item()) * mpmath.mpf(norms[j].item())
        values, vectors = mpmath.eigsy(exact)  # rising
        target = {"min": values[0], "median": values[2], "rmse": sum(values) / 5}[variant]
        means = [sum(vectors[:, k]) / 5 for k in range(5)]
        terms = [[vectors[i, k] * mpmath.sqrt(target / values[k]) * means[k] for k in range(5)] for i in range(5)]
        expected = torch.tensor([float(sum(row)) for row in terms], dtype=torch.float64)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("groups", [1, 3, 16])
@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_config_against_the_full_gradients(groups, mean):
    aggregation = pytest.importorskip("torchjd.aggregation")
    generator = torch.Generator().manual_seed(groups)
    jacobian = torch.randn(groups, 40, dtype=torch.float64, generator=generator) + mean
    weights = load("config").weights(jacobian @ jacobian.T, torch.ones(groups))
    assert torch.allclose(weights @ jacobian, aggregation.ConFIG()(jacobian), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("groups", [2, 5, 16])
def test_cagrad_is_at_least_as_good_as_a_cone_solver(groups, c):
    """TorchJD's solution is good to about 1e-5, so the objectives are compared, and the weights loosely."""
    pytest.importorskip("cvxpy")
    aggregation = pytest.importorskip("torchjd.aggregation")
    for seed in range(3):
        gram = gramian(groups, 30, seed=seed, mean=0.1)
        ours = load("cagrad", c=c).weights(gram, torch.ones(groups))
        theirs = aggregation.CAGradWeighting(c=c)(gram)
        assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3)
        assert (gram @ ours).min() >= (gram @ theirs).min() * (1 - 1e-9) - 1e-9 * gram.trace() * 1e-3
        added = ours - 1 / groups
        radius = c * (gram.mean()).sqrt()
        assert (added @ gram @ added).sqrt() == pytest.approx(float(radius), rel=1e-8)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_fairgrad_against_least_squares(alpha):
    aggregation = pytest.importorskip("torchjd.aggregation")
    gram = gramian(6, 40)
    ours = load("fairgrad", alpha=alpha).weights(gram, torch.ones(6))
    assert torch.allclose(ours, aggregation.FairGradWeighting(alpha=alpha)(gram), rtol=1e-4)
    assert torch.allclose(gram @ ours, ours ** (-1 / alpha), rtol=1e-7)


def test_mgda_beats_frank_wolfe():
    aggregation = pytest.importorskip("torchjd.aggregation")
    for seed in range(5):
        gram = gramian(12, 8 + 4 * seed, seed=seed, mean=0.2)
        ours = load("mgda").weights(gram, torch.ones(12))
        theirs = aggregation.MGDAWeighting(epsilon=1e-5, max_iters=1000)(gram)
        assert ours @ gram @ ours <= theirs @ gram @ theirs + 1e-9 * gram.trace()
        assert torch.allclose((ours - theirs) @ gram @ (ours - theirs), torch.tensor(0.0).double(), atol=0.01)


def test_adacons_momentum_follows_ranks():
    method = load("adacons", momentum=0.9)
    state = method.init_groups(4, torch.Generator())
    remembered = None
    for seed in range(3):
        gram = gramian(4, 20, seed=seed, mean=0.5)
        alpha = gram.mean(1) / gram.diagonal().sqrt()
        ordered, rank = alpha.sort()
        remembered = ordered if remembered is None else 0.9 * remembered + 0.1 * ordered
        dealt = torch.zeros(4, dtype=torch.float64)
        for place, group in enumerate(rank.tolist()):
            dealt[group] = remembered[place]
        expected = dealt / dealt.sum() / gram.diagonal().sqrt()
        assert torch.allclose(method.weights(gram, torch.ones(4), state), expected, rtol=1e-12)


# Singular Gramians: more groups than dimensions, so that zero may lie in the hull of the gradients.

DEPENDENT = [(2, 1), (8, 4), (16, 8), (16, 1), (33, 16), (64, 32), (64, 1), (128, 64)]
PRECISIONS = [np.float64, np.float32]  # of the Gramian; gradients are float64 throughout


def dependent(groups: int, rank: int, precision: type) -> list[tuple[np.ndarray, torch.Tensor]]:
    """Some Jacobians (K, rank) with their rounded Gramians; one alone of the largest, which takes long."""
    jacobians = [
        np.random.default_rng(seed).standard_normal((groups, rank)) for seed in range(6 if groups < 100 else 1)
    ]
    return [(j, torch.from_numpy((j @ j.T).astype(precision).astype(np.float64))) for j in jacobians]


def gap(jacobian: np.ndarray, weights: np.ndarray, c: float) -> tuple[float, float]:
    """CAGrad: length of what is added, in radii, and how far the worst group is from the bound by duality.

    For any w on the simplex, max_d min_k ⟨g_k, d⟩ ≤ ⟨g_w, g₀⟩ + c ‖g₀‖ ‖g_w‖; here w is what was added, normalised.
    Relative to ‖g₀‖ max ‖g_k‖.
    """
    mean, added = jacobian.mean(0), weights - 1 / len(weights)
    radius, combined = c * np.linalg.norm(mean), added @ jacobian / added.sum()
    bound = combined @ mean + radius * np.linalg.norm(combined)
    unit = np.linalg.norm(mean) * np.linalg.norm(jacobian, axis=1).max()
    assert (added >= -1e-12).all()
    return np.linalg.norm(added @ jacobian) / radius, (bound - (jacobian @ (weights @ jacobian)).min()) / unit


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("c", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("groups, rank", DEPENDENT)
def test_cagrad_on_dependent_gradients(groups, rank, c, precision):
    for jacobian, gram in dependent(groups, rank, precision):
        weights = load("cagrad", c=c).weights(gram, torch.ones(groups)).numpy()
        length, short = gap(jacobian, weights, c)
        assert abs(length - 1) <= (1e-9 if precision is np.float64 else 1e-3)
        assert short <= (1e-9 if precision is np.float64 else 1e-5)


@pytest.mark.parametrize("groups, rank", [(8, 4), (16, 8), (32, 12)])
def test_cagrad_with_gradients_of_very_different_length(groups, rank):
    for seed in range(12):
        generator = np.random.default_rng(seed)
        jacobian = generator.standard_normal((groups, rank)) + 0.3
        jacobian *= 10 ** generator.uniform(-7.5, 7.5, (groups, 1))
        gram = torch.from_numpy(jacobian @ jacobian.T)
        length, short = gap(jacobian, load("cagrad", c=0.3).weights(gram, torch.ones(groups)).numpy(), 0.3)
        assert length == pytest.approx(1, abs=1e-9) and short <= 1e-9


@pytest.mark.parametrize("groups, rank", [(8, 4), (16, 8), (16, 1)])
def test_cagrad_on_dependent_gradients_against_a_cone_solver(groups, rank):
    """The step, which is unique where the weights are not, to what TorchJD's solver is good for."""
    pytest.importorskip("cvxpy")
    aggregation = pytest.importorskip("torchjd.aggregation")
    compared = 0
    for jacobian, gram in dependent(groups, rank, np.float64):
        ours = load("cagrad", c=0.5).weights(gram, torch.ones(groups)).numpy()
        theirs = aggregation.CAGradWeighting(c=0.5)(gram).numpy()
        if theirs.any():  # it gives up where ‖g_w‖ comes out below 1e-4
            compared += 1
            assert (jacobian @ (ours @ jacobian)).min() >= (jacobian @ (theirs @ jacobian)).min() - 1e-4 * gram.mean()
            assert np.linalg.norm((ours - theirs) @ jacobian) <= 1e-2 * np.linalg.norm(jacobian.mean(0))
    assert compared


@pytest.mark.parametrize("kind", ["opposite", "zero"])
def test_cagrad_where_nothing_improves_every_group(kind):
    """Two opposite gradients, or one of length zero, and the rest in a half-space: no d has a positive worst group,
    the ball holds some with 0, and the one nearest to g₀ is the exact DualProj's."""
    jacobian = np.random.default_rng(2).standard_normal((8, 12)) * 0.1
    jacobian[:, 0] = 1.0
    jacobian[0] = 0.0
    if kind == "opposite":
        jacobian[0, 1], jacobian[1] = 1.0, 0.0
        jacobian[1, 1] = -1.0
    gram = torch.from_numpy(jacobian @ jacobian.T)
    ours = load("cagrad", c=0.9).weights(gram, torch.ones(8))
    nearest = load("dualproj", reg_eps=0.0).weights(gram, torch.ones(8))
    assert torch.allclose(ours @ gram, nearest @ gram, atol=1e-9)
    assert (gram @ ours).min() >= -1e-9


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("groups, rank", DEPENDENT)
def test_mgda_on_dependent_gradients(groups, rank, precision):
    """‖g_w‖² = min_k ⟨g_k, g_w⟩ marks the least norm, relative to max ‖g_k‖²."""
    for jacobian, gram in dependent(groups, rank, precision):
        weights = load("mgda").weights(gram, torch.ones(groups)).numpy()
        combined = weights @ jacobian
        assert (weights >= 0).all() and weights.sum() == pytest.approx(1, abs=1e-12)
        excess = combined @ combined - (jacobian @ combined).min()
        assert excess <= (1e-11 if precision is np.float64 else 1e-6) * gram.diagonal().max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("groups, rank", DEPENDENT)
def test_exact_projection_of_dependent_gradients(groups, rank, precision):
    """UPGrad and DualProj with reg_eps=0 against least squares on the gradients: min ‖u J + y J‖, y ≥ 0."""
    for jacobian, gram in dependent(groups, rank, precision):
        starts = np.vstack([np.full(groups, 1 / groups), np.eye(groups)[: min(groups, 16)] / groups])
        length = np.linalg.norm(jacobian, axis=1).max()
        for u, v in zip(starts, project(gram.numpy(), starts, 0.0), strict=True):
            step = (u + nnls(jacobian.T, -u @ jacobian)[0]) @ jacobian
            tolerance = (1e-8 if precision is np.float64 else 1e-3) * np.linalg.norm(u @ jacobian)
            assert (v >= u).all()
            assert np.linalg.norm(v @ jacobian - step) <= tolerance
            assert (jacobian @ (v @ jacobian)).min() >= -tolerance * length
