"""What methods share that learn shares from the domains' gradients on the control set.

A domain's mean gradient over n sequences is its true one with noise: E‖ḡ‖² = ‖∇L‖² + σ²/n, σ² the variance of one
sequence's gradient. Products of two domains carry no such term, since their sequences are others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.data_mixing.learned_shares import LearnedShares
from zslx import RunView, State, StepStats


@dataclass(frozen=True)
class ByGradients(LearnedShares, ABC):
    """A method whose shares change when the gradients are measured: at the first step and every `cadence` steps."""

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        least = 2 * len(run.domains)
        if "domain_variance" in self.needs and run.batch_size < least:
            raise ValueError(
                f"data.batch_size={run.batch_size}: {self.name} needs two sequences of each of the {len(run.domains)} "
                f"domains on the control set, which has data.batch_size; at least {least} are allowed"
            )
        return super().init_state(run, generator)

    def observe(self, run: RunView, stats: StepStats, state: State) -> None:
        if run.step == 1 or run.step % self.cadence == 0:
            self.learn(run, state)

    @abstractmethod
    def learn(self, run: RunView, state: State) -> None:
        """Change `state["shares"]` by what was just measured."""


def without_noise(run: RunView) -> Tensor:
    """Estimates (D, D), without bias, of the products of the domains' true gradients."""
    assert run.domain_gramian is not None and run.domain_variance is not None
    noise = run.domain_variance / torch.tensor(run.control_sequences, dtype=torch.float64)
    return run.domain_gramian - noise.diag()
