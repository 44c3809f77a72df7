"""What a run measures on the way: held-out loss, loss interference dt1 and dtt, gradient interference.

Each in a pass of its own that draws nothing and writes nothing of the training's: with any set of instruments
the run is bitwise the same. A probe at step t needs the losses before the update, so it has two halves:

    before(t)   held-out losses at θ_{t−1}
    after(t)    held-out losses at θ_t → dt1 on held-out text, dt1 on the step's own batch (its losses at θ_{t−1}
                came with the step), dtt from t/2 to t, gradient interference at θ_t

dt1 here is the run's own, possibly clipped update; the paper takes one extra, unclipped update on fixed unseen
batches. Cost: a probe is 2 held-out passes, 1 forward of the batch and one pass of the gradient engine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zslx.config import Config
from zslx.data import Batch
from zslx.gradient_probe import gradient_interference
from zslx.heldout import HeldOut, heldout_steps, probe_steps
from zslx.interference import interference
from zslx.losses import token_losses


class Instruments:
    """The instruments of one run. `state` is kept in the run's checkpoints."""

    def __init__(self, config: Config, heldout: HeldOut):
        self.config, self.heldout = config, heldout
        steps = config.train.steps
        self.heldout_steps = set(heldout_steps(steps, config.instruments.heldout_points))
        self.probe_steps = set(probe_steps(steps)) if config.instruments.probes else set()
        self.state: dict[str, Any] = {"losses": {}}  # held-out losses by probe step, for dtt
        self._before: Tensor | None = None

    def due(self, step: int) -> bool:
        return step in self.heldout_steps

    def before(self, step: int, model: nn.Module) -> None:
        """Held-out losses before the update of a probe step."""
        if step in self.probe_steps:
            kept = self.state["losses"].get(str(step - 1))
            self._before = kept if kept is not None else self.heldout.losses(model)

    def after(
        self, step: int, model: nn.Module, batch: Batch | None, batch_losses: Tensor | None, average: Any = None
    ) -> dict[str, Any]:
        """The record of one step: held-out loss, and at probe steps everything else."""
        losses = self.heldout.losses(model)
        shipped = losses if average is None else self.heldout.losses(model, average)
        record = self.heldout.record(shipped)
        if average is not None:
            record["heldout_loss_trained"] = float(losses.double().mean())
        if step not in self.probe_steps:
            return record
        assert batch is not None and batch_losses is not None and self._before is not None
        with torch.no_grad():
            batch_after = token_losses(model, batch)
        record["dt1_batch"] = interference(batch_after - batch_losses)
        record["dt1_heldout"] = interference(losses - self._before)
        self._before = None
        kept = self.state["losses"]
        if step % 2 == 0 and str(step // 2) in kept:
            record["dtt"] = {"from": step // 2} | interference(losses - kept[str(step // 2)])
        kept[str(step)] = losses
        for old in [s for s in kept if 2 * int(s) <= step]:  # a later 2t needs only what lies above
            del kept[old]
        record |= gradient_interference(model, self.heldout.batch, step, self.config)
        return record
