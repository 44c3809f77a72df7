"""Token alignment: weigh each token by how its gradient agrees with the batch's.

    a_i = ⟨g_i, G⟩,   z_i = mid-rank of a_i in (−1, 1),   w_i ∝ exp(strength · z_i)

All ⟨g_i, G⟩ come from one backward (for G) and one forward-mode product in the direction of G: the first-order
change of every token's loss. Exact to first order. Cost: those two passes beside the plain step.
Oracle: one backward a token (tests/unit/test_token_weighting.py). Per sequence, in one pass: alignment.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from interventions.token_weighting.alignment import mid_ranks
from zslx import Intervention, RunView, State, StepView, setting


@dataclass(frozen=True)
class TokenAlignment(Intervention):
    """Weighs a token by the inner product of its gradient with the batch's: does the step lower its loss?

    Acts on tokens: strength > 0 follows the majority, < 0 listens to the tokens whose loss the plain step would
    raise, 0 is the baseline. The token's own gradient is part of the batch's; with N tokens that is 1/N of it.
    """

    name = "token_alignment"
    family = "token_weighting"
    source = "zslx: gradient alignment as a weight, after the paper's interference (arXiv 2506.05447)"
    cost = "some 3: a second backward and a forward-mode pass are inherent"
    needs = frozenset({"token_alignment"})
    placebo = "tokens"
    neutral = {"strength": 0.0}

    strength: float = setting(0.5, "how strongly agreement is rewarded; negative: punished", low=-3.0, high=3.0)

    def token_weights(self, run: RunView, view: StepView, state: State) -> Tensor:
        assert view.token_alignment is not None
        ranks = mid_ranks(view.token_alignment.flatten()).to(view.losses.dtype)
        return (self.strength * ranks).exp().view_as(view.losses)
