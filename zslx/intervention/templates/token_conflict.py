"""my_idea: halves the gradient where single tokens pull it both ways.

G_j ← G_j / 2   where |Σ_i g_ij| < threshold · Σ_i |g_ij|,   g_i the gradients of the tokens
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class MyIdea(Intervention):
    """Halves coordinates of the gradient on which the tokens of the last measured batch cancel.

    Acts on the gradient, before clipping. Of what `needs` asks for, `run.token_sums` has the sums over the gradients
    of single tokens, measured every `cadence` steps; Σ|g| is estimated from `samples` tokens.
    """

    name = "my_idea"
    family = "token_conflict"
    source = "an idea of mine"
    cost = "1.3"
    needs = frozenset({"token_sums"})
    neutral = {"threshold": 0.0}

    threshold: float = setting(0.1, "agreement below which a coordinate is halved", low=0.0, high=1.0)
    cadence: int = setting(10, "steps from one measurement to the next", low=1, high=10_000)
    samples: int = setting(32, "tokens of which Σ|g| is estimated", low=1, high=100_000)

    def filter(self, run: RunView, name: str, gradient: Tensor, state: State) -> Tensor:
        sums = run.token_sums
        if sums is None or name not in sums.abs_sum:
            return gradient
        cancelled = sums.sum[name].abs() < self.threshold * sums.abs_sum[name]
        return gradient.where(~cancelled, gradient / 2)
