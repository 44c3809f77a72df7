"""my_idea: AdamW with a rate of its own for the embeddings.

θ_e moves at factor · η, all other parameters at η
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class MyIdea(Intervention):
    """Trains the embedding at a multiple of the learning rate.

    Acts on the update. `run.roles` says which part of the model a parameter belongs to. An optimizer has no placebo:
    its control is the baseline with an equally tuned learning rate.
    """

    name = "my_idea"
    family = "optimization"
    source = "an idea of mine"
    cost = "1.00"

    factor: float = setting(2.0, "rate of the embedding over that of all else", low=0.01, high=100.0, log=True)

    def optimizer(self, run: RunView, groups: list[dict], state: State) -> torch.optim.Optimizer:
        optim = run.config.optim
        tables = {id(p) for name, p in run.parameters.items() if run.roles[name].group == "embedding"}
        split = []
        for group in groups:
            for rate, own in ((optim.lr * self.factor, True), (optim.lr, False)):
                chosen = [p for p in group["params"] if (id(p) in tables) == own]
                if chosen:
                    split.append(group | {"params": chosen, "lr": rate})
        return torch.optim.AdamW(split, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)
