"""Focal loss as a token weight: (1 − p_t)^γ, p_t the probability of the target, detached.

Exact. Cost: one exponential a token. Oracle: published values (tests/unit/test_token_weighting.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import Intervention, RunView, State, StepView, setting

LEAST = 1e-12  # so that a batch of certain tokens has a positive total weight


@dataclass(frozen=True)
class Focal(Intervention):
    """Weighs tokens down that the model already predicts with confidence.

    Acts on tokens: the easier, the lighter; γ = 0 is the baseline. p_t is detached, as in the language-model
    code that this follows (the MiLe authors' baseline), so the gradient is that of the weighted loss; the
    original differentiates through p_t too. Renormalised to mean 1, which is that code's α.
    """

    name = "focal"
    family = "token_weighting"
    source = "Lin et al. 2017, arXiv 1708.02002"
    cost = "1.00"
    placebo = "tokens"
    neutral = {"gamma": 0.0}

    gamma: float = setting(1.0, "γ, how strongly easy tokens are weighed down", low=0.0, high=5.0)

    def token_weights(self, run: RunView, view: StepView, state: State) -> Tensor:
        return (-torch.expm1(-view.losses)).clamp(min=LEAST) ** self.gamma
