"""What the gradient surgery methods share: how tokens are grouped, and how weights come out of a Gramian.

A group's gradient is its share of the batch gradient, g_k = ∇ (Σ_{i∈k} ℓ_i) / N_tokens, so Σ_k g_k = ∇L.

| groups          | ids    | K          | group of a token                                                 |
|-----------------|--------|------------|------------------------------------------------------------------|
| sequence        | (B,)   | B          | its sequence                                                     |
| domain          | (B,)   | D          | its sequence's domain                                            |
| microbatch      | (B,)   | num_groups | consecutive sequences, sizes as equal as possible                |
| token_class     | (B, T) | num_groups | a fixed multiplicative hash of the target id: the same classes   |
|                 |        |            | in every batch, corpus and run, each with 1/K of the vocabulary  |
| loss_quantile   | (B, T) | num_groups | rank of its loss within the batch: group 0 the easiest N/K       |
| token_frequency | (B, T) | num_groups | frequency of the target in the training text: group 0 the most   |
|                 |        |            | frequent ids, each group about 1/K of the text's tokens          |

Exact: everything here. Cost: a sort of the batch's losses or of the vocabulary's counts.
Checked by tests/unit/test_weightings.py (groupings), tests/oracles/test_weightings.py (weights).
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zslx.intervention.base import Intervention, RunView, State, StepView, hook, setting
from zslx.text.token_frequency import frequency_groups

GROUPINGS = ("sequence", "domain", "microbatch", "token_class", "loss_quantile", "token_frequency")
SUMS = ("sum", "abs_sum", "sign_sum")
HASH = 2654435761  # Knuth's multiplicative hash, the golden ratio times 2^32


@dataclass(frozen=True, kw_only=True)
class CoordinateSums:
    """Sums over the K group gradients of one parameter, each of the parameter's shape (None if not asked for)."""

    name: str
    sum: Tensor
    abs_sum: Tensor | None = None
    sign_sum: Tensor | None = None
    count: int


@dataclass(frozen=True)
class GradientMethod(Intervention):
    """A method that acts on group gradients: it sends the step through the gradient engine.

    It overrides `group_weights`, which gives each group a weight, or `combine`, which makes each parameter's gradient
    from sums over the groups. The settings here say what a group is.

    Class attributes beside those of Intervention:
        sums    which of SUMS `combine` reads beside the plain sum
        signed  group weights may have a negative total, since the method may turn the step around
    """

    family = "gradient_surgery"
    sums: ClassVar[tuple[str, ...]] = ()
    signed: ClassVar[bool] = False

    # The setting is `groups` (`SET="pcgrad.groups=domain"`), so the hook is called `group_ids`.
    groups: str = setting("sequence", "which tokens form a group", choices=GROUPINGS)
    num_groups: int = setting(
        4, "number of groups K (microbatch, token_class, loss_quantile, token_frequency)", low=1, high=256
    )
    proxy: bool = setting(
        False, "token groups: measure conflict on the unembedding's gradients alone, with one backward in all"
    )
    scale: str = setting(
        "matched",
        "rescale the combined gradient to the plain one's norm, or leave it as published",
        choices=("matched", "paper"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.num_groups, int):
            raise ValueError(f"{self.name}.num_groups={self.num_groups!r}: must be a whole number")

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        count = {"sequence": run.batch_size, "domain": len(run.domains)}.get(self.groups, self.num_groups)
        return self.init_groups(count, generator)

    def init_groups(self, num_groups: int, generator: torch.Generator) -> State:
        """What the method remembers of K groups. A step may bring another K: what depends on it then starts afresh."""
        return {"generator": generator}

    def group_ids(self, run: RunView, view: StepView, state: State) -> tuple[Tensor, int]:
        """Group ids, (B,) of the sequences or (B, T) of the tokens, and the number of groups K."""
        sequences = view.losses.shape[0]
        device = view.losses.device
        if self.groups == "sequence":
            return torch.arange(sequences, device=device), sequences
        if self.groups == "domain":
            return view.domains, len(run.domains)
        if self.groups == "microbatch":
            if self.num_groups > sequences:
                raise ValueError(
                    f"{self.name}.num_groups={self.num_groups}: more microbatches than"
                    f" the {sequences} sequences of a step"
                )
            return torch.arange(sequences, device=device) * self.num_groups // sequences, self.num_groups
        return BY_TOKEN[self.groups](run, view, self.num_groups), self.num_groups

    @property
    def by_token(self) -> bool:
        """Whether the groups are of tokens; a plugin with a `group_ids` of its own says so by this."""
        return self.groups in BY_TOKEN

    @hook
    def group_weights(self, run: RunView, gramian: Tensor, group_losses: Tensor, state: State) -> Tensor | None:
        """Weights (K,) of the group gradients from their Gramian (K, K) and losses (K,).

        All ones is the plain step. None skips the step.
        """
        raise NotImplementedError

    def packed_group_weights(self, gramians: Tensor, group_losses: Tensor, states: Sequence[State]) -> Tensor:
        """`group_weights` of the R runs of a pack at once: (R, K) from Gramians (R, K, K) and losses (R, K), those of
        each run as if it were alone.

        For runs of this method with the same settings, none of which skips its step. What a run remembers lies in its
        own state, its generator included.
        """
        raise NotImplementedError

    @classmethod
    def solves_packs(cls) -> bool:
        """Whether the class has a packed form, and no form for one run alone but beside one: it could give others."""

        def owner(*names: str) -> type | None:
            own = (c for c in cls.__mro__ if issubclass(c, GradientMethod) and c not in (GradientMethod, GramianMethod))
            return next((c for c in own if vars(c).keys() & set(names)), None)

        packed = owner("packed_group_weights", "packed_solve")
        return packed is not None and owner("group_weights", "weights", "solve") in (None, packed)

    @property
    def each_sequence(self) -> bool:
        """Whether every sequence is a group by itself, in the order of the batch."""
        return self.groups == "sequence" and type(self).group_ids is GradientMethod.group_ids

    @hook
    def combine(self, run: RunView, sums: CoordinateSums, state: State) -> Tensor:
        """The gradient of one parameter from sums over its group gradients."""
        raise NotImplementedError

    def mask(self, sums: CoordinateSums, combined: Tensor) -> Tensor:
        """What `combine` did to each coordinate, in the form that the placebo permutes: a factor on the plain gradient.

        A method whose factor has no bound, because it is large where the groups' gradients nearly cancel, overrides
        this and `apply_mask` with a form that has: permuted, a few huge factors would be the whole gradient.
        """
        nothing = sums.sum == 0
        return torch.where(nothing, 1.0, combined / torch.where(nothing, 1.0, sums.sum))

    def apply_mask(self, sums: CoordinateSums, mask: Tensor) -> Tensor:
        """The combined gradient of one parameter, from what `mask` gives."""
        return sums.sum * mask


def token_class(run: RunView, view: StepView, num_groups: int) -> Tensor:
    """Hash class (B, T) of each target id."""
    return ((view.targets * HASH) % 2**32) * num_groups // 2**32


def loss_quantile(run: RunView, view: StepView, num_groups: int) -> Tensor:
    """Quantile (B, T) of each token's loss within the batch; ties in the order of the batch."""
    losses = view.losses.detach().flatten()
    ranks = torch.empty_like(losses, dtype=torch.int64)
    ranks[losses.argsort(stable=True)] = torch.arange(len(losses), device=losses.device)
    return (ranks * num_groups // len(losses)).view_as(view.losses)


def token_frequency(run: RunView, view: StepView, num_groups: int) -> Tensor:
    """Frequency group (B, T) of each target: zslx/text/token_frequency.py."""
    if run.token_counts is None:
        raise ValueError("groups=token_frequency needs the token counts of the training text")
    of_id = frequency_groups(run.token_counts.to(view.targets.device), num_groups)
    return of_id[view.targets]


BY_TOKEN = {"token_class": token_class, "loss_quantile": loss_quantile, "token_frequency": token_frequency}


@dataclass(frozen=True)
class GramianMethod(GradientMethod, ABC):
    """A method that is a function from the Gramian of the group gradients to their weights.

    Subclasses write `solve`, for one run, or in its place `packed_solve`, for all runs of a pack at once. Weights are
    those of the paper, so that equal weights are all 1 for a method that sums and all 1/K for one that averages;
    `scale=matched` makes that immaterial for the step.
    """

    placebo = "group_weights"
    keeps_empty: ClassVar[bool] = False  # whether `solve` also sees groups that no token of the batch belongs to

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self).solve is GramianMethod.solve and type(self).packed_solve is GramianMethod.packed_solve:
            raise TypeError(f"{type(self).__name__} needs a method solve, or packed_solve")

    def solve(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor | None:
        """Weights (K,) from a finite symmetric Gramian (K, K) and losses (K,), all float64 on the CPU."""
        return self.packed_solve(gramian[None], losses[None], [state])[0]

    def packed_solve(self, gramians: Tensor, losses: Tensor, states: Sequence[State]) -> Tensor:
        """`solve` for R runs at once: weights (R, K) from Gramians (R, K, K), losses (R, K) and the runs' states."""
        raise NotImplementedError

    def group_weights(self, run: RunView, gramian: Tensor, group_losses: Tensor, state: State) -> Tensor | None:
        return self.weights(gramian, group_losses, state)

    def packed_group_weights(self, gramians: Tensor, group_losses: Tensor, states: Sequence[State]) -> Tensor:
        weights = self._over_present(gramians, group_losses, states, self.packed_solve)
        assert weights is not None
        return weights

    def weights(self, gramian: Tensor, group_losses: Tensor, state: State | None = None) -> Tensor | None:
        """Weights (K,) of the group gradients, in the dtype and on the device of the Gramian (K, K).

        Needs no run. `state` is updated in place; None means a fresh one with a generator seeded 0.

        An empty group (no loss and no gradient) is kept out of the method, where its zero gradient would draw
        the solution to zero (MGDA) or leave it undefined (ConFIG); it gets the mean of the other weights. Where
        no group has a gradient all weights are 1. None: the method skips the step.
        """

        def solve(gramians: Tensor, losses: Tensor, states: Sequence[State]) -> Tensor | None:
            solved = self.solve(gramians[0], losses[0], states[0])
            return None if solved is None else solved[None]

        gramian, group_losses = floating(gramian), floating(group_losses)
        state = fresh_state(self, len(group_losses), state)
        weights = self._over_present(gramian[None], group_losses[None], [state], solve)
        return None if weights is None else weights[0]

    def _over_present(
        self,
        gramians: Tensor,
        group_losses: Tensor,
        states: Sequence[State],
        solve: Callable[[Tensor, Tensor, Sequence[State]], Tensor | None],
    ) -> Tensor | None:
        """Weights (R, K) of R runs. Those in which the same groups are present are solved together."""
        gram = checked_gramians(self.name, gramians)
        losses = group_losses.detach().to("cpu", torch.float64)
        if losses.shape != gram.shape[:-1]:
            raise ValueError(f"{self.name}: {tuple(losses.shape[1:])} group losses for {gram.shape[-1]} groups")
        squares = gram.diagonal(dim1=-2, dim2=-1)
        present = (squares > 0) | (losses != 0) | self.keeps_empty
        if present.all() and squares.any(-1).all():  # as nearly always
            solved = solve(gram, losses, states)
            return None if solved is None else solved.to(gramians.device, gramians.dtype)
        weights = torch.ones_like(losses)
        alike: dict[tuple[bool, ...], list[int]] = {}
        for row, (own, moves) in enumerate(zip(present.tolist(), squares.any(-1).tolist(), strict=True)):
            if moves:
                alike.setdefault(tuple(own), []).append(row)
        for own, rows in alike.items():
            index = torch.tensor(own).nonzero().flatten()
            runs = torch.tensor(rows)[:, None]
            given = gram[runs[:, :, None], index[:, None], index], losses[runs, index], [states[r] for r in rows]
            solved = solve(*given)
            if solved is None:
                return None
            solved = solved.to(weights.dtype)
            weights[rows] = solved.mean(-1, keepdim=True)
            weights[runs, index] = solved
        return weights.to(gramians.device, gramians.dtype)


def fresh_state(method: GradientMethod, num_groups: int, state: State | None) -> State:
    """`state`, or a fresh one with a generator seeded 0."""
    return method.init_groups(num_groups, torch.Generator().manual_seed(0)) if state is None else state


def floating(values: Any) -> Tensor:
    """A tensor of floating-point numbers; lists and whole numbers become float64."""
    tensor = torch.as_tensor(values)
    return tensor if tensor.is_floating_point() else tensor.double()


def checked_gramians(name: str, gramians: Tensor) -> Tensor:
    """Gramians (R, K, K) in float64 on the CPU, symmetric to the last bit; ValueError if one is none."""
    if gramians.ndim != 3 or gramians.shape[1] != gramians.shape[2] or gramians.shape[1] == 0:
        raise ValueError(f"{name}: the Gramian must be (K, K) with K > 0, got {tuple(gramians.shape[1:])}")
    gram = gramians.detach().to("cpu", torch.float64)
    if not torch.isfinite(gram).all():
        raise ValueError(f"{name}: the Gramian has entries that are not finite")
    if (gram.diagonal(dim1=-2, dim2=-1) < 0).any():
        raise ValueError(f"{name}: the Gramian has a negative squared norm on its diagonal")
    return (gram + gram.mT) / 2
