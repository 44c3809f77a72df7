"""my_idea: lowers the learning rate when the changes of token losses cancel more than they should.

factor ← factor · shrink   whenever D of the last measured update is above `target`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class MyIdea(Intervention):
    """Lowers the learning rate for good each time that D of an update exceeds a target.

    Acts on the learning rate: its factor multiplies the configured schedule. D is measured on the control set, a fixed
    sample of the training text, every `cadence` steps; the time that takes is charged to it.
    """

    name = "my_idea"
    family = "adaptive"
    source = "an idea of mine"
    cost = "1.07: two forward passes every 10 steps"
    needs = frozenset({"interference"})

    target: float = setting(0.5, "D above which the rate is lowered", low=0.0, high=1.0)
    shrink: float = setting(0.9, "factor on the rate each time", low=0.1, high=1.0)
    cadence: int = setting(10, "steps from one measurement to the next", low=1, high=10_000)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        return {"generator": generator, "factor": 1.0, "seen": 0}

    def lr_factor(self, run: RunView, state: State) -> float:
        found = run.interference
        if found and found["step"] != state["seen"]:
            state["seen"] = found["step"]
            if found["D"] is not None and found["D"] > self.target:
                state["factor"] *= self.shrink
        return state["factor"]

    def metrics(self, run: RunView, state: State) -> Mapping[str, float]:
        return {"factor": state["factor"]}
