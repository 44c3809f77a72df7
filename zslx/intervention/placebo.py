"""The placebo of a method: everything that the method does, but to the wrong targets.

    group weights   permuted over the groups, the combined gradient rescaled to the norm the true weights gave
                    (where they gave none, because the gradients cancel, left as they are)
    elementwise     what was done to each coordinate (`GradientMethod.mask`: the factor combined / plain, or a form
                    that has a bound) permuted within each tensor
    tokens          the weights permuted within the batch; whole sequences, where a method gives each one weight
    samples         as many sequences as the method would keep, drawn at random
    windows         the chosen windows renamed by one random permutation of each domain's: as many different ones, as
                    often repeated and as late, but others
    token_sums      what the method learns of the token gradients, by coordinates permuted within each tensor: the
                    same permutation for the whole run
    actions         the actions of the controller in another run of the method (`reference=RUN_FOLDER`), each at the
                    time of another one: as many steps up and down, but not when there was reason to

A method that beats its placebo does so because of where it acts; one that does not merely perturbs the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zslx.gradients.norm import squared_norm
from zslx.intervention.base import Intervention, RunView, State, StepStats, StepView
from zslx.intervention.gradient_method import CoordinateSums
from zslx.seeds import generator
from zslx.text.permutation import ROUNDS, permuted

DRAWS = "placebo_generator"
NAMES = "placebo_names"  # the key of the permutation that renames windows
ORDER = "placebo_order"  # of the reference run's actions
ORDERS = "placebo_orders"  # the seed of the permutations of each parameter's coordinates


@cache
def placebo_of(cls: type[Intervention]) -> type[Intervention]:
    """The placebo class of a method's class, one for all runs. ValueError when the method declares none."""
    kind = cls.placebo
    if kind is None:
        raise ValueError(f"{cls.name} has no placebo: its control is the baseline with an equally tuned learning rate")
    if kind not in KINDS:
        raise ValueError(f"intervention {cls.name!r}: placebo={kind!r}; allowed are {', '.join(KINDS)} and None")
    hook, function = KINDS[kind]
    if not cls.overrides(hook):
        raise ValueError(f"intervention {cls.name!r}: placebo={kind!r} permutes what {hook} gives, which it has not")

    def init_state(self: Any, run: RunView, generator: torch.Generator) -> State:
        state = cls.init_state(self, run, generator)
        state[DRAWS] = torch.Generator().manual_seed(generator.initial_seed() ^ 0x5EED)
        return state

    body = {
        "name": f"placebo:{cls.name}",
        "placebo": None,
        "neutral": None,
        "needs": cls.needs | MORE_NEEDS.get(kind, frozenset()),
        "init_state": init_state,
        hook: function(cls),
        "__module__": cls.__module__,
        "__doc__": f"The placebo of {cls.name}.",
    }
    if kind == "group_weights" and cls.solves_packs():  # type: ignore[attr-defined]
        body["packed_group_weights"] = permuted_packed_weights(cls)
    return dataclass(frozen=True)(type("PlaceboOf" + cls.__name__, (cls,), body))


def permutation(count: int, state: State, device: torch.device) -> Tensor:
    return torch.randperm(count, generator=state[DRAWS]).to(device)


def permuted_group_weights(cls: type[Intervention]) -> Callable[..., Any]:
    def group_weights(self: Any, run: RunView, gramian: Tensor, group_losses: Tensor, state: State) -> Tensor | None:
        true = cls.group_weights(self, run, gramian, group_losses, state)  # type: ignore[attr-defined]
        return None if true is None else of_other_groups(true[None], gramian[None], [state])[0]

    return group_weights


def permuted_packed_weights(cls: type[Any]) -> Callable[..., Any]:
    def packed_group_weights(self: Any, gramians: Tensor, group_losses: Tensor, states: Sequence[State]) -> Tensor:
        true = cls.packed_group_weights(self, gramians, group_losses, states)
        return of_other_groups(true, gramians, states)

    return packed_group_weights


def of_other_groups(true: Tensor, gramians: Tensor, states: Sequence[State]) -> Tensor:
    """Weights (R, K) permuted in each run, and rescaled to the norm that the true ones gave with Gramians (R, K, K)."""
    orders = torch.stack([permutation(true.shape[1], state, true.device) for state in states])
    weights = true.gather(1, orders)
    g = gramians.double()
    wanted, given = squared_norm(g, true), squared_norm(g, weights)
    factor = torch.where((wanted > 0) & (given > 0), (wanted / given).sqrt(), 1.0)
    return weights * factor.to(weights.dtype)[:, None]


def permuted_mask(cls: type[Intervention]) -> Callable[..., Any]:
    def combine(self: Any, run: RunView, sums: CoordinateSums, state: State) -> Tensor:
        true = cls.combine(self, run, sums, state)  # type: ignore[attr-defined]
        mask = self.mask(sums, true)
        order = permutation(mask.numel(), state, mask.device)
        return self.apply_mask(sums, mask.flatten()[order].view_as(mask))

    return combine


def permuted_token_weights(cls: type[Intervention]) -> Callable[..., Any]:
    def token_weights(self: Any, run: RunView, view: StepView, state: State) -> Tensor:
        true = cls.token_weights(self, run, view, state)
        if (true == true[:, :1]).all():  # one weight a sequence
            return random_order(true, state)
        return true.flatten()[permutation(true.numel(), state, true.device)].view_as(true)

    return token_weights


def random_samples(cls: type[Intervention]) -> Callable[..., Any]:
    def token_weights(self: Any, run: RunView, view: StepView, state: State) -> Tensor:
        return random_order(cls.token_weights(self, run, view, state), state)

    return token_weights


def renamed_windows(cls: type[Intervention]) -> Callable[..., Any]:
    def windows(self: Any, run: RunView, walk: Any, state: State) -> NDArray[np.int64] | None:
        true = cls.windows(self, run, walk, state)
        if true is None:
            return None
        if NAMES not in state:
            state[NAMES] = torch.randint(2**62, (ROUNDS,), generator=state[DRAWS]).tolist()
        key = np.tile(np.array(state[NAMES], dtype=np.uint64), (len(walk.domains), 1))
        return permuted(np.asarray(true, dtype=np.int64), walk.counts[walk.domains], key)

    return windows


def permuted_actions(cls: type[Intervention]) -> Callable[..., Any]:
    """The reference run's actions in a random order, from the start again where that run has fewer readings."""

    def moves(self: Any, run: RunView, errors: Sequence[float], state: State) -> list[float]:
        given = run.reference_actions[cls.name]
        if not given:  # a run too short for a reading did nothing
            return [0.0] * len(errors)
        if len(given[0]) != len(errors):
            raise ValueError(
                f"the reference run steered {len(given[0])} numbers; allowed is one that steered {len(errors)}"
            )
        if ORDER not in state:
            state[ORDER] = permutation(len(given), state, torch.device("cpu")).tolist()
        return list(given[state[ORDER][len(state["actions"]) % len(given)]])

    return moves


def learned_of_others(cls: type[Intervention]) -> Callable[..., Any]:
    def observe(self: Any, run: RunView, stats: StepStats, state: State) -> None:
        sums = run.token_sums
        if sums is not None:
            if ORDERS not in state:
                state[ORDERS] = int(torch.randint(2**62, (), generator=state[DRAWS]))

            def others(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
                return {name: v.flatten()[order_of(name, v, state[ORDERS])].view_as(v) for name, v in values.items()}

            wrong = replace(
                sums, sum=others(sums.sum), signed_sum=others(sums.signed_sum), abs_sum=others(sums.abs_sum)
            )
            run = replace(run, token_sums=wrong)
        cls.observe(self, run, stats, state)

    return observe


def order_of(name: str, values: Tensor, seed: int) -> Tensor:
    """The permutation of a tensor's coordinates that belongs to its name and a seed."""
    return torch.randperm(values.numel(), generator=generator(seed, name)).to(values.device)


def random_order(weights: Tensor, state: State) -> Tensor:
    return weights[permutation(len(weights), state, weights.device)]


KINDS = {
    "group_weights": ("group_weights", permuted_group_weights),
    "elementwise": ("combine", permuted_mask),
    "tokens": ("token_weights", permuted_token_weights),
    "samples": ("token_weights", random_samples),
    "windows": ("windows", renamed_windows),
    "actions": ("moves", permuted_actions),
    "token_sums": ("observe", learned_of_others),
}
MORE_NEEDS = {"actions": frozenset({"reference_actions"})}
