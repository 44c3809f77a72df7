"""PolyLoss: ℓ + ε (1 − p_t), the first term of the cross-entropy's expansion in 1 − p_t weighed up.

Exact, differentiated through p_t. Cost: one exponential a token. Oracle: published values and autograd
(tests/unit/test_token_weighting.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zslx import Intervention, RunView, State, StepView, setting


@dataclass(frozen=True)
class Poly(Intervention):
    """Adds ε times the mean error probability to the loss (Poly-1).

    Acts through a loss of its own, whose gradient is 1 + ε p_t times the token's: ε > 0 stresses confident tokens,
    ε < 0 the uncertain ones. ε = 0 is the baseline. No placebo: the control is a learning rate tuned as much.
    """

    name = "poly"
    family = "token_weighting"
    source = "Leng et al. 2022, arXiv 2204.12511"
    cost = "1.00"
    neutral = {"epsilon": 0.0}

    epsilon: float = setting(1.0, "ε, weight of the mean of 1 − p_t", low=-1.0, high=6.0)

    def extra_loss(self, run: RunView, view: StepView, state: State) -> Tensor:
        assert view.live_losses is not None
        return -self.epsilon * (-view.live_losses).expm1().mean()
