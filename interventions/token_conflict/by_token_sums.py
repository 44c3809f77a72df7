"""What methods share that learn from sums over token gradients: running means of what is measured now and then.

    mean ← mean + (new − mean) (1 − β) / (1 − β^k)        at the k-th measurement: without bias from the start

What is measured at a step acts from the next one on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zslx import Intervention, RunView, State, StepStats, setting


@dataclass(frozen=True)
class ByTokenSums(Intervention, ABC):
    """A method with `learn`, which is called when the sums over the token gradients are new."""

    family = "token_conflict"
    needs = frozenset({"token_sums"})
    placebo = "token_sums"

    cadence: int = setting(10, "steps from one measurement to the next", low=1, high=10_000)
    decay: float = setting(0.9, "β, the share of the past in the running means, a measurement", low=0.0, high=0.999)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        return {"generator": generator, "measured": 0, "means": {}, "reading": 0.0}

    def observe(self, run: RunView, stats: StepStats, state: State) -> None:
        if run.token_sums is not None and run.token_sums.step == run.step:
            state["measured"] += 1
            self.learn(run, run.token_sums, state)

    @abstractmethod
    def learn(self, run: RunView, sums: Any, state: State) -> None:
        """Take new sums into the state."""

    def metrics(self, run: RunView, state: State) -> Mapping[str, float]:
        """The last reading."""
        return {"reading": state["reading"]}

    def renew(self, state: State, name: str, new: Tensor) -> None:
        """Take a new value into the running mean of a parameter."""
        share = (1 - self.decay) / (1 - self.decay ** state["measured"])
        mean = state["means"].get(name)
        state["means"][name] = new.clone() if mean is None else mean.lerp_(new, share)
