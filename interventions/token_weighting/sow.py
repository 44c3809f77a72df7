"""Online loss-based reweighting of sequences: w = softmax(s(h) / r) over the batch.

    h = (2ℓ − ℓ_max − ℓ_min) / (ℓ_max − ℓ_min) in [−1, 1],  ℓ the mean loss of a sequence, detached
    s: linupper min(h + 1, 1),  quadratic 1 − h²,  extremes |h|

Exact. Cost: nothing. Oracle: published values (tests/unit/test_token_weighting.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import Intervention, RunView, State, StepView, setting

SHAPES = ("linupper", "quadratic", "extremes")


@dataclass(frozen=True)
class Sow(Intervention):
    """Weighs sequences by where their loss lies within the batch.

    Acts on whole sequences (every token of one gets its weight). linupper, the paper's best, weighs easy ones
    down and caps hard ones; quadratic favours the middle; extremes both ends. A large r is the baseline, so r is
    `warmup_r` for the first `warmup` of the run and `r` after it, as in the authors' configurations.
    """

    name = "sow"
    family = "token_weighting"
    source = "Sow et al. 2025, arXiv 2502.06733"
    cost = "1.00"
    placebo = "samples"

    shape: str = setting("linupper", "which losses weigh most", choices=SHAPES)
    r: float = setting(1.0, "temperature of the softmax; large is uniform", low=0.01, high=1e6, log=True)
    warmup_r: float = setting(100.0, "temperature at the start of the run", low=0.01, high=1e6, log=True)
    warmup: float = setting(0.05, "share of the run that the start takes", low=0.0, high=1.0)

    def token_weights(self, run: RunView, view: StepView, state: State) -> Tensor:
        r = self.warmup_r if run.step <= self.warmup * run.steps else self.r
        return sequence_weights(view.losses.mean(1), self.shape, r)[:, None].expand_as(view.losses)


def sequence_weights(losses: Tensor, shape: str, r: float) -> Tensor:
    """Weights (B,) of sum 1 from the sequences' losses (B,)."""
    low, high = losses.min(), losses.max()
    if high == low:
        return torch.full_like(losses, 1 / len(losses))
    h = (2 * losses - high - low) / (high - low)
    score = {"linupper": (h + 1).clamp(max=1), "quadratic": 1 - h**2, "extremes": h.abs()}[shape]
    return (score / r).softmax(0)
