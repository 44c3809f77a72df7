"""The gradient of one step on several ranks: each makes that of its own sequences, and the sum goes to all.

    losses      own forward, then gathered, so that a method sees the losses of the whole batch
    weights     every rank asks the methods, with the same numbers and so the same answers, and takes its own rows
    gradient    ∂/∂θ Σ_{own} w ℓ / N, N tokens of the whole batch; added up over the ranks while the backward runs,
                each parameter's as soon as it is there
    surgery     the engine on own sequences, its statistics of all of them (engine.py)

Exact but for the order of sums. What needs the graph of the whole batch in one place is refused, by name.
Checked against one process by tests/distributed/test_ranks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zslx.distributed import group
from zslx.distributed.engine import sharded_stats
from zslx.distributed.reduction import OrderedReduction
from zslx.gradients import GroupStats
from zslx.gradients.engine.loss_batch import Groups, LossFn
from zslx.intervention.composed import Methods
from zslx.text.loader import Batch
from zslx.training.gradient_pass import GradientPass
from zslx.training.step_gradient import StepGradient

WHOLE_GRAPH = ("logits", "token_sums")  # needs that are not made of parts of a batch


class RankedPass(GradientPass):
    """Computes the gradient of a step together with the other ranks."""

    adds_up = True  # gradients are added up here, not by the model
    taps = False  # the engine hands over each parameter by itself, whose shares are then exchanged

    def __init__(self, model: nn.Module, methods: Methods, **options: Any):
        check_methods(methods)
        super().__init__(model, methods, **options)
        self.gradients = OrderedReduction(model) if self.adds_up else None

    def __call__(self, batch: Batch, step: int) -> StepGradient:
        if len(batch.tokens) < group.world():
            raise ValueError(
                f"step {step}: a batch of {len(batch.tokens)} sequences for {group.world()} ranks; each needs one"
            )
        return super().__call__(batch, step)

    def splits(self, batch: Batch) -> bool:
        # Decided by numbers that all ranks share: their own parts may differ by one sequence.
        return bool(self.micro_batch) and len(batch.tokens) > self.micro_batch * group.world()

    def part(self, batch: Batch) -> Batch:
        return group.own(batch)

    def rows(self, values: Tensor) -> Tensor:
        return values[group.rows(len(values))]

    def whole(self, values: Tensor, batch: Batch) -> Tensor:
        return group.whole(values, len(batch.tokens))

    def mean(self, losses: Tensor, batch: Batch) -> Tensor:
        return losses.sum() / batch.tokens.numel()

    def total(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [group.total(tensor) for tensor in tensors]

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        if self.gradients is None or not last:
            loss.backward()
        else:
            self.gradients.backward(loss)

    def group_stats(
        self, batch: Batch, groups: Groups | None, losses: LossFn | None = None, **options: Any
    ) -> GroupStats:
        def own(model: nn.Module, batch: Batch) -> Tensor:
            return self.live_losses(model, self.part(batch))

        return sharded_stats(self.model, losses or own, batch, groups, **options)


def check_methods(methods: Methods) -> None:
    """ValueError, naming the method, where one needs the graph of the whole batch in one place."""
    for method in methods.hooks["extra_loss"]:
        raise ValueError(
            f"{method.name}: its extra loss is built on the graph of the whole batch; train it on one device"
        )
    for need in WHOLE_GRAPH:
        for method in methods.needing(need):
            raise ValueError(f"{method.name}: it needs {need} of the whole batch in one place; train it on one device")
