"""my_idea: weighs each token by a power of its loss.

weight_i = ℓ_i^power,   ℓ_i the loss of token i in nats; the trainer makes their mean 1
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zslx import Intervention, RunView, State, StepView, setting


@dataclass(frozen=True)
class MyIdea(Intervention):
    """Weighs tokens by a power of their loss.

    This text is the card (`zslx interventions show my_idea`), and its first line is the entry in the list. Say what
    the method acts on, when it does anything, and where it departs from its paper.
    """

    name = "my_idea"  # what INTERVENTION= asks for
    family = "token_weighting"
    source = "an idea of mine"  # paper and arXiv number, where there is one
    cost = "1.00"  # step time relative to the plain step: zslx interventions bench my_idea
    placebo = "tokens"  # its control `placebo:my_idea`: the same weights, on other tokens of the batch
    neutral = {"power": 0.0}  # the settings at which it is the baseline, bit for bit; its test holds it to that

    # Settings: SET="my_idea.power=0.25". Default, meaning, and what is allowed.
    power: float = setting(0.5, "power of the loss; 0 is the baseline", low=-2.0, high=2.0)

    # What the method remembers goes into `state`, what it draws comes from state["generator"]: then it resumes.
    def token_weights(self, run: RunView, view: StepView, state: State) -> Tensor:
        """Weights (B, T), not negative, from the detached losses (B, T), targets, domains, ... of the step."""
        return view.losses.clamp(min=1e-6) ** self.power
