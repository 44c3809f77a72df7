"""The adapted weightings against TorchJD called directly, and what the adapter adds: resume, no global draw."""

import copy
import importlib.metadata
from functools import cache

import pytest
import torch

from zslx.intervention.registry import load_intervention

load = cache(load_intervention)

aggregation = pytest.importorskip("torchjd.aggregation")
NAMES = ["krum", "pcd", "cr_mogm", "rlw"]


def gramian(groups: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(groups, 20, dtype=torch.float64, generator=generator) + 0.2
    gram = jacobian @ jacobian.T
    return (gram + gram.T) / 2  # to the last bit, as the methods get it


DIRECT = {
    "krum": lambda: aggregation.KrumWeighting(1, 4),
    "pcd": lambda: aggregation.PCDWeighting(tau=0.02, beta=0.999, eps=0.0),
    "cr_mogm": lambda: aggregation.CRMOGMWeighting(aggregation.MGDAWeighting(), alpha=0.9),
}


@pytest.mark.parametrize("name", DIRECT)
def test_equals_torchjd_over_steps(name):
    theirs, ours = DIRECT[name](), load(name)
    state = ours.init_groups(6, torch.Generator().manual_seed(0))
    for seed in range(4):
        gram = gramian(6, seed)
        assert torch.equal(ours.weights(gram, torch.ones(6), state), theirs(gram))


def test_krum_published_value():
    rows = torch.tensor([[1.0, 1], [2, 2], [9, -9], [1, 1.5], [1.5, 1]], dtype=torch.float64)
    weights = load("krum").weights(rows @ rows.T, torch.ones(5))
    assert weights.tolist() == [0.25, 0.25, 0, 0.25, 0.25]
    few = load("krum").weights((rows @ rows.T)[:2, :2], torch.ones(2))
    assert few.tolist() == [0.5, 0.5]  # no outlier can be told among two


def test_krum_by_squared_distances():
    """The definition, group by group; seed 45 is one that distances themselves decide differently."""
    for seed in (0, 1, 2, 45):
        gram = gramian(7, seed)
        differences = [[float(gram[i, i] + gram[j, j] - 2 * gram[i, j]) for j in range(7)] for i in range(7)]
        scores = [sum(sorted(row[:i] + row[i + 1 :])[: 7 - 1 - 2]) for i, row in enumerate(differences)]
        best = sorted(range(7), key=scores.__getitem__)[:3]
        weights = load("krum", squared=True, selected=3).weights(gram, torch.ones(7))
        assert weights.tolist() == [1 / 3 if i in best else 0 for i in range(7)]
    assert not torch.equal(weights, load("krum", selected=3).weights(gram, torch.ones(7)))


@pytest.mark.parametrize("name", NAMES)
def test_no_global_draw_and_resume(name):
    method = load(name)
    whole, stopped = (method.init_groups(6, torch.Generator().manual_seed(3)) for _ in range(2))
    before = torch.get_rng_state()
    uninterrupted = [method.weights(gramian(6, s), torch.ones(6), whole) for s in range(4)]
    for s in range(2):
        method.weights(gramian(6, s), torch.ones(6), stopped)
    generator = torch.Generator()
    generator.set_state(stopped["generator"].get_state())
    saved = {k: copy.deepcopy(v) for k, v in stopped.items() if k != "generator"} | {"generator": generator}
    resumed = [load(name).weights(gramian(6, s), torch.ones(6), saved) for s in (2, 3)]
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(resumed, uninterrupted[2:], strict=True):
        assert torch.equal(a, b)


def test_random_weights_differ_by_step_and_repeat_by_seed():
    method = load("rlw")
    state, again = (method.init_groups(4, torch.Generator().manual_seed(1)) for _ in range(2))
    first, second = (method.weights(gramian(4, 0), torch.ones(4), state) for _ in range(2))
    assert not torch.equal(first, second) and first.sum().item() == pytest.approx(1)
    assert torch.equal(first, method.weights(gramian(4, 0), torch.ones(4), again))


@pytest.mark.parametrize("found", ["0.17.0", None])
def test_another_version_or_none_is_refused(found, monkeypatch):
    def version(name: str) -> str:
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ValueError, match=r"krum needs torchjd 0\.18\.0 .*pip install 'zslx\[torchjd\]'"):
        load_intervention("krum")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e15])
def test_finite_on_extreme_gramians(name, scale):
    gram = gramian(6, 0) * scale
    weights = load(name).weights(gram, torch.ones(6))
    assert weights.dtype == torch.float64 and torch.isfinite(weights).all()
