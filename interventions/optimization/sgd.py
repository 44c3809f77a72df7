"""Stochastic gradient descent with momentum: torch.optim.SGD, with a learning rate of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class SGD(Intervention):
    """Updates along the gradient's moving sum, without Adam's division by its size.

    Acts on the update. It is the paper's control without a preconditioner: if deceleration came from Adam's, it would
    go with it. `rate` needs tuning, with as many trials as the baseline's rate gets; there is no placebo, so that is
    the control. Weight decay is multiplied by the rate, as in AdamW, and is divided by `rate` to be of the same size.
    """

    name = "sgd"
    family = "optimization"
    source = "Polyak 1964; Sutskever et al. 2013 for the Nesterov form"
    cost = "1.00"

    rate: float = setting(100.0, "learning rate over the configured one", low=1e-3, high=1e6, log=True)
    momentum: float = setting(0.9, "share of the update kept for the next", low=0.0, high=0.9999)
    nesterov: bool = setting(False, "look ahead along the momentum")

    def optimizer(self, run: RunView, groups: list[dict], state: State) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            [group | {"weight_decay": group["weight_decay"] / self.rate} for group in groups],
            lr=run.config.optim.lr * self.rate,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
        )
