"""my_idea: draws more of the domains whose loss is high.

p_d ∝ exp(strength · (L_d − mean L)),   L_d the mean loss of domain d on the control set
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class MyIdea(Intervention):
    """Draws domains more often the higher their loss is.

    Acts on the mixture. It sees each domain's loss on the control set, a fixed sample of the training text that is
    measured every `cadence` steps; the time that takes is charged to it.
    """

    name = "my_idea"
    family = "data_mixing"
    source = "an idea of mine"
    cost = "1.07: two forward passes every 10 steps"
    needs = frozenset({"domain_losses"})

    strength: float = setting(0.5, "how strongly a high loss attracts", low=-5.0, high=5.0)
    cadence: int = setting(10, "steps from one measurement to the next", low=1, high=10_000)

    def mixture(self, run: RunView, state: State) -> list[float] | None:
        if run.domain_losses is None:
            return None  # nothing is measured yet: the data's own mixture
        mean = sum(run.domain_losses) / len(run.domain_losses)
        return [math.exp(self.strength * (loss - mean)) for loss in run.domain_losses]
