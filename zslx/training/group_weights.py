"""Weights of the groups' gradients with their scale and their record, for one run or for runs of a pack at once.

Shapes: R runs whose surgeons are equal, K groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zslx.intervention.composed import Methods, group_weights
from zslx.training.numbers import Diverged
from zslx.training.scale import gramian_records, matched_scale


@dataclass(frozen=True, kw_only=True)
class GroupWeights:
    """Weights (K,), None where the method skips the step, and the factor that gives their sum its norm."""

    weights: Tensor | None = None
    factor: float = 1.0
    record: dict[str, float | bool] = field(default_factory=dict)


def weigh(every: Sequence[Methods], gramians: Tensor, losses: Tensor, step: int) -> list[GroupWeights | Exception]:
    """Of each run, from the Gramians (R, K, K) and losses (R, K) of its groups; an exception where it has none."""
    found: list[GroupWeights | Exception] = [
        GroupWeights() if finite else Diverged(f"a group's gradient is not finite at step {step}")
        for finite in torch.isfinite(gramians).flatten(1).all(1).tolist()
    ]
    asked = [r for r, one in enumerate(found) if not isinstance(one, Exception)]
    if not asked:
        return found
    given = group_weights([every[r] for r in asked], rows_of(gramians, asked), rows_of(losses, asked))
    weighed: dict[int, Tensor] = {}
    for r, one in zip(asked, given, strict=True):
        if isinstance(one, Tensor):
            weighed[r] = one
        elif one is not None:
            found[r] = one
    if not weighed:
        return found
    surgeon, rows = every[0].surgeon, list(weighed)
    weights, gramians = torch.stack(list(weighed.values())), rows_of(gramians, rows)
    factors = [1.0] * len(rows)
    if surgeon.scale == "matched":
        # Some methods sum and some average: that is no part of the factor. A signed mean may be next to nothing.
        weights = weights / (weights.abs() if surgeon.signed else weights).mean(1, keepdim=True)
        factors = matched_scale(gramians, weights).tolist()
    for r, own, factor, record in zip(rows, weights, factors, gramian_records(gramians, weights), strict=True):
        found[r] = GroupWeights(weights=own, factor=factor, record=record | {"scale": factor})
    return found


def rows_of(values: Tensor, rows: list[int]) -> Tensor:
    """Of values (R, ...); as they are where all are wanted."""
    return values if len(rows) == len(values) else values[rows]
