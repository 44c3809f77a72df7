"""DoReMi: weigh up the domains in which the model is furthest behind a reference run.

    λ_d = mean over the domain's tokens of max(ℓ − ℓ_ref, 0)        as it was, where the batch has none of the domain
    p ← (1 − c) p exp(rate · λ) / Σ p exp(rate · λ) + c / D
    every token of domain d weighs p_d

Exact. Cost: a forward pass of the reference model. Oracle: reference numbers (tests/unit/test_mixing.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.data_mixing.learned_shares import domain_means, equal_shares, exponentiated
from zslx import Intervention, RunView, State, StepView, setting


@dataclass(frozen=True)
class DoReMi(Intervention):
    """Weighs the tokens of a domain by how much more loss they have than under a reference model.

    Acts on the losses of whole domains; the batches stay the baseline's, which draws domains in equal shares. This run
    is the paper's proxy, its Step 2, and the reference its Step 1: a finished run of this platform
    (`reference=RUN_FOLDER`). The record has the mean of the shares over the steps so far, `mean_share`: what the
    paper's Step 3 draws by. It must not stand beside a method with a mixture of its own, whose shares it would have to
    divide by. The placebo gives the weights to other sequences of the batch.
    """

    name = "doremi"
    family = "data_mixing"
    source = "Xie et al. 2023, arXiv 2305.10429, Algorithm 1"
    cost = "1.33: a forward pass of the reference model"
    needs = frozenset({"reference_losses"})
    placebo = "tokens"
    neutral = {"rate": 0.0}

    rate: float = setting(1.0, "step size of the shares' exponents", low=0.0, high=100.0)
    smoothing: float = setting(1e-3, "part c of equal shares that is mixed in", low=0.0, high=1.0)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        shares = equal_shares(run)
        zeros = torch.zeros_like(shares)
        return {"generator": generator, "shares": shares, "excess": zeros, "total": zeros, "steps": 0}

    def token_weights(self, run: RunView, view: StepView, state: State) -> Tensor:
        assert view.reference_losses is not None
        excess = (view.losses - view.reference_losses).clamp(min=0)
        found = domain_means(excess, view.domains, len(run.domains))
        state["excess"] = torch.where(found.isnan(), state["excess"], found)
        shares = exponentiated(state["shares"], self.rate * state["excess"])
        state["shares"] = (1 - self.smoothing) * shares + self.smoothing / len(shares)
        state["total"], state["steps"] = state["total"] + state["shares"], state["steps"] + 1
        # Over the largest, so that equal shares weigh exactly 1.
        weights = (state["shares"] / state["shares"].max()).to(view.losses)[view.domains]
        return weights[:, None].expand_as(view.losses)

    def metrics(self, run: RunView, state: State) -> Mapping[str, float]:
        mean = state["total"] / max(1, state["steps"])
        found = {f"share/{name}": share for name, share in zip(run.domains, state["shares"].tolist(), strict=True)}
        return found | {f"mean_share/{name}": m for name, m in zip(run.domains, mean.tolist(), strict=True)}
