"""Loss truncation: drop the share of the text with the highest loss, above a quantile kept over the steps.

    q ← decay·q + (1 − decay)·(the batch's 1 − drop quantile),   weight = [ℓ ≤ q]

Exact. Cost: a sort of the batch's losses. Oracle: closed form (tests/unit/test_token_weighting.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import Intervention, RunView, State, StepView, setting


@dataclass(frozen=True)
class Truncation(Intervention):
    """Ignores the tokens (or sequences) of the highest loss: outliers, noise, what cannot be learned.

    Acts on tokens, or on whole sequences by their mean loss (`level=sequence`, as in the paper, which trains on
    sentences). drop = 0 is the baseline. The paper estimates the quantile from its last 10,000 losses after a
    hot start without dropping; here it is a moving average of the batch's quantile, which follows a loss that
    is still falling fast, and `start` is the hot start. The tokens of the least loss are always kept.
    """

    name = "truncation"
    family = "token_weighting"
    source = "Kang & Hashimoto 2020, arXiv 2004.14589"
    cost = "1.00"
    placebo = "tokens"
    neutral = {"drop": 0.0}

    drop: float = setting(0.1, "share of the text that is dropped", low=0.0, high=0.9)
    level: str = setting("token", "what is dropped", choices=("token", "sequence"))
    decay: float = setting(0.9, "memory of the quantile's moving average", low=0.0, high=0.9999)
    start: int = setting(100, "first step at which anything is dropped", low=1, high=1_000_000)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        return {"generator": generator, "quantile": None}

    def token_weights(self, run: RunView, view: StepView, state: State) -> Tensor:
        losses = view.losses
        if self.level == "sequence":
            losses = losses.mean(1, keepdim=True)
        ordered = losses.flatten().sort().values
        kept = max(1, round((1 - self.drop) * len(ordered)))
        quantile = float(ordered[kept - 1])
        if state["quantile"] is not None:
            quantile = self.decay * state["quantile"] + (1 - self.decay) * quantile
        state["quantile"] = quantile
        if self.drop == 0 or run.step < self.start:
            return torch.ones_like(view.losses)
        keep = (losses <= quantile) | (losses == ordered[0])
        return keep.to(view.losses.dtype).expand_as(view.losses)

    def metrics(self, run: RunView, state: State) -> dict[str, float]:
        return {"quantile": state["quantile"]}
