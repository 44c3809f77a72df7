"""Shared subspace: keep of each matrix's gradient the directions in which tokens push together.

For a weight matrix, its gradient G turned so that the shorter side comes first (d, D), Z = Σ_i ±g_i the sum over tokens
with random signs, turned likewise:

    M = running mean of G Gᵀ over steps,   C = running mean of Z Zᵀ over measurements;   E Z Zᵀ = Σ_i g_i g_iᵀ
    G ← M (M + λC)⁻¹ G

M is the energy of the tokens' sum by direction, C what it would be by chance. Along a common eigenvector the factor is
ρ/(ρ + λ), ρ the ratio of the two: a soft projection onto the directions that tokens share.
Exact but for the draws of the signs. Cost: a forward and two backwards every `cadence` steps, two products of d·d·D a
matrix and step. Oracle: these lines, in float64 (tests/unit/test_token_conflict.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interventions.token_conflict.by_token_sums import ByTokenSums
from zslx import RunView, State, setting

RIDGE = 1e-6  # beside the mean eigenvalue of M + λC, which may be singular


@dataclass(frozen=True)
class SharedSubspace(ByTokenSums):
    """Projects the gradients of matrices softly onto the directions in which the gradients of tokens add up.

    Acts on the gradient, before clipping; vectors stay as they are. M (M + λC)⁻¹ is the linear filter of least square
    error for a signal of covariance M in noise of covariance λC (Wiener). Unlike a factor on single coordinates it
    mixes them, so that it does not cancel in Adam's m/√v even where it stays the same over time. λ = 0 is the baseline.
    The placebo takes C from permuted coordinates, which makes it all but a multiple of the unit matrix: it shrinks
    towards the large directions of the gradient, without regard to where tokens cancel.
    """

    name = "shared_subspace"
    source = "zslx: the paper's interference between tokens (arXiv 2506.05447), with the filter of Wiener 1949"
    cost = "1.2 at 0.1M; beside the running means, the sums last measured (two copies of the weights)"
    neutral = {"strength": 0.0}

    strength: float = setting(1.0, "λ, how much noise counts; 0 is the baseline", low=0.0, high=100.0)
    memory: float = setting(0.95, "share of the past in the running mean of G Gᵀ, a step", low=0.0, high=0.9999)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        return super().init_state(run, generator) | {"energy": {}, "gain": {}}

    def filter(self, run: RunView, name: str, gradient: Tensor, state: State) -> Tensor:
        if gradient.ndim != 2 or self.strength == 0:
            return gradient
        turned = short_first(gradient)
        energy = turned @ turned.T
        old = state["energy"].get(name)
        # M and C are compared, so that M must be a mean from the first step on.
        share = max(1 - self.memory, 1 / run.step)
        state["energy"][name] = energy if old is None else old.lerp_(energy, share)
        gain = state["gain"].get(name)
        if gain is None:
            return gradient
        kept = gain.to(gradient) @ turned
        return kept if gradient.shape == turned.shape else kept.T

    def learn(self, run: RunView, sums: Any, state: State) -> None:
        if self.strength == 0:
            return
        kept, count = 0.0, 0
        for name, signed in sums.signed_sum.items():
            if name not in state["energy"]:
                continue
            turned = short_first(signed)
            self.renew(state, name, turned @ turned.T)
            energy, noise = state["energy"][name].double(), state["means"][name].double()
            state["gain"][name] = gain = filter_of(energy, self.strength * noise).to(signed.dtype)
            kept += float(gain.diagonal().sum())
            count += len(gain)
        state["reading"] = kept / count if count else 1.0

    def metrics(self, run: RunView, state: State) -> dict[str, float]:
        """Share of the directions that is kept."""
        return {"kept": state["reading"]}


def short_first(matrix: Tensor) -> Tensor:
    """(d, D), d at most D."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def filter_of(energy: Tensor, noise: Tensor) -> Tensor:
    """M (M + λC)⁻¹ (d, d); the unit matrix where both are zero."""
    whole = energy + noise
    level = whole.diagonal().mean()
    unit = torch.eye(len(whole), dtype=whole.dtype, device=whole.device)
    if not level > 0:
        return unit
    return torch.linalg.solve(whole + RIDGE * level * unit, energy + RIDGE * level * unit).T
