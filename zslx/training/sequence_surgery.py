"""Gradient surgery of the runs of a pack, in one step: from the gradients of each sequence of each run.

Numbers come over to the host in one transfer, where the methods solve for their weights: for runs of one method with
the same settings at once, where the method has a form for that (`GramianMethod.packed_solve`).

Shapes: R runs, B sequences, T positions, K groups, P numbers of a run.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from zslx.intervention.base import StepView
from zslx.intervention.gradient_method import CoordinateSums, GradientMethod
from zslx.intervention.raised import attempt
from zslx.training.course import Gradient
from zslx.training.group_weights import GroupWeights, weigh
from zslx.training.numbers import finite
from zslx.training.stack import Stack
from zslx.training.step_gradient import StepGradient
from zslx.training.surgery import combine


class SequenceSurgery:
    """One step. `row`: of each run in the stack; losses (R, B, T); gradients (R, B, P) of each sequence's share of its
    run's mean loss; gramians (R, B, B), theirs; means (R,), the mean losses.

    Afterwards `combined` has the runs whose gradient lies in their parameters' `.grad`, and `weighed` those whose
    gradient (P,) is their row of `gradient()`.
    """

    def __init__(
        self, stack: Stack, row: Mapping[int, int], losses: Tensor, gradients: Tensor, gramians: Tensor, means: Tensor
    ):
        self.stack, self.row, self.gradients = stack, row, gradients
        self.seen, self.losses = losses.clone(), losses.clone()  # what methods see is theirs, and may change
        shares = losses.mean(2).div(losses.shape[1])
        kind = torch.promote_types(gramians.dtype, torch.float32)
        numbers = torch.cat([part.to(kind).flatten(1) for part in (gramians, shares, means[:, None])], dim=1).cpu()
        squares, self.shares, mean = numbers.split([gramians[0].numel(), shares.shape[1], 1], dim=1)
        self.gramians, self.means = squares.reshape(gramians.shape), mean.flatten().tolist()
        self.members: dict[int, Tensor] = {}  # (B, K), where a group is not simply one sequence
        self.weights = torch.zeros_like(self.shares)  # (R, B)
        self.combined: list[int] = []
        self.weighed: list[int] = []

    def answers(self, due: Mapping[int, Gradient]) -> dict[int, StepGradient | Exception]:
        """What came of the step of each run that asks for its gradient."""
        found: dict[int, StepGradient | Exception] = {}
        alike: dict[tuple[GradientMethod, int], dict[int, StepGradient]] = {}  # by method, settings and K
        for i, ask in due.items():
            found[i] = outcome = attempt(partial(self._begin, i, ask))
            if isinstance(outcome, StepGradient) and not ask.own.methods.has("combine"):
                assert outcome.group_losses is not None
                alike.setdefault((ask.own.methods.surgeon, len(outcome.group_losses)), {})[i] = outcome
        for runs in alike.values():
            gramians = torch.stack([own.gramian for own in runs.values() if own.gramian is not None])
            losses = torch.stack([own.group_losses for own in runs.values() if own.group_losses is not None])
            step = next(due[i].step for i in runs)
            given = weigh([due[i].own.methods for i in runs], gramians, losses, step)
            for (i, outcome), one in zip(runs.items(), given, strict=True):
                found[i] = attempt(partial(self._take, i, outcome, one))
            self.weighed += runs
        return found

    def gradient(self) -> Tensor:
        """The weighted sums (R, P) of the sequences' gradients."""
        return torch.einsum("rb,rbp->rp", self.weights.to(self.gradients), self.gradients)

    def _begin(self, i: int, ask: Gradient) -> StepGradient:
        """What the method of a run sees of its groups; where it combines coordinate by coordinate, the gradient."""
        row, batch, methods = self.row[i], ask.batch, ask.own.methods
        finite("the loss", self.means[row], ask.step)
        view = StepView(tokens=batch.tokens, targets=batch.targets, losses=self.seen[row], domains=batch.domains)
        outcome = StepGradient(view=view, losses=self.losses[row], loss=math.nan, group_losses=self.shares[row])
        member = None
        if not methods.surgeon.each_sequence:
            ids, count = methods.group_ids(view)
            member = torch.nn.functional.one_hot(ids.cpu(), count).to(self.shares)
            outcome.group_losses = member.T @ self.shares[row]
        if methods.has("combine"):
            groups = self.gradients[row] if member is None else member.T.to(self.gradients) @ self.gradients[row]
            outcome.record = combine(methods, ask.own.model, self._sums(methods.surgeon.sums, groups), ask.step)
            self.combined.append(i)
        elif member is None:
            outcome.gramian = self.gramians[row]
        else:
            self.members[i], outcome.gramian = member, member.T @ self.gramians[row] @ member
        return outcome

    def _take(self, i: int, outcome: StepGradient, given: GroupWeights | Exception) -> StepGradient:
        """The weights of a run's groups, as those of its sequences."""
        chosen = outcome.weighed(given)
        if chosen is not None:
            self.weights[self.row[i]] = self.members[i] @ chosen if i in self.members else chosen
        return outcome

    def _sums(self, wanted: Collection[str], groups: Tensor) -> Iterator[CoordinateSums]:
        """Sums over the group gradients (K, P), by parameter."""
        every = {
            "sum": groups.sum(0),
            "abs_sum": groups.abs().sum(0) if "abs_sum" in wanted else None,
            "sign_sum": groups.sign().sum(0) if "sign_sum" in wanted else None,
        }
        named = {what: self.stack.row(sums) for what, sums in every.items() if sums is not None}
        for name in self.stack.shapes:
            yield CoordinateSums(name=name, count=len(groups), **{what: rows[name] for what, rows in named.items()})
