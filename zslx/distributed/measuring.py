"""What is measured during training, on several ranks: held-out losses and gradient interference.

Each rank makes the losses of its own held-out sequences, and every rank then has them all. Gradients of sequences go
through the engine (engine.py). What else takes gradients (single tokens, positions, the first-order effect of an
update) every rank measures over all sequences by itself: those parts of a probe take the time that they take on one
device. Exact but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zslx.distributed import group
from zslx.distributed.engine import sharded_stats
from zslx.gradients import GroupStats, sequence_stats
from zslx.gradients.engine.loss_batch import LossFn
from zslx.instruments.during_training import Instruments
from zslx.instruments.heldout import HeldOut
from zslx.instruments.rank_decomposition import Decomposition
from zslx.model.losses import arithmetic, token_losses
from zslx.text.loader import Batch


class RankedHeldOut(HeldOut):
    """Held-out losses, made by all ranks."""

    @torch.no_grad()
    def losses(
        self,
        model: nn.Module,
        weights: Mapping[str, Tensor] | None = None,
        decomposition: Decomposition | None = None,
    ) -> Tensor:
        count, length = self.batch.targets.shape
        if decomposition is not None:
            decomposition.tokens = group.rows(count).start * length  # what it halves by lies before this rank's
        found = group.whole(
            self.losses_of(group.own(self.batch).parts(self.chunk), model, weights, decomposition), count
        )
        if decomposition is not None:
            add_up(decomposition, count * length)
        return found

    def training_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad(), arithmetic(self.dtype, self.batch.tokens.device):
            return group.whole(token_losses(model, group.own(batch)), len(batch.tokens))


class RankedInstruments(Instruments):
    """The instruments of one run on several ranks."""

    @staticmethod
    def sequence_stats(model: nn.Module, loss_fn: LossFn, batch: Batch, **options: Any) -> GroupStats:
        if len(batch.tokens) < group.world():
            return sequence_stats(model, loss_fn, batch, **options)
        return sharded_stats(model, lambda model, batch: loss_fn(model, group.own(batch)), batch, **options)


def add_up(decomposition: Decomposition, tokens: int) -> None:
    """Of all ranks, from each one's tokens."""
    bins = group.largest(decomposition.counts.shape[1], torch.device("cpu"))
    for name in ("counts", "log_probabilities"):
        part: Tensor = getattr(decomposition, name)
        setattr(decomposition, name, group.total(F.pad(part, (0, bins - part.shape[1]))))
    decomposition.tokens = tokens
