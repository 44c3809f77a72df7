"""Schedule-free AdamW: gradients at y, the model that is used at x, an average of the iterates z.

    γ_t = η_t √(1 − β₂ᵗ);   v ← β₂ v + (1 − β₂) g(y)²;   z ← z − γ_t (g / (√v + ε) + λ y)
    x ← (1 − c) x + c z,   c = γ_t² / Σ_{i ≤ t} γ_i²;   y ← (1 − β) z + β x

The trained weights are y, and z lies in the method's state; x = y + (1 − 1/β) (z − y) is nowhere kept. The warm-up is
the run's own. Exact. Cost: z in place of Adam's first moment. Oracle: these lines with x kept, in float64
(tests/unit/test_schedule_free.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zslx import Intervention, RunView, State, setting


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """Defazio et al. 2024, arXiv 2405.15682, Algorithm 1.

    `names`: of the parameters, by id. `memory`: the method's state, where z stands, by name: what weights a run ships
    must be known from every checkpoint, and those that are kept to be measured have no optimizer's state.
    """

    def __init__(
        self, groups: list[dict[str, Any]], shared: dict[str, Any], names: Mapping[int, str], memory: State
    ) -> None:
        super().__init__(groups, shared | {"step": 0, "total": 0.0})
        self.names, self.memory = names, memory

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (beta, beta2), decay = group["betas"], group["weight_decay"]
            group["step"] += 1
            rate = group["lr"] * math.sqrt(1 - beta2 ** group["step"])
            group["total"] += rate**2
            share = rate**2 / group["total"] if group["total"] else 0.0
            for y in group["params"]:
                if y.grad is None:
                    continue
                z = self.memory["z"][self.names[id(y)]]
                square = self.state[y].setdefault("square", torch.zeros_like(y))
                square.mul_(beta2).addcmul_(y.grad, y.grad, value=1 - beta2)
                update = (y.grad / square.sqrt().add_(group["eps"])).add_(y, alpha=decay)
                # y = (1 − β) z + β x, before and after: x moves by c (z' − x), z by −γ u.
                y.lerp_(z, share).add_(update, alpha=rate * (beta * (1 - share) - 1))
                z.sub_(update, alpha=rate)


@dataclass(frozen=True)
class ScheduleFree(Intervention):
    """Takes gradients between the iterates and their average, and ships the average, in place of a decaying rate.

    Acts on the update and on the weights that are evaluated. It needs no end of the run to be known, and averages away
    what a constant rate leaves as noise, so what it gains may be what decay gains. `rate` needs tuning, with as many
    trials as the baseline's gets; there is no placebo, so that is the control. A schedule that the run has besides
    acts on the rate, and on the weights of the average.
    """

    name = "schedule_free"
    family = "optimization"
    source = "Defazio et al. 2024 (The Road Less Scheduled), arXiv 2405.15682"
    cost = "1.02"

    beta: float = setting(0.9, "β, the share of the average x in y", low=0.1, high=0.9999)
    rate: float = setting(1.0, "learning rate over the configured one", low=1e-3, high=100.0, log=True)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        return {"generator": generator, "z": {name: p.detach().clone() for name, p in run.parameters.items()}}

    def optimizer(self, run: RunView, groups: list[dict], state: State) -> torch.optim.Optimizer:
        optim = run.config.optim
        shared = {"lr": optim.lr * self.rate, "betas": (self.beta, optim.beta2), "eps": optim.eps}
        return ScheduleFreeAdamW(groups, shared, {id(p): name for name, p in run.parameters.items()}, state)

    def average(self, run: RunView, state: State) -> Mapping[str, Tensor]:
        return {name: y.detach().lerp(state["z"][name], 1 - 1 / self.beta) for name, y in run.parameters.items()}
