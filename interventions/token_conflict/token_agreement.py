"""Token agreement: damp each coordinate of the gradient by how far its tokens agree, measured by chance.

With G = Σ_i g_i the gradient of this step, c_j = |Σ_i g_ij| / Σ_i |g_ij| the agreement of N tokens on a coordinate,
and c⁰_j its level by chance, at random signs of the g_ij:

    c_j / c⁰_j = |G_j| / σ_j,   σ_j² = E (Σ_i ±g_ij)² = Σ_i g_ij²                 Σ|g| cancels
    G_j ← G_j · G_j² / (G_j² + λ σ_j²)

σ² is the running mean of squares of sums with random signs: one backward, all tokens. Exact but for those draws.
Cost: a forward and two backwards every `cadence` steps, and two passes over the gradient.
Oracle: these lines, in float64 (tests/unit/test_token_conflict.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interventions.token_conflict.by_token_sums import ByTokenSums
from zslx import RunView, State, setting


@dataclass(frozen=True)
class TokenAgreement(ByTokenSums):
    """Keeps coordinates of the gradient on which tokens agree beyond chance, and damps those where they cancel.

    Acts on the gradient, before clipping. The factor is Wiener's: if G is a signal of variance S with noise of variance
    σ², then S/(S + σ²) of it is the best guess of the signal, with G² in place of S; λ says how much noise costs.
    By chance |G| is about σ, and the factor 1/2 at λ = 1. A factor that a coordinate keeps over time cancels in Adam's
    m/√v. This one does not: G is that of the step, σ the slow one, so a coordinate's steps of high agreement weigh
    more in m than its others. A gradient that is smaller as a whole is none to Adam, hence no rescaling.
    λ = 0 is the baseline. The default is a first look, not a tuned value: at 0.1M, 1,024 steps and two seeds, at the
    baseline's rate, held-out loss was 0.5 % below the baseline's at λ = 0.1 and 1.1 % above it at λ = 1.
    But twice the rate alone gave the baseline 1.9 %: that rate was not tuned for so few steps, and nothing is shown.
    The placebo takes the level by chance of other coordinates of the tensor.
    """

    name = "token_agreement"
    source = "zslx: the paper's interference between tokens (arXiv 2506.05447), with the filter of Wiener 1949"
    cost = "1.23 at 0.1M; beside the running means, the sums last measured (two copies of the weights)"
    neutral = {"strength": 0.0}

    strength: float = setting(0.1, "λ, how much noise counts; 0 is the baseline", low=0.0, high=100.0)

    def filter(self, run: RunView, name: str, gradient: Tensor, state: State) -> Tensor:
        noise = state["means"].get(name)
        if noise is None or self.strength == 0:
            return gradient
        # In units of σ: the square of a small gradient has no digits left in float32.
        tiny = torch.finfo(gradient.dtype).tiny
        ratio = gradient.abs() / (noise.to(gradient).sqrt() * self.strength**0.5).clamp(min=tiny)
        return gradient / (1 + ratio.clamp(min=1e-15) ** -2)

    def learn(self, run: RunView, sums: Any, state: State) -> None:
        above = count = 0
        for name, signed in sums.signed_sum.items():
            self.renew(state, name, signed.square())
            above += int((sums.sum[name].square() > state["means"][name]).sum())
            count += signed.numel()
        state["reading"] = above / count

    def metrics(self, run: RunView, state: State) -> dict[str, float]:
        """Share of the coordinates with |Σg| above σ at the last measurement; .32 for normal noise alone."""
        return {"above_chance": state["reading"]}
