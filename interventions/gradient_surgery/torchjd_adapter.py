"""Weightings of TorchJD by name: krum pcd cr_mogm rlw. Pinned, because its interface changes between versions.

Weights are TorchJD's own. Its draws come from the global generator, so each call runs with the CPU's global
state set aside and seeded from the method's generator. What a weighting remembers is handed in before the call
and taken out after it, so that a run resumes exactly. Cost: TorchJD's.
Oracle: TorchJD called directly (tests/oracles/test_torchjd_adapter.py).
"""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zslx import GramianMethod, State, setting

VERSION = "0.18.0"


@dataclass(frozen=True)
class TorchJD(GramianMethod):
    """Base of the adapted weightings."""

    remembered: ClassVar[tuple[str, ...]] = ()  # attributes of the weighting that outlive a step

    def __post_init__(self) -> None:
        super().__post_init__()
        aggregation(self.name)

    @abstractmethod
    def weighting(self, aggregation: Any, size: int) -> Any:
        """TorchJD's weighting of this name, for K = size groups."""

    def solve(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor | None:
        weighting = self.weighting(aggregation(self.name), len(gramian))
        if state.get("size") == len(gramian):
            for attribute in self.remembered:
                setattr(weighting, attribute, state[attribute])
        seed = int(torch.randint(2**62, (), generator=state["generator"]))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every device
            weights = weighting(gramian)
        state |= {"size": len(gramian)} | {name: getattr(weighting, name) for name in self.remembered}
        return weights if weights.any() else None  # TorchJD's way to say: no step


def aggregation(name: str) -> Any:
    """The module torchjd.aggregation; ValueError if it is not installed in the pinned version."""
    try:
        found = importlib.metadata.version("torchjd")
    except importlib.metadata.PackageNotFoundError:
        found = "not installed"
    if found != VERSION:
        raise ValueError(f"{name} needs torchjd {VERSION} ({found}): pip install 'zslx[torchjd]'")
    return importlib.import_module("torchjd.aggregation")


@dataclass(frozen=True)
class Krum(TorchJD):
    """Averages the `selected` group gradients that lie closest to their neighbours, and drops the others.

    Acts on outliers, not on conflict. Weights: 1/selected or 0. Distances are summed, as TorchJD does; `squared`
    sums their squares, as the paper does. Of fewer than byzantine + 3 groups it withstands K − 3 outliers, of
    fewer than 3 none: the mean.
    """

    name = "krum"
    source = "Blanchard et al. 2017, arXiv 1703.02757"
    cost = "Gramian; solver below 1 ms"

    byzantine: int = setting(1, "number of outliers to withstand", low=0, high=253)
    selected: int = setting(4, "number of groups kept", low=1, high=256)
    squared: bool = setting(False, "sum squared distances, not distances")

    def weighting(self, aggregation: Any, size: int) -> Any:
        byzantine, selected = min(self.byzantine, size - 3), min(self.selected, size)
        if self.squared and byzantine >= 0:
            return lambda gramian: closest(squared_distances(gramian), size - byzantine - 2, selected)
        return aggregation.KrumWeighting(byzantine, selected) if byzantine >= 0 else aggregation.MeanWeighting()


def squared_distances(gramian: Tensor) -> Tensor:
    """‖g_i − g_j‖² (K, K)."""
    norms = gramian.diagonal()
    return (norms[:, None] + norms - 2 * gramian).clamp(min=0)


def closest(distances: Tensor, neighbours: int, selected: int) -> Tensor:
    """Weights (K,): 1/selected for the groups whose nearest `neighbours` others lie closest in sum, 0 for the rest."""
    scores = distances.sort(dim=1).values[:, : neighbours + 1].sum(1)  # the first is the group itself
    weights = torch.zeros(len(distances), dtype=distances.dtype)
    weights[scores.argsort(stable=True)[:selected]] = 1 / selected
    return weights


@dataclass(frozen=True)
class PCD(TorchJD):
    """Follows group 0 as closely as possible while every other group gains at least a share tau of its best.

    Acts when group 0's direction leaves another group less than that. Not symmetric: choose a grouping whose
    group 0 is meant to lead (`loss_quantile`: the easiest tokens; `token_frequency`: the most frequent ones).
    Skips the step where group 0 has no gradient.
    """

    name = "pcd"
    source = "Priority-Constrained Descent 2026, arXiv 2606.29521"
    cost = "Gramian; solver some ms"
    remembered = ("_sq_norm_ema", "_n_steps", "_state_key")

    tau: float = setting(0.02, "share of its own best progress that each other group gets", low=0.0, high=1.0)
    beta: float = setting(0.999, "decay of the moving average of squared norms", low=0.0, high=0.99999)

    def weighting(self, aggregation: Any, size: int) -> Any:
        return aggregation.PCDWeighting(tau=self.tau, beta=self.beta, eps=0.0)


@dataclass(frozen=True)
class CRMOGM(TorchJD):
    """The weights of another method, averaged over the steps: λ ← α λ + (1 − α) λ̂.

    Acts as that method does, with less noise; group k must mean the same at every step.
    """

    name = "cr_mogm"
    source = "Zhou et al. 2022, On the Convergence of Stochastic Multi-Objective Gradient Manipulation (NeurIPS)"
    cost = "Gramian; the solver of the method inside"
    remembered = ("_lambda",)

    method: str = setting("mgda", "whose weights", choices=("mgda", "upgrad", "dualproj", "aligned_mtl"))
    alpha: float = setting(0.9, "share of the old weights kept", low=0.0, high=1.0)

    def weighting(self, aggregation: Any, size: int) -> Any:
        names = {"mgda": "MGDA", "upgrad": "UPGrad", "dualproj": "DualProj", "aligned_mtl": "AlignedMTL"}
        inner = getattr(aggregation, names[self.method] + "Weighting")()
        return aggregation.CRMOGMWeighting(inner, alpha=self.alpha)


@dataclass(frozen=True)
class RandomLossWeighting(TorchJD):
    """Random weights, softmax of standard normal draws: a control for all weightings.

    Weights: positive, sum 1.
    """

    name = "rlw"
    source = "Lin et al. 2021, arXiv 2111.10603"
    cost = "Gramian; solver below 1 ms"

    def weighting(self, aggregation: Any, size: int) -> Any:
        return aggregation.RandomWeighting()
