"""What adaptive methods may know of their own training: D, M and the domains' losses on a control set.

The control set is a fixed sample of the training text, spread evenly over the domains. Training passes over it like
over any other text. It is not the held-out set: what judges a run must not steer it. Each measurement takes two
forward passes over `batch_size` sequences, before and after the update; the time is charged to the run's training.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zslx.instruments.loss_interference import interference
from zslx.intervention.composed import Methods
from zslx.text.loader import Batch
from zslx.training.step_gradient import GradientPass

NEEDS = ("interference", "domain_losses")


class ControlSet:
    """Measures for the methods that need it, every `cadence` steps, and writes what they see into the run's view."""

    def __init__(self, batch: Batch, methods: Methods, gradient: GradientPass):
        self.batch, self.methods, self.gradient = batch, methods, gradient
        self._before: Tensor | None = None

    @property
    def due(self) -> bool:
        return any(self.methods.due(need) for need in NEEDS)

    def before(self) -> None:
        """Losses before the update of this step."""
        self._before = self.gradient.losses(self.batch)

    def after(self) -> None:
        """The change that the update made to them, and each domain's mean loss."""
        assert self._before is not None
        run, losses = self.methods.run, self.gradient.losses(self.batch)
        found = interference(losses - self._before)
        run.interference = {"step": run.step, "D": found["D"], "M": found["M"]}
        run.domain_losses = [float(losses[self.batch.domains == d].mean()) for d in range(len(run.domains))]
        self._before = None

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        run = self.methods.run
        return {"interference": run.interference, "domain_losses": run.domain_losses}

    @state.setter
    def state(self, kept: dict[str, Any]) -> None:
        self.methods.run.interference, self.methods.run.domain_losses = kept["interference"], kept["domain_losses"]
