"""DoGE: draw more of the domains whose gradients help the others.

    W_d = ⟨g_d, Σ_{e≠d} g_e⟩ / mean ‖g‖, clipped to [0, 5]     or ⟨g_d, g_target⟩ / mean ‖g‖
    p ∝ p exp(rate · W)                                        at every measurement

Exact up to the departures on the card. Cost: a pass of the gradient engine over the control set, every `cadence`
steps. Oracle: reference numbers (tests/unit/test_mixing_gradients.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interventions.data_mixing.domain_gradients import ByGradients
from interventions.data_mixing.learned_shares import exponentiated
from zslx import RunView, State, setting

CLIP = (0.0, 5.0)
EPSILON = 1e-6  # beside the mean norm


@dataclass(frozen=True)
class DoGE(ByGradients):
    """Draws domains by the product of their gradient with that of all the others, or of one target domain.

    Acts on the mixture. Departures: the gradients are those of the control set, not of the batch; and the model trains
    on domains drawn by the shares, where the paper's proxy weighs their gradients, which has the same mean. `rate` is
    the paper's η/μ, 0.01 at every step; here it counts once every `cadence` steps. As in the authors' code the domain
    itself is left out of the sum, its gradient's norm divides the score, and scores are clipped. `own` adds the
    domain's own square, as the paper writes it. The paper trains a second model with the mean of the shares; this is
    one run. There is no placebo: its control is the baseline at other learning rates.
    """

    name = "doge"
    source = "Fan et al. 2023, arXiv 2310.15393, Algorithm 1, with the clipping of the authors' code"
    cost = "1.12: the gradients of the control set every 10 steps"
    needs = frozenset({"domain_gramian"})

    rate: float = setting(0.1, "step size of the shares' exponents", low=0.0, high=100.0)
    target: str = setting("", "name of the domain whose loss is to fall; empty: all domains")
    own: bool = setting(False, "count the domain's own gradient among all domains'")
    cadence: int = setting(10, "steps from one measurement to the next", low=1, high=10_000)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        if self.target and self.target not in run.domains:
            raise ValueError(f"doge.target={self.target!r}: allowed are {', '.join(run.domains)} and nothing")
        return super().init_state(run, generator)

    def learn(self, run: RunView, state: State) -> None:
        gramian = run.domain_gramian
        assert gramian is not None
        if self.target:
            products = gramian[:, list(run.domains).index(self.target)]
        else:
            products = gramian.sum(1) - (0 if self.own else gramian.diagonal())
        norm = gramian.diagonal().clamp(min=0).sqrt().mean()
        score = (products / (norm + EPSILON)).clamp(*CLIP)
        state["shares"] = exponentiated(state["shares"], self.rate * score)
