"""Warm-up, stable, decay: the learning rate is constant, and falls over the last share of the run.

factor(x) = 1 − (1 − final) · s(x)      x from 0 to 1 over the last `cooldown` of the steps
s(x) = x (linear)  or  √x (sqrt: 1 − √x of Hägele et al. where final = 0)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class WSD(Intervention):
    """Keeps the learning rate at its peak and lets it fall at the end.

    Acts on the rate alone. Up to the cooldown the run is the baseline, step for step, so that what it gains comes from
    the fall. There is no placebo: the control is the baseline at other learning rates.
    """

    name = "wsd"
    family = "optimization"
    source = "Hu et al. 2024 (MiniCPM), arXiv 2404.06395; Hägele et al. 2024, arXiv 2405.18392, for the shapes"
    cost = "1.00"
    neutral = {"final": 1.0}

    cooldown: float = setting(0.2, "share of the run in which the rate falls", low=0.0, high=1.0)
    final: float = setting(0.0, "factor on the peak rate at the last step", low=0.0, high=1.0)
    shape: str = setting("sqrt", "how the rate falls", choices=("linear", "sqrt"))

    def lr_factor(self, run: RunView, state: State) -> float:
        start = run.steps * (1 - self.cooldown)
        x = max(0.0, run.step - start) / (run.steps - start) if self.cooldown else 0.0
        return 1 - (1 - self.final) * (math.sqrt(x) if self.shape == "sqrt" else x)
