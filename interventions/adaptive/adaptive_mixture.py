"""Adaptive mixture: share moves to the domains whose loss falls faster than the others'.

    fall_d = 1 − L_d(now) / L_d(last reading);   e_d = fall_d − mean fall
    p_d = factor_d / Σ factor        (how an error moves a factor: zslx/intervention/controller.py)

Loss falls by where there is still something to learn, so this is a bandit on learning progress (Graves et al.), with a
controller in place of their Exp3. Exact. Cost: two forward passes over the control set a reading. Oracle: simulated
plants (tests/unit/test_adaptive.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from zslx import Controller, RunView, State, setting


@dataclass(frozen=True)
class AdaptiveMixture(Controller):
    """Draws more of the domains whose loss falls, relative to itself, faster than the mean of all.

    Acts on the mixture. Losses are those of the control set, a fixed sample of the training text. It begins with
    equal shares. The placebo moves shares as another run of it did, in a random order. With one domain it does nothing.
    """

    name = "adaptive_mixture"
    source = "zslx; learning progress as a signal: Graves et al. 2017, arXiv 1704.03003"
    cost = "1.07: two forward passes every 10 steps"
    needs = frozenset({"domain_losses"})

    band: float = setting(0.002, "how far a domain's fall may be from the mean without an action", low=0.0, high=1.0)
    lowest: float = setting(0.25, "least factor on a domain's share", low=0.001, high=1.0)
    highest: float = setting(4.0, "largest factor on a domain's share", low=1.0, high=1000.0)

    def first(self, run: RunView) -> list[float]:
        return [1.0] * len(run.domains)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        return super().init_state(run, generator) | {"losses": []}

    def errors(self, run: RunView, state: State) -> list[float] | None:
        found, before = list(run.domain_losses or ()), state["losses"]
        if found == before:  # nothing new was measured
            return None
        state["losses"] = found
        if not before:
            return None
        falls = [1 - now / last for now, last in zip(found, before, strict=True)]
        return [fall - sum(falls) / len(falls) for fall in falls]

    def mixture(self, run: RunView, state: State) -> list[float] | None:
        factors = self.factors(run, state)
        return factors if self.step else None  # equal shares, but not in the order of the data's own mixture

    def labels(self, run: RunView) -> list[str]:
        return [f"_{domain}" for domain in run.domains]

    def metrics(self, run: RunView, state: State) -> Mapping[str, float]:
        """Each domain's share beside what every controller tells."""
        factors = [math.exp(level) for level in state["levels"]]
        shares = zip(self.labels(run), factors, strict=True)
        return dict(super().metrics(run, state)) | {f"share{name}": f / sum(factors) for name, f in shares}
