"""LAWA: the average of the last few checkpoints.

    shipped weights = mean of the last `kept` of the weights after steps every, 2·every, ...

Exact. Oracle: these lines (tests/unit/test_optimizers.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import Intervention, RunView, State, StepStats, setting


@dataclass(frozen=True)
class LAWA(Intervention):
    """Ships the mean of the weights at the last few multiples of `every` steps; training itself is untouched.

    Acts on the weights that are evaluated. Averaging removes noise of a constant rate, as decay does, so it is a
    control for what might act like either. Until the first multiple the trained weights are shipped.
    """

    name = "lawa"
    family = "optimization"
    source = "Kaddour 2022, arXiv 2209.14981; Sanyal et al. 2023, arXiv 2306.03241"
    cost = "1.00, and `kept` copies of the parameters"

    every: int = setting(64, "steps between the weights that are averaged", low=1, high=1_000_000)
    kept: int = setting(5, "how many are averaged", low=1, high=100)

    def observe(self, run: RunView, stats: StepStats, state: State) -> None:
        if run.step % self.every:
            return
        kept = state.setdefault("kept", [])
        kept.append({name: p.detach().clone() for name, p in run.parameters.items()})
        del kept[: -self.kept]

    def average(self, run: RunView, state: State) -> Mapping[str, Tensor]:
        kept = state.get("kept")
        if not kept:
            return run.parameters
        return {name: torch.stack([weights[name] for weights in kept]).mean(0) for name in run.parameters}
