"""What adaptive methods may know of their own training: D, M, the domains' losses and gradients on a control set.

The control set is a fixed sample of the training text, spread evenly over the domains. Training passes over it like
over any other text. It is not the held-out set: what judges a run must not steer it. Losses take two forward passes
over `batch_size` sequences, before and after the update; gradients one pass of the gradient engine, before it. Only
what a method asks for is measured, and the time is charged to the run's training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zslx.instruments.loss_interference import interference
from zslx.intervention.composed import Methods
from zslx.text.loader import Batch
from zslx.training.gradient_pass import GradientPass
from zslx.training.numbers import Diverged

LOSSES = ("interference", "domain_losses")
GRADIENTS = ("domain_gramian", "domain_variance")
NEEDS = (*LOSSES, *GRADIENTS)


class ControlSet:
    """Measures for the methods that need it, every `cadence` steps, and writes what they see into the run's view."""

    def __init__(self, batch: Batch, methods: Methods, gradient: GradientPass):
        self.batch, self.methods, self.gradient = batch, methods, gradient
        self._before: Tensor | None = None
        self.counts = torch.bincount(batch.domains.cpu(), minlength=len(methods.run.domains))
        methods.run.control_sequences = self.counts.tolist()

    @property
    def due(self) -> bool:
        return self._due(NEEDS)

    def _due(self, needs: tuple[str, ...]) -> bool:
        return any(self.methods.due(need) for need in needs)

    def before(self) -> None:
        """Gradients, and losses, before the update of this step."""
        if self._due(GRADIENTS):
            self._gradients()
        if self._due(LOSSES):
            self._before = self.gradient.losses(self.batch)

    def after(self) -> None:
        """The change that the update made to the losses, and each domain's mean loss."""
        if self._before is None:
            return
        run, losses = self.methods.run, self.gradient.losses(self.batch)
        found = interference(losses - self._before)
        run.interference = {"step": run.step, "D": found["D"], "M": found["M"]}
        run.domain_losses = [float(losses[self.batch.domains == d].mean()) for d in range(len(run.domains))]
        self._before = None

    def _gradients(self) -> None:
        """Products of the domains' mean gradients; from those of the sequences, where their variance is wanted too."""
        run, counts = self.methods.run, self.counts.double()
        by_sequence = "domain_variance" in self.methods.needs
        groups = None if by_sequence else (self.batch.domains, len(counts))
        gramian = self.gradient.group_stats(self.batch, groups, want=("gramian",)).gramian
        assert gramian is not None
        if not torch.isfinite(gramian).all():
            raise Diverged(f"a gradient on the control set is not finite at step {run.step}")
        products = gramian.double().cpu() * len(self.batch.domains) ** 2  # the engine's gradients are shares of a mean
        if by_sequence:
            ids = self.batch.domains.cpu()
            squares = torch.zeros_like(counts).index_add(0, ids, products.diagonal())
            products = torch.zeros(len(counts), len(ids), dtype=torch.float64).index_add(0, ids, products)
            products = torch.zeros(len(counts), len(counts), dtype=torch.float64).index_add(0, ids, products.T)
        run.domain_gramian = products / (counts[:, None] * counts)
        if by_sequence:
            spread = squares - counts * run.domain_gramian.diagonal()
            run.domain_variance = torch.where(counts > 1, spread.clamp(min=0) / (counts - 1), torch.nan)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {need: getattr(self.methods.run, need) for need in NEEDS}

    @state.setter
    def state(self, kept: dict[str, Any]) -> None:
        for need in NEEDS:  # an earlier version's checkpoint has fewer
            setattr(self.methods.run, need, kept.get(need))
