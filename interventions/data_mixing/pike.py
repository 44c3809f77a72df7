"""PiKE: draw more of the domains with long and little varying gradients.

    w_d ∝ w_d exp(ζ₁ ‖∇L_d‖² − ζ₂ σ_d² / (2b))        at every measurement

σ² is the variance of a sequence's gradient, b the sequences of a batch. Exact up to the departures on the card. Cost:
a pass of the gradient engine over the control set, every `cadence` steps. Oracle: reference numbers
(tests/unit/test_mixing_gradients.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from interventions.data_mixing.domain_gradients import ByGradients, without_noise
from interventions.data_mixing.learned_shares import exponentiated
from zslx import RunView, State, setting


@dataclass(frozen=True)
class PiKE(ByGradients):
    """Draws domains by how much one step on them should lower the mean loss when gradients do not conflict.

    Acts on the mixture. The long gradient of a domain says that its loss will fall, the variance that a batch shows
    little of it. Departures: both are measured on the control set, and the square of the gradient is estimated without
    the bias that few sequences give it. The exponents have the units of the gradients, so ζ depends on model and loss.
    The variant for balanced losses is left out. There is no placebo: its control is the baseline at other learning
    rates.
    """

    name = "pike"
    source = "Li et al. 2025, arXiv 2502.06244, Algorithm 1"
    cost = "1.14: the gradients of the control set every 10 steps"
    needs = frozenset({"domain_gramian", "domain_variance"})

    zeta1: float = setting(0.01, "ζ₁: what a gradient's square counts", low=0.0, high=1e6)
    zeta2: float = setting(0.01, "ζ₂: what its variance costs", low=0.0, high=1e6)
    cadence: int = setting(10, "steps from one measurement to the next", low=1, high=10_000)

    def learn(self, run: RunView, state: State) -> None:
        assert run.domain_variance is not None
        squares = without_noise(run).diagonal()
        score = self.zeta1 * squares - self.zeta2 / (2 * run.batch_size) * run.domain_variance
        state["shares"] = exponentiated(state["shares"], score)
