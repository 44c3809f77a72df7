"""my_idea: weighs each group by the inverse of its gradient's norm to a power.

w_k = ‖g_k‖^(−power),   ‖g_k‖² = G_kk
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zslx import GramianMethod, State, setting


@dataclass(frozen=True)
class MyIdea(GramianMethod):
    """Lets groups with short gradients count more.

    Acts on group gradients, seen through their Gramian. `my_idea.groups` says what a group is: sequences, domains,
    classes of tokens, and so on. `scale` keeps the length of the plain step.
    """

    name = "my_idea"
    source = "an idea of mine"
    cost = "at most 1.35: Gramian"
    neutral = {"power": 0.0}

    power: float = setting(1.0, "power of the inverse norm; 0 is the baseline", low=0.0, high=2.0)

    def solve(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor:
        """Weights (K,) from the Gramian (K, K) and the groups' losses (K,), float64 on the CPU."""
        norms = gramian.diagonal().sqrt()
        return (norms / norms.max()).clamp(min=1e-3) ** -self.power
