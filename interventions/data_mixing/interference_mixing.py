"""Interference mixing: shares under which two sequences of a batch conflict least.

    A_de = E⟨g, g'⟩ / (s_d s_e),   g and g' gradients of different sequences of d and e,  s_d² = E‖g‖²
    C = (1 − A) / 2                                      conflict: 0 for one direction, 1 for opposite ones
    p = argmin pᵀCp + τ KL(p ‖ equal),   τ = max |A| / strength      ⇔      p ∝ exp(strength · Ap / max |A|)

pᵀCp is the expected conflict of two sequences that are drawn by p. By itself it is least where one domain is drawn
alone, since pᵀAp = ‖Σ p_d ∇L_d / s_d‖² is convex. With the second term the sum is convex: for any v,
vᵀAv ≤ max |A| ‖v‖₁², and, by Cauchy-Schwarz with Σ p = 1, ‖v‖₁² ≤ Σ v_d² / p_d. So the Hessian τ diag(1/p) − A has no
negative direction for strength ≤ 1, and descent finds the minimum. It is a mirror descent, whose step is short enough
to descend always: p ← √(p · exp(strength · Ap / max |A|)), scaled to sum 1.

A comes from the domain Gramian, its diagonal without the part of the variance; it is averaged over the measurements.
Cost: a pass of the gradient engine over the control set, every `cadence` steps. Oracle: explicit gradients, and a
general solver (tests/unit/test_mixing_gradients.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.data_mixing.domain_gradients import ByGradients, without_noise
from zslx import RunView, State, setting

ITERATIONS, PRECISION = 2000, 1e-14


@dataclass(frozen=True)
class InterferenceMixing(ByGradients):
    """Draws less of the domains whose gradients point against the rest of the batch.

    Acts on the mixture. It minimises the expected conflict pᵀCp of two sequences drawn by the shares p, held near equal
    shares by τ KL. Where all domains agree equally with the others and within themselves, the shares are equal. τ goes
    with the largest agreement, so that `strength` means the same at any size: at 1, the largest that keeps the minimum
    unique, no share is more than e² times another; at 0 all are equal. Agreement is measured within a domain too: text
    whose gradients do not even agree among themselves is drawn less. Where no gradients agree to speak of, the shares
    follow noise, which `memory` averages. That it trains better is a hypothesis, not a result. There is no placebo: its
    control is the baseline at other learning rates.
    """

    name = "interference_mixing"
    source = "ours: the interference that this project studies, between domains"
    cost = "1.14: the gradients of the control set every 10 steps"
    needs = frozenset({"domain_gramian", "domain_variance"})

    strength: float = setting(1.0, "how far conflict moves the shares; 0: equal shares", low=0.0, high=1.0)
    memory: float = setting(0.9, "what the mean agreement keeps at a measurement", low=0.0, high=0.999)
    cadence: int = setting(10, "steps from one measurement to the next", low=1, high=10_000)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        zeros = torch.zeros(len(run.domains), len(run.domains), dtype=torch.float64)
        return super().init_state(run, generator) | {"agreement": zeros}

    def learn(self, run: RunView, state: State) -> None:
        # From zero on: the mean is short of its size at first, which the shares do not see.
        state["agreement"] = torch.lerp(agreement(run), state["agreement"], self.memory)
        state["shares"] = least_conflict(state["agreement"], self.strength)


def agreement(run: RunView) -> Tensor:
    """A (D, D): the mean product of two sequences' gradients over their root mean squares."""
    assert run.domain_variance is not None
    products = without_noise(run)
    squares = (products.diagonal() + run.domain_variance).clamp(min=0)  # E‖g‖² = ‖∇L‖² + σ²
    scale = torch.where(squares > 0, squares, torch.inf).rsqrt()
    return scale[:, None] * products * scale


def least_conflict(agreement: Tensor, strength: float) -> Tensor:
    """Shares (D,) that minimise the expected conflict with its regulariser."""
    largest = float(agreement.abs().max())
    shares = torch.full((len(agreement),), 1 / len(agreement), dtype=torch.float64)
    if largest == 0:
        return shares
    pull = strength / largest * agreement
    for _ in range(ITERATIONS):
        before, shares = shares, ((shares.log() + pull @ shares) / 2).softmax(0)
        if float((shares - before).abs().max()) < PRECISION:
            break
    return shares
