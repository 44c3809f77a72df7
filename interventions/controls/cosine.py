"""Cosine decay of the learning rate: the control for every method that might act like a smaller rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class Cosine(Intervention):
    """The learning rate decays along a cosine from its peak to `final` times the peak at the last step.

    A decaying rate alone raises r_d by 1.3 to 1.6 times, and L_d with it (the zero-sum learning paper,
    App. C.3): a method that looks better has to look better beside this too. The warm-up stays
    the run's own, and a schedule that the run has besides is multiplied by this one.
    """

    name = "cosine"
    family = "controls"
    source = "SGDR, arXiv 1608.03983; as a control: the zero-sum learning paper, arXiv 2506.05447, App. C.3"
    cost = "1.00"
    neutral = {"final": 1.0}

    final: float = setting(0.1, "factor on the peak rate at the last step", low=0.0, high=1.0)

    def lr_factor(self, run: RunView, state: State) -> float:
        warmup = run.config.optim.warmup
        if run.step <= warmup:
            return 1.0
        progress = (run.step - warmup) / max(1, run.steps - warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
