"""Rho-1 (selective language modelling): train on the tokens with the highest excess loss over a reference run.

    weight = [ℓ − ℓ_ref among the top `keep` of the batch]

Exact. Cost: a forward pass of the reference model. Oracle: published values
(tests/unit/test_token_weighting.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import Intervention, RunView, State, StepView, setting


@dataclass(frozen=True)
class Rho1(Intervention):
    """Trains on the tokens that a reference model finds much easier than the model does.

    Acts on tokens: drops those already learned and those that the reference cannot learn either. keep = 1 is the
    baseline. The reference is a finished run of this platform (`reference=RUN_FOLDER`); the paper's is trained on
    curated text, so here the method has less to gain.
    """

    name = "rho1"
    family = "token_weighting"
    source = "Lin et al. 2024, arXiv 2404.07965"
    cost = "1.33: a forward pass of the reference model"
    needs = frozenset({"reference_losses"})
    placebo = "tokens"
    neutral = {"keep": 1.0}

    keep: float = setting(0.6, "share of the tokens that are trained on", low=0.01, high=1.0)

    def token_weights(self, run: RunView, view: StepView, state: State) -> Tensor:
        assert view.reference_losses is not None
        excess = (view.losses - view.reference_losses).flatten()
        kept = max(1, round(self.keep * len(excess)))
        weights = torch.zeros_like(excess)
        weights[excess.argsort(descending=True, stable=True)[:kept]] = 1.0
        return weights.view_as(view.losses)
