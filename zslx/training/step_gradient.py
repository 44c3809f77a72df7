"""What came of the gradient of a step: of a run by itself, in a pack, or on several processes.

Shapes: B sequences, T positions, K groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from zslx.intervention.base import StepView
from zslx.training.group_weights import GroupWeights
from zslx.training.numbers import Number


@dataclass(kw_only=True)
class StepGradient:
    """What came of the gradient pass; the gradient itself lies in the parameters' `.grad`.

    losses (B, T) are the run's own: those of the view belong to the methods, which may change them.
    """

    view: StepView | None  # None where no method sees it
    losses: Tensor
    loss: Number  # their mean
    record: dict[str, float | bool] = field(default_factory=dict)
    skipped: bool = False
    gramian: Tensor | None = None
    group_losses: Tensor | None = None
    group_weights: Tensor | None = None

    def weighed(self, found: GroupWeights | Exception) -> Tensor | None:
        """Take the weights (K,) of the group gradients; they, with their scale, or None where the step is skipped."""
        if isinstance(found, Exception):
            raise found
        if found.weights is None:
            self.skipped = True
            return None
        self.group_weights, self.record = found.weights, found.record
        return found.weights * found.factor
