"""Gradient surgery: the gradient of a step from the gradients of its groups, of sequences or of tokens.

One backward gives the Gramian of the group gradients g_k (Σ_k g_k = ∇L) or sums over them, and the method's weights
are combined without a second one. `scale=matched` rescales the combined gradient to the plain one's norm by
√(1ᵀG1 / wᵀGw), the factor clamped to [0.1, 10] and recorded.

The statistics come from the gradient engine, which is never compiled. A compiled run of the native model takes those
of sequences from a tapped model, where the gradients of all of them fit into memory. The runs of a pack:
sequence_surgery.py.

Shapes: B sequences, T positions, K groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zslx.gradients import GroupStats
from zslx.gradients.tapped_model import TappedModel
from zslx.intervention.base import StepView
from zslx.intervention.composed import Methods
from zslx.intervention.gradient_method import CoordinateSums
from zslx.model.transformer import Transformer
from zslx.text.loader import Batch
from zslx.training.group_weights import weigh
from zslx.training.loss_pass import LossPass
from zslx.training.numbers import Diverged, finite
from zslx.training.scale import clamp
from zslx.training.step_gradient import StepGradient


class Surgery:
    """The surgery of a run. `own`: what makes its losses."""

    def __init__(self, own: LossPass):
        self.own, self.methods, self.surgeon = own, own.methods, own.methods.surgeon
        self.elementwise = self.methods.has("combine")
        self.tapped = self._tapped()

    def _tapped(self) -> TappedModel | None:
        own = self.own
        if not (own.compiled and own.taps and isinstance(own.model, Transformer)):
            return None
        if self.surgeon.by_token or self.methods.has("depth") or own.recomputes:
            return None
        return TappedModel(own.model, dtype=torch.bfloat16 if own.dtype == "bfloat16" else None, compiled=True)

    def __call__(self, batch: Batch, step: int) -> StepGradient:
        want = ("sum", *self.surgeon.sums) if self.elementwise else ("gramian",)
        stats, losses, view = self._stats(batch, step, want)
        loss = finite("the loss", float(losses.mean()), step)
        outcome = StepGradient(view=view, losses=losses, loss=loss, group_losses=stats.group_losses)
        if self.elementwise:
            used = (name for name, _ in self.own.model.named_parameters() if name not in stats.unused)
            outcome.record = combine(self.methods, self.own.model, (self._sums(stats, name) for name in used), step)
            return outcome
        assert stats.gramian is not None
        outcome.gramian = stats.gramian
        [found] = weigh([self.methods], stats.gramian[None], stats.group_losses[None], step)
        weights = outcome.weighed(found)
        if weights is not None:
            stats.combine(weights)
        return outcome

    def _stats(self, batch: Batch, step: int, want: tuple[str, ...]) -> tuple[GroupStats, Tensor, StepView]:
        """Statistics of the groups that the method asks for; the losses (B, T); the view of the step."""
        own, by_token, keep = self.own, self.surgeon.by_token, not self.elementwise
        views: list[StepView] = []
        plain: list[Tensor] = []
        alignment = own.token_alignment(batch)

        def weighted(model: nn.Module, batch: Batch) -> Tensor:
            with own.autocast(batch):
                weighted, losses, view = own.step_losses(model, batch, step, alignment)
            assert view is not None  # a surgeon has hooks that see it
            views.append(view)
            plain.append(losses)
            return weighted

        def groups(_: Tensor) -> tuple[Tensor, int]:
            return self.methods.group_ids(views[0])

        given = groups if by_token or self.methods.has("group_ids") else None
        if self.tapped is not None and fits(self.tapped.nbytes(len(batch.tokens)), batch.tokens.device):
            stats = self.tapped.stats(weighted, batch, groups=given, want=want, keep=keep)
        else:
            proxy = by_token and self.surgeon.proxy and not self.elementwise
            stats = own.group_stats(batch, given, weighted, by_token=by_token, want=want, keep=keep, proxy=proxy)
        return stats, plain[0], views[0]

    def _sums(self, stats: GroupStats, name: str) -> CoordinateSums:
        wanted = self.surgeon.sums
        return CoordinateSums(
            name=name,
            sum=stats.sum[name],
            abs_sum=stats.abs_sum[name] if "abs_sum" in wanted else None,
            sign_sum=stats.sign_sum[name] if "sign_sum" in wanted else None,
            count=len(stats.group_losses),
        )


def combine(methods: Methods, model: nn.Module, every: Iterable[CoordinateSums], step: int) -> dict[str, float | bool]:
    """Each parameter's gradient from sums over the groups' gradients, into its `.grad`; what is recorded of it."""
    parameters, every = dict(model.named_parameters()), list(every)
    # Numbers come over from a GPU all at once: each by itself would wait for it.
    for sums, is_finite in zip(every, together(torch.isfinite(sums.sum).all() for sums in every), strict=True):
        if not is_finite:
            raise Diverged(f"the gradient of {sums.name} is not finite at step {step}")
    squares = []
    for sums in every:
        parameter = parameters[sums.name]
        parameter.grad = methods.combine(sums).to(parameter.dtype).contiguous()
        squares += [g.double().square().sum() for g in (sums.sum, parameter.grad)]
    squared = together(squares)
    plain, combined = sum(squared[::2]), sum(squared[1::2])
    record: dict[str, float | bool] = {"norm_ratio": math.sqrt(combined / plain) if plain else 1.0}
    if methods.surgeon.scale == "matched" and combined > 0:
        factor = clamp(math.sqrt(plain / combined))
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        record["scale"] = factor
    return record


def together(numbers: Iterable[Tensor]) -> list[Any]:
    """Numbers on a device, in one transfer."""
    values: list[Any] = torch.stack(list(numbers)).tolist()
    return values


def fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes take less than half of a GPU's memory. The same on every card of its kind."""
    return device.type != "cuda" or size <= torch.cuda.get_device_properties(device).total_memory // 2
