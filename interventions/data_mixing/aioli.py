"""Aioli: draw more of the domains that lower all losses most, as tried out again and again in the run itself.

    F_ij: how far the loss of domain i falls in a block that draws by w^j    w^j: `focus` of domain j, the rest equal
    A_i = W⁻¹ F_i, row by row,  W's rows the shares w^j
    A ← (A − min(0, min A)) / Σ A
    p_j ∝ p_j exp(rate · Σ_i A_ij)

A learning phase has D · `sweeps` blocks of `cadence` steps (domain_blocks.py); then p is drawn, until the phase begins
anew `period` steps after it began. Exact up to the departures on the card. Cost: two forward passes over the control
set, every `cadence` steps. Oracle: reference numbers, a linear world (tests/unit/test_mixing_transfer.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.data_mixing.domain_blocks import ByBlocks, mostly
from interventions.data_mixing.learned_shares import exponentiated
from zslx import RunView, State, setting


@dataclass(frozen=True)
class Aioli(ByBlocks):
    """Estimates how each domain's share acts on each domain's loss, and draws by what lowers the sum of the losses.

    Acts on the mixture. The estimates come from short stretches of the run that draw mostly one domain; they are part
    of the training. Departures: the losses are those of the control set, a sample of the training text, where the
    paper has validation text; and the first block of the run draws equal shares. Without the optional average over
    estimates. In the authors' script 5000 steps have 20 periods. There is no placebo: its control is the baseline at
    other learning rates.
    """

    name = "aioli"
    source = "Chen et al. 2024, arXiv 2411.05735, Algorithms 1 and 2, with the normalisation of the authors' code"
    cost = "1.17: two forward passes every 4 steps"

    rate: float = setting(0.2, "step size of the shares' exponents", low=0.0, high=100.0)
    focus: float = setting(0.625, "share of the one domain in a block that tries it", low=0.05, high=1.0)
    sweeps: int = setting(4, "how often each domain is tried in a learning phase", low=1, high=1000)
    period: int = setting(250, "steps from one learning phase to the next", low=1, high=1_000_000)
    cadence: int = setting(4, "steps of a block, and from one measurement to the next", low=1, high=10_000)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        count = len(run.domains)
        if self.focus <= 1 / count < 1:
            raise ValueError(f"aioli.focus={self.focus}: with {count} domains it must be above {1 / count:g}")
        return super().init_state(run, generator) | {"began": None}

    def trial(self, run: RunView, domain: int) -> Tensor:
        return mostly(run, domain, self.focus)

    def begins(self, run: RunView, state: State) -> bool:
        if state["began"] is not None and run.step - state["began"] < self.period:
            return False
        state["began"], state["fresh"] = run.step, True
        return True

    def learn(self, run: RunView, state: State) -> None:
        if not state.pop("fresh", False):
            return
        trials = torch.stack([self.trial(run, j) for j in range(len(run.domains))])
        transfer = torch.linalg.solve(trials, state["falls"].T).T
        state["learned"] = exponentiated(state["learned"], self.rate * normalised(transfer).sum(0))


def normalised(transfer: Tensor) -> Tensor:
    """A (D, D) without negative entries, of sum 1; all zero where nothing fell."""
    shifted = transfer - transfer.min().clamp(max=0)
    total = shifted.sum()
    return shifted / total if total > 0 else shifted
