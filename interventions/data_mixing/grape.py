"""GRAPE: draw what helps the tasks that improve least.

    a_n = ⟨u_n, m⟩              u_n = c(∇ log L_n),  m = c(Σ_d p_d g_d): how fast task n improves under the mixture
    z ∝ z exp(−task_rate · a)   weights of the tasks
    p ∝ p exp(rate · b)         b_d = ⟨c(g_d), c(Σ_n z_n ∇ log L_n)⟩

c(v) = v / max(1, ‖v‖) is clipping. ∇ log L_n = g_n / L_n: all from the Gramian of the domains' gradients. The tasks are
the domains themselves. Exact up to the departures on the card. Cost: a pass of the gradient engine over the control
set, and two forward passes, every `cadence` steps. Oracle: reference numbers, the formulas on explicit gradients
(tests/unit/test_mixing_gradients.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.data_mixing.domain_gradients import ByGradients, without_noise
from interventions.data_mixing.learned_shares import equal_shares, exponentiated
from zslx import RunView, State, setting

SMOOTHING = 0.001  # equal weights of the tasks mixed in, as in the authors' code


@dataclass(frozen=True)
class GRAPE(ByGradients):
    """Draws domains by how much they help the domains whose log loss falls most slowly.

    Acts on the mixture. Two players: the weights z move to the domains that improve least, the shares to what improves
    those. Departures: the target tasks are the training domains, since no method may see other text; gradients and
    losses are those of the control set, the losses after the step's update; squares of gradients are estimated without
    the bias that few sequences give them, as they are where tasks and domains have texts of their own. Rates,
    cadence, the smoothing of z and the clipping of each gradient to length 1 are those of the authors' code, where the
    learning rate is no factor.
    There is no placebo: its control is the baseline at other learning rates.
    """

    name = "grape"
    source = "Fan et al. 2025, arXiv 2505.20380, Algorithm 1, with the clipping of the authors' code"
    cost = "1.02: the gradients of the control set and two forward passes every 100 steps"
    needs = frozenset({"domain_gramian", "domain_variance", "domain_losses"})

    rate: float = setting(1.5, "step size of the shares' exponents", low=0.0, high=1e6)
    task_rate: float = setting(1.5, "step size of the task weights' exponents", low=0.0, high=1e6)
    cadence: int = setting(100, "steps from one measurement to the next", low=1, high=10_000)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        return super().init_state(run, generator) | {"tasks": equal_shares(run)}

    def learn(self, run: RunView, state: State) -> None:
        assert run.domain_losses is not None
        products, losses = without_noise(run), torch.tensor(run.domain_losses, dtype=torch.float64)
        squares = products.diagonal()
        mixed = state["shares"]  # of the gradients in Σ_d p_d g_d
        improvement = clip(squares / losses**2) / losses * (products @ mixed) * clip(mixed @ products @ mixed)
        tasks = exponentiated(state["tasks"], -self.task_rate * improvement)
        state["tasks"] = tasks * (1 - SMOOTHING) + SMOOTHING / len(tasks)
        asked = state["tasks"] / losses  # of the gradients in Σ_n z_n ∇ log L_n
        help_of = clip(squares) * (products @ asked) * clip(asked @ products @ asked)
        state["shares"] = exponentiated(state["shares"], self.rate * help_of)


def clip(squares: Tensor) -> Tensor:
    """The factors that clip gradients of these squared lengths to length 1; an estimate below 0 is a length of 0."""
    return squares.clamp(min=1).rsqrt()
