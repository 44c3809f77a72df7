"""MiLe loss as a token weight: α (σ + H)^γ, H the entropy of the prediction, detached; α = 1/mean.

Exact. Cost: the entropies, one more pass over the logits. Oracle: published values
(tests/unit/test_token_weighting.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zslx import Intervention, RunView, State, StepView, setting


@dataclass(frozen=True)
class MiLe(Intervention):
    """Weighs tokens up where the model is uncertain, whatever the target was.

    Acts on tokens, by the entropy of the whole prediction; γ = 0 is the baseline. Entropy ranks tokens that
    are hard to learn above those that are merely surprising, which focal cannot tell apart.
    """

    name = "mile"
    family = "token_weighting"
    source = "Su et al. 2023, arXiv 2310.19531"
    cost = "1.05: entropies"
    needs = frozenset({"entropy"})
    placebo = "tokens"
    neutral = {"gamma": 0.0}

    gamma: float = setting(1.0, "γ, how strongly uncertain tokens are weighed up", low=0.0, high=5.0)
    sigma: float = setting(1.0, "σ, added to the entropy (nats)", low=0.01, high=10.0)

    def token_weights(self, run: RunView, view: StepView, state: State) -> Tensor:
        assert view.entropy is not None
        weights = (self.sigma + view.entropy) ** self.gamma
        return weights / weights.mean()
