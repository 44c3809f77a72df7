"""ODM: a bandit that draws the domains of high loss more often.

    R_d ← R_d + ℓ_d / (10 p_d)                          for each domain d of the batch, ℓ_d its mean loss
    p_d = (1 − D ε_t) softmax(ε_{t−1} R)_d + ε_t        ε_t = min(1/D, √(ln D / (D t))), t the step

The EXP3 algorithm with the loss as reward. Exact. Cost: nothing. Oracle: closed form (tests/unit/test_mixing.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from interventions.data_mixing.learned_shares import LearnedShares, domain_means
from zslx import RunView, State, StepStats, setting

REWARD_SCALE = 10.0  # the authors', so that the sum of the rewards does not outgrow the falling ε


@dataclass(frozen=True)
class ODM(LearnedShares):
    """Draws domains by an adversarial bandit (EXP3) whose reward is the loss of the step's own batch.

    Acts on the mixture after every step. A loss counts by the inverse of its domain's share, so that a domain is not
    favoured for being seen often. Where every batch has all domains, as here unless a share is tiny, shares end up
    proportional to the losses. Every domain keeps a share of ε at least, which falls as the run goes on. In the first
    `warmup` of the run the shares are equal and nothing is learned; the authors draw by the size of the domains there.
    There is no placebo: its control is the baseline at other learning rates.
    """

    name = "odm"
    source = "Albalak et al. 2023, arXiv 2312.02406, Algorithm 1, with the reward of the authors' code"
    cost = "1.00"

    warmup: float = setting(0.01, "share of the run with equal shares", low=0.0, high=1.0)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        zeros = torch.zeros(len(run.domains), dtype=torch.float64)
        return super().init_state(run, generator) | {"rewards": zeros}

    def observe(self, run: RunView, stats: StepStats, state: State) -> None:
        if run.step <= self.warmup * run.steps:
            return
        count = len(run.domains)
        losses = domain_means(stats.view.losses, stats.view.domains, count)
        gain = losses / REWARD_SCALE / state["shares"]
        state["rewards"] = state["rewards"] + torch.where(losses.isnan(), 0.0, gain)
        before, now = exploration(run.step - 1, count), exploration(run.step, count)
        state["shares"] = (1 - count * now) * (before * state["rewards"]).softmax(0) + now


def exploration(step: int, count: int) -> float:
    """ε_t, the least share of a domain."""
    return min(1 / count, math.sqrt(math.log(count) / (count * step))) if step else 1 / count
