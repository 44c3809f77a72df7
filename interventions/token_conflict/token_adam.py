"""Token Adam: AdamW that divides by what single tokens push, and not by what is left of their sum.

With g_i = ∇ℓ_i / N of token i in a batch of N, m the running mean of the gradient Σ_i g_i:

    a_j = running mean of Σ_i |g_ij|,        d_j = √v̂_j^(1−p) · max(a_j, √v̂_j)^p
    θ ← θ − ηλθ − η κ m̂ / (d + ε),          κ = ‖m̂ / (√v̂ + ε)‖ / ‖m̂ / (d + ε)‖ by tensor    (size = matched)

Σ|g| can be no less than |Σg|; the maximum keeps that for its estimate. Exact but for the sample in a. Cost: by the
measurement, a forward and 2 + ⌈samples/B⌉ backwards every `cadence` steps, and one more pass over the update.
Oracle: these lines, in float64 (tests/unit/test_token_conflict.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interventions.optimization.per_parameter import PerParameter, adam_averages, apply
from interventions.token_conflict.by_token_sums import ByTokenSums
from zslx import RunView, State, setting


class TokenAdamW(PerParameter):
    """`scales` are the running means of Σ|g| by parameter, read at each step; a parameter without one takes AdamW's."""

    def __init__(self, groups: list[dict[str, Any]], shared: dict[str, Any], names: dict[int, str], state: State):
        super().__init__(groups, shared)
        self.names, self.of_method = names, state

    def move(self, p: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        mean, size = adam_averages(p, gradient, group, state)
        update = mean / (size + group["eps"])
        scale = self.of_method["means"].get(self.names[id(p)])
        if scale is not None:
            update = by_tokens(mean, size, scale.to(p), update, group)
        apply(p, update, group)


def by_tokens(mean: Tensor, size: Tensor, scale: Tensor, plain: Tensor, group: dict[str, Any]) -> Tensor:
    """The update with the tokens' scale in its denominator; `plain` is AdamW's."""
    power = group["power"]
    update = mean / (size ** (1 - power) * torch.maximum(scale, size) ** power + group["eps"])
    if not group["matched"]:
        return update
    norm = update.norm()
    return update * torch.where(norm > 0, plain.norm() / norm, 1.0)


@dataclass(frozen=True)
class TokenAdam(ByTokenSums):
    """Moves each coordinate by the share of its tokens' gradients that is not cancelled by other tokens.

    Acts on the update. Adam divides by √v, the size of the batch gradient Σg: where tokens cancel, both m and √v are
    small, and the coordinate moves by the full step once its sum keeps its sign. Here the denominator is Σ|g|, so that
    a step is sign(Σg) · |Σg|/Σ|g|, the agreement of the tokens. Why that: a token's gradient is noise of its own size
    around the mean, so for a diagonal model with curvature h the best step is Σg/h. Near the optimum h is the Fisher
    information, the mean square of a token's gradient. Its root in place of h, as in Adam, gives |Σg|/Σ|g| up to
    the shape of the distribution. In pure noise √v is itself in proportion to √Σg², and the two differ little:
    what differs is coordinates where the batch has a signal, which Adam levels and this does not.
    `size=matched` gives each tensor's update the norm of AdamW's, so that the learning rate means the same; `own`
    leaves steps of |m|/a, which are smaller and need a larger rate. power 0 is the baseline.
    The placebo divides by the scales of other coordinates of the tensor. A first look speaks against the method: at
    0.1M, 1,024 steps and two seeds, at the baseline's rate, held-out loss was 0.8 % above the baseline's, its placebo's
    0.5 %.
    """

    name = "token_adam"
    source = "zslx: the paper's interference between tokens (arXiv 2506.05447) as Adam's scale"
    cost = "1.35 at 0.1M; beside the running means, the sums last measured (three copies of the weights)"
    neutral = {"power": 0.0}

    power: float = setting(1.0, "p, from AdamW's denominator (0) to the tokens' (1)", low=0.0, high=1.0)
    size: str = setting("matched", "norm of each tensor's update: AdamW's, or its own", choices=("matched", "own"))
    samples: int = setting(32, "tokens of which Σ|g| is estimated", low=1, high=100_000)

    def optimizer(self, run: RunView, groups: list[dict], state: State) -> torch.optim.Optimizer:
        optim = run.config.optim
        betas = (optim.beta1, optim.beta2)
        if self.power == 0:
            return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps, fused=True)
        shared = {"lr": optim.lr, "betas": betas, "eps": optim.eps, "power": self.power}
        names = {id(p): name for name, p in run.parameters.items()}
        return TokenAdamW(groups, shared | {"matched": self.size == "matched"}, names, state)

    def learn(self, run: RunView, sums: Any, state: State) -> None:
        net = whole = 0.0
        for name, absolute in sums.abs_sum.items():
            self.renew(state, name, absolute)
            net += float(sums.sum[name].abs().sum(dtype=torch.float64))
            whole += float(absolute.sum(dtype=torch.float64))
        state["reading"] = net / whole if whole else 0.0

    def metrics(self, run: RunView, state: State) -> dict[str, float]:
        """Σ|Σg| / Σ|g| at the last measurement."""
        return {"agreement": state["reading"]}
