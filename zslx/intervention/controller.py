"""What methods share that steer a run by what they measure of it: a controller that moves in steps of one size.

    at each new reading e of a number's error:
        action = step · sign(e) where |e| > band, else 0
        level ← min(max(level + action, log lowest), log highest)
    factor = exp(level)

A method has one number to steer, or several (one a domain, say). It says what their errors are: an error above 0
raises its factor. Steps of one size make the factor follow the median of a noisy reading, not its outliers. Every
action is kept in the state and in the records. Exact. Checked by tests/unit/test_adaptive.py, on simulated plants.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from zslx.intervention.base import Intervention, RunView, State, setting


@dataclass(frozen=True)
class Controller(Intervention, ABC):
    """A method that steers one number or several. It overrides `errors`, and uses `factors` in its hook.

    Its placebo makes the same actions as another run of the method, in a random order: it moves as much and as far,
    but not when there is reason to. At step 0 nothing moves.
    """

    family = "adaptive"
    placebo = "actions"
    neutral = {"step": 0.0}

    band: float = setting(0.02, "how large an error may be without an action", low=0.0, high=1.0)
    step: float = setting(0.05, "change of the factor's logarithm by one action", low=0.0, high=1.0)
    lowest: float = setting(0.1, "least factor", low=0.001, high=1.0)
    highest: float = setting(1.0, "largest factor", low=1.0, high=1000.0)
    cadence: int = setting(10, "steps from one reading to the next", low=1, high=10_000)

    @abstractmethod
    def errors(self, run: RunView, state: State) -> Sequence[float] | None:
        """The error of each number, above 0 where its factor is to rise; None where nothing new was measured."""

    def first(self, run: RunView) -> list[float]:
        """The factors at the start, one a number."""
        return [1.0]

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        levels = [math.log(factor) for factor in self.first(run)]
        errors, taken = [0.0] * len(levels), [0] * len(levels)
        return {"generator": generator, "levels": levels, "errors": errors, "actions": [], "taken": taken}

    def moves(self, run: RunView, errors: Sequence[float], state: State) -> list[float]:
        """The action for each number."""
        return [math.copysign(self.step, e) if abs(e) > self.band else 0.0 for e in errors]

    def factors(self, run: RunView, state: State) -> list[float]:
        """The factors of this step. A new reading acts once, however often this is called."""
        errors = self.errors(run, state)
        if errors is not None:
            state["errors"] = list(errors)
            actions = self.moves(run, state["errors"], state)
            low, high = math.log(self.lowest), math.log(self.highest)
            state["levels"] = [min(max(a + b, low), high) for a, b in zip(state["levels"], actions, strict=True)]
            state["actions"].append(actions)
            state["taken"] = [n + (action != 0) for n, action in zip(state["taken"], actions, strict=True)]
        return [math.exp(level) for level in state["levels"]]

    def metrics(self, run: RunView, state: State) -> Mapping[str, float]:
        """Of each number its factor, the last error, and how many actions were taken so far."""
        found = {}
        for i, name in enumerate(self.labels(run)):
            found[f"factor{name}"] = math.exp(state["levels"][i])
            found[f"error{name}"] = state["errors"][i]
            found[f"actions{name}"] = state["taken"][i]
        return found

    def labels(self, run: RunView) -> list[str]:
        """What stands behind the keys of each number in the records."""
        return [""]
