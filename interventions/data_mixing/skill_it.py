"""Skill-it: draw more of the domains from which domains of high loss learn.

    A_ij = max(0, mean of (L_j before − L_j after) / L_j before)     over blocks that draw domain i alone
    A ← A / max A
    p_i ∝ exp(rate · Σ_j A_ij Σ_window L_j)         the sum over the last `window` measurements

Exact up to the departures on the card. Cost: two forward passes over the control set, every `cadence` steps. Oracle:
reference numbers, a linear world (tests/unit/test_mixing_transfer.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.data_mixing.domain_blocks import ByBlocks, mostly
from zslx import RunView, State, setting


@dataclass(frozen=True)
class SkillIt(ByBlocks):
    """Learns once which domains help which, then follows the domains' losses along these links.

    Acts on the mixture. The links A are the paper's graph of skills: i leads to j if training on i alone lowers the
    loss of j. Departures: the paper learns them in runs of their own, each from the same weights; here the first
    D · `sweeps` blocks of the run, after one of equal shares, draw one domain each, so that later trials begin where
    earlier ones end. The links are divided by the largest, since the fall in a short block has no scale of its own;
    with four domains and losses of some 5 nats a rate of 0.2 leaves little but one domain. Losses are those of the
    control set, a sample of the training text. There is no placebo: its control is the baseline at other learning
    rates.
    """

    name = "skill_it"
    source = "Chen et al. 2023, arXiv 2307.14430, Algorithm 1"
    cost = "1.07: two forward passes every 10 steps"

    rate: float = setting(0.05, "η, what a loss counts in the exponent", low=0.0, high=100.0)
    window: int = setting(3, "measurements over which losses are summed", low=1, high=1000)
    sweeps: int = setting(2, "how often each domain is tried at the start", low=1, high=1000)
    cadence: int = setting(10, "steps of a block, and from one measurement to the next", low=1, high=10_000)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        return super().init_state(run, generator) | {"learning": False, "losses": []}

    def trial(self, run: RunView, domain: int) -> Tensor:
        return mostly(run, domain, 1.0)

    def begins(self, run: RunView, state: State) -> bool:
        first, state["learning"] = not state["learning"], True
        return first

    @staticmethod
    def fall(before: Tensor, after: Tensor) -> Tensor:
        return (before - after) / before

    def learn(self, run: RunView, state: State) -> None:
        state["losses"] = [*state["losses"], state["before"].tolist()][-self.window :]
        links = state["falls"].T.clamp(min=0)
        links = links / links.max() if links.max() > 0 else links
        state["learned"] = drawn(links, torch.tensor(state["losses"], dtype=torch.float64), self.rate)


def drawn(links: Tensor, losses: Tensor, rate: float) -> Tensor:
    """Shares (D,) for links (D, D) and the losses (window, D) of the last measurements."""
    return (rate * links @ losses.sum(0)).softmax(0)
