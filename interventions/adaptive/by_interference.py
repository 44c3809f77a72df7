"""What methods share that steer by interference: the error is D of the last measured update, less its target.

    e = direction · (D − target),   D = 1 − |Σ Δℓ_i| / Σ |Δℓ_i| over the tokens of the control set

How a reading becomes an action: zslx/intervention/controller.py. D of a single update is noisy and soon stays near 0.9;
where no factor brings it to its target, the factor goes to its limit and stays there.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

import torch

from zslx import Controller, RunView, State, setting


@dataclass(frozen=True)
class ByInterference(Controller, ABC):
    """A controller of one factor. `direction`: 1 where D above its target raises the factor, −1 where it lowers it."""

    needs = frozenset({"interference"})
    direction: ClassVar[int] = -1

    target: float = setting(0.9, "D that is aimed at", low=0.0, high=1.0)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        return super().init_state(run, generator) | {"seen": 0}

    def errors(self, run: RunView, state: State) -> list[float] | None:
        found = run.interference
        if not found or found["step"] == state["seen"]:
            return None
        state["seen"] = found["step"]
        return None if found["D"] is None else [self.direction * (found["D"] - self.target)]
