"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

    G' = Q_Lᵀ G Q_R;   M ← β₁ M + (1 − β₁) G;   V ← β₂ V + (1 − β₂) G'²
    θ ← θ − η (Q_L [M̂' / (√V̂ + ε)] Q_Rᵀ + λ θ),   M' = Q_Lᵀ M Q_R
    L ← β₂ L + (1 − β₂) G Gᵀ;   R ← β₂ R + (1 − β₂) Gᵀ G
    every `every` steps:  Q ← the Q of QR(P Q), P = L or R

The first gradient makes the bases and moves no rotated matrix, as in their code. A dimension longer than `max_width`
keeps its own axes (Q = I), and so does a vector: that is AdamW. Departures: the bias corrections and the decay are
AdamW's; P has a ridge; and Q begins as I, improved `FIRST` times, in place of eigh. A batch has fewer directions than a
wide matrix: in those that it lacks, eigh and QR alone give rounding errors as a basis. The eigenvectors stay the same.
Columns are not sorted, as in the paper; their code sorts them.
Cost: four products a matrix, and a QR every `every` steps. Oracle: these lines, in float64 (tests/unit/test_soap.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interventions.optimization.per_parameter import PerParameter, apply
from zslx import Intervention, RunView, State, setting

FIRST = 10  # power iterations for the first bases
RIDGE = 1e-4  # of the mean eigenvalue


class SOAPOptimizer(PerParameter):
    """Vyas et al. 2024, arXiv 2409.11321, Algorithms 3 and 4, for vectors and matrices."""

    def move(self, p: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
            rotated = [d for d in range(2) if p.ndim == 2 and p.shape[d] <= group["max_width"]]
            state["products"] = {d: (1 - beta2) * product(gradient, d) for d in rotated}
            state["bases"] = {d: first_basis(found) for d, found in state["products"].items()}
            if rotated:
                return
        state["step"] += 1
        t, bases = state["step"], state["bases"]
        state["mean"].lerp_(gradient, 1 - beta1)
        turned = rotate(gradient, bases)
        state["square"].mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
        size = (state["square"] / (1 - beta2**t)).sqrt_().add_(group["eps"])
        update = rotate(rotate(state["mean"], bases) / (1 - beta1**t) / size, bases, back=True)
        apply(p, update, group)
        for d, kept in state["products"].items():  # after the update, which must not see its own gradient in the basis
            kept.lerp_(product(gradient, d), 1 - beta2)
            if t % group["every"] == 0:
                bases[d] = improved(kept, bases[d])


def product(gradient: Tensor, d: int) -> Tensor:
    """G Gᵀ (d = 0) or Gᵀ G (d = 1)."""
    return gradient @ gradient.T if d == 0 else gradient.T @ gradient


def rotate(matrix: Tensor, bases: dict[int, Tensor], *, back: bool = False) -> Tensor:
    """Q_Lᵀ A Q_R, or Q_L A Q_Rᵀ; a basis that is not there is I."""
    if 0 in bases:
        matrix = (bases[0] if back else bases[0].T) @ matrix
    if 1 in bases:
        matrix = matrix @ (bases[1].T if back else bases[1])
    return matrix


def first_basis(symmetric: Tensor) -> Tensor:
    """Nearly the eigenvectors, the largest eigenvalue first."""
    basis = torch.eye(len(symmetric), dtype=symmetric.dtype, device=symmetric.device)
    for _ in range(FIRST):
        basis = improved(symmetric, basis)
    return basis


def improved(symmetric: Tensor, basis: Tensor) -> Tensor:
    """The basis after one power iteration: nearer to the eigenvectors."""
    moved = symmetric @ basis + RIDGE * symmetric.diagonal().mean() * basis
    return torch.linalg.qr(moved)[0]


@dataclass(frozen=True)
class SOAP(Intervention):
    """Runs Adam in the directions in which a matrix's gradients vary most and least.

    Acts on the update: directions that many gradients share get a step size of their own, which Adam gives only to
    single weights. The rates and decays are the baseline's. There is no placebo: its control is the baseline at other
    learning rates. With max_width 0 it is AdamW, to rounding.
    """

    name = "soap"
    family = "optimization"
    source = "Vyas et al. 2024 (SOAP), arXiv 2409.11321"
    cost = "1.35, more at the steps with a QR, and four squares a matrix"

    every: int = setting(10, "steps from one improvement of the bases to the next", low=1, high=100_000)
    max_width: int = setting(1024, "longest dimension that is rotated; 0 is AdamW", low=0, high=100_000)

    def optimizer(self, run: RunView, groups: list[dict], state: State) -> torch.optim.Optimizer:
        optim = run.config.optim
        shared = {"lr": optim.lr, "betas": (optim.beta1, optim.beta2), "eps": optim.eps}
        return SOAPOptimizer(groups, shared | {"every": self.every, "max_width": self.max_width})
