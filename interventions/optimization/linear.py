"""Linear decay of the learning rate, from its peak after the warm-up to `final` times the peak at the last step."""

from __future__ import annotations

from dataclasses import dataclass

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class Linear(Intervention):
    """Lets the learning rate fall along a straight line.

    Acts on the rate alone. At large scale decay to zero does better than cosine to a tenth. The warm-up stays the run's
    own, and a schedule that the run has besides is multiplied by this one. There is no placebo: the control is the
    baseline at other learning rates.
    """

    name = "linear"
    family = "optimization"
    source = "Bergsma et al. 2025, arXiv 2502.15938 (linear decay to zero)"
    cost = "1.00"
    neutral = {"final": 1.0}

    final: float = setting(0.0, "factor on the peak rate at the last step", low=0.0, high=1.0)

    def lr_factor(self, run: RunView, state: State) -> float:
        warmup = run.config.optim.warmup
        progress = max(0, run.step - warmup) / max(1, run.steps - warmup)
        return 1 - (1 - self.final) * progress
