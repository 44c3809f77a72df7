"""An exponential moving average of the weights: what averaging alone gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import Intervention, RunView, State, StepStats, setting


@dataclass(frozen=True)
class EMA(Intervention):
    """Ships the moving average w ← d·w + (1 − d)·θ of the weights; training itself is untouched.

    The effective decay at step t is min(decay, (1 + t)/(10 + t)), so that the average forgets the
    initialisation. Held-out loss is measured on the average; D(Δℓ) on the weights that are trained.
    """

    name = "ema"
    family = "controls"
    source = "Polyak averaging in its exponential form; warm-up of the decay as in common use"
    cost = "1.00, and one copy of the parameters"
    neutral = {"decay": 0.0}

    decay: float = setting(0.99, "share of the old average kept at each step", low=0.0, high=0.99999)

    def observe(self, run: RunView, stats: StepStats, state: State) -> None:
        decay = min(self.decay, (1 + run.step) / (10 + run.step))
        average = state.setdefault("average", {})
        with torch.no_grad():
            for name, parameter in run.parameters.items():
                if name in average:
                    average[name].lerp_(parameter.detach(), 1 - decay)
                else:
                    average[name] = parameter.detach().clone()

    def average(self, run: RunView, state: State) -> Mapping[str, Tensor]:
        return state.get("average", run.parameters)
