"""The placebo of a method: everything that the method does, but to the wrong targets.

    group weights   permuted over the groups, the combined gradient rescaled to the norm the true weights gave
                    (where they gave none, because the gradients cancel, left as they are)
    elementwise     what was done to each coordinate (`Intervention.mask`: the factor combined / plain, or a form
                    that has a bound) permuted within each tensor
    tokens          the weights permuted within the batch; whole sequences, where a method gives each one weight
    samples         as many sequences as the method would keep, drawn at random

A method that beats its placebo does so because of where it acts; one that does not merely perturbs the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zslx.intervention.base import CoordinateSums, Intervention, State, StepView, fresh_state

DRAWS = "placebo_generator"


@dataclass(frozen=True)
class Placebo(Intervention):
    """The same method with its weights permuted at random: `placebo:pcgrad` is the placebo of pcgrad.

    Takes the settings of the method it stands for. Which permutation it makes is the method's own declaration:
    weights over groups, the mask within each tensor, weights over the tokens of the batch, or the samples drawn.
    Methods without one (extra losses, optimizers, schedules) are compared with a baseline whose learning rate
    is tuned as much as theirs.
    """

    name = "placebo"
    family = "controls"
    source = "zslx: the control that tells acting on conflict from acting at all"
    cost = "that of the method"
    status = "available as placebo:NAME"


def placebo_of(cls: type[Intervention]) -> type[Intervention]:
    """The placebo class of a method's class. ValueError when the method declares none."""
    kind = cls.placebo
    if kind not in HOOKS:
        raise ValueError(f"{cls.name} has no placebo: its control is the baseline with an equally tuned learning rate")

    def init_state(self: Any, num_groups: int, generator: torch.Generator) -> State:
        state = cls.init_state(self, num_groups, generator)
        state[DRAWS] = torch.Generator().manual_seed(generator.initial_seed() ^ 0x5EED)
        return state

    hook, function = HOOKS[kind]
    body = {
        "name": f"placebo:{cls.name}",
        "placebo": None,
        "neutral": None,
        "init_state": init_state,
        hook: function(cls),
        "__module__": __name__,  # so that this file, too, is part of a placebo trial's identity
        "__doc__": f"The placebo of {cls.name}.",
    }
    return dataclass(frozen=True)(type("PlaceboOf" + cls.__name__, (cls,), body))


def permutation(count: int, state: State, device: torch.device) -> Tensor:
    return torch.randperm(count, generator=state[DRAWS]).to(device)


def permuted_group_weights(cls: type[Intervention]) -> Callable:
    def group_weights(self: Any, gramian: Tensor, group_losses: Tensor, state: State | None) -> Tensor | None:
        state = fresh_state(self, len(gramian), state)
        true = cls.group_weights(self, gramian, group_losses, state)
        if true is None:
            return None
        weights = true[permutation(len(true), state, true.device)]
        g = gramian.double()
        wanted = float(true.double() @ g @ true.double())
        given = float(weights.double() @ g @ weights.double())
        return weights * math.sqrt(wanted / given) if wanted > 0 and given > 0 else weights

    return group_weights


def permuted_mask(cls: type[Intervention]) -> Callable:
    def combine(self: Any, sums: CoordinateSums, state: State) -> Tensor:
        true = cls.combine(self, sums, state)
        mask = self.mask(sums, true)
        order = permutation(mask.numel(), state, mask.device)
        return self.apply_mask(sums, mask.flatten()[order].view_as(mask))

    return combine


def permuted_token_weights(cls: type[Intervention]) -> Callable:
    def token_weights(self: Any, view: StepView, state: State) -> Tensor:
        true = cls.token_weights(self, view, state)
        if (true == true[:, :1]).all():  # one weight a sequence
            return random_order(true, state)
        return true.flatten()[permutation(true.numel(), state, true.device)].view_as(true)

    return token_weights


def random_samples(cls: type[Intervention]) -> Callable:
    def token_weights(self: Any, view: StepView, state: State) -> Tensor:
        return random_order(cls.token_weights(self, view, state), state)

    return token_weights


def random_order(weights: Tensor, state: State) -> Tensor:
    return weights[permutation(len(weights), state, weights.device)]


HOOKS = {
    "group_weights": ("group_weights", permuted_group_weights),
    "elementwise": ("combine", permuted_mask),
    "tokens": ("token_weights", permuted_token_weights),
    "samples": ("token_weights", random_samples),
}
