"""Muon: momentum, orthogonalised, for the matrices between embedding and head; AdamW for the rest.

    M ← μM + g;   θ ← θ − η · scale(θ) · NewtonSchulz(g + μM)     (Nesterov)

torch.optim.Muon. Its rate is a multiple of the configured one, which is that of AdamW, so that a tuning of rates moves
both, and the schedule acts on both.
Cost: five small matrix products a matrix. Oracle: torch.optim.Muon called directly (tests/unit/test_exemplars.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class Muon(Intervention):
    """Updates the weight matrices of attention and MLP in orthogonalised directions, all else by AdamW.

    Acts on the update: every singular direction of a matrix's momentum moves by the same amount. `match_rms` scales the
    update to the size of AdamW's (Moonshot), so that one rate serves for both, which is the default. There is no
    placebo: the control is the baseline, its rate tuned with as many trials.
    """

    name = "muon"
    family = "optimization"
    source = "Jordan et al. 2024 (Muon); Liu et al. 2025, arXiv 2502.16982, for match_rms"
    cost = "1.05 at laptop sizes"

    rate: float = setting(1.0, "learning rate of the matrices over the configured one", low=1e-3, high=100.0, log=True)
    momentum: float = setting(0.95, "μ, the momentum", low=0.0, high=0.9999)
    match_rms: bool = setting(True, "scale updates to the root mean square of AdamW's")

    def optimizer(self, run: RunView, groups: list[dict], state: State) -> list[torch.optim.Optimizer]:
        optim = run.config.optim
        matrices = {id(p) for name, p in run.parameters.items() if run.roles[name].body}
        ours = [p for group in groups for p in group["params"] if id(p) in matrices]
        rest = [group | {"params": [p for p in group["params"] if id(p) not in matrices]} for group in groups]
        muon = torch.optim.Muon(
            ours,
            lr=self.rate * optim.lr,
            momentum=self.momentum,
            weight_decay=optim.weight_decay,
            adjust_lr_fn="match_rms_adamw" if self.match_rms else "original",
        )
        betas = (optim.beta1, optim.beta2)
        others = [group for group in rest if group["params"]]
        return [torch.optim.AdamW(others, lr=optim.lr, betas=betas, eps=optim.eps, fused=True), muon]
