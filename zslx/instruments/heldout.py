"""Held-out loss on the fixed set."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zslx.instruments.rank_decomposition import Decomposition
from zslx.model.losses import cross_entropy, token_losses
from zslx.text.loader import Batch


class HeldOut:
    """Per-token losses of the fixed held-out set, in passes that leave nothing behind.

    Always in the dtype of the parameters, float32 at least: loss changes of a single update are of the size of
    bfloat16's rounding, which would pass for interference.
    """

    def __init__(self, batch: Batch, domains: tuple[str, ...], *, chunk: int, dtype: str):
        self.batch, self.domains, self.chunk, self.dtype = batch, domains, max(1, chunk), dtype

    @torch.no_grad()
    def losses(
        self,
        model: nn.Module,
        weights: Mapping[str, Tensor] | None = None,
        decomposition: Decomposition | None = None,
    ) -> Tensor:
        """Losses (S, T) in nats, with `weights` in place of the model's own where given.

        A `decomposition` is given the ranks of the targets in the same pass.
        """
        if weights is not None:
            model = _WithWeights(model, dict(weights))
        found = []
        for part in self.parts():
            logits = model(part.tokens)
            losses = cross_entropy(logits, part.targets)
            if decomposition is not None:
                decomposition.add(logits, part.targets, losses)
            found.append(losses)
        return torch.cat(found)

    def training_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Losses (B, T) of any batch in the arithmetic of the training, to set beside those of its steps."""
        cast = torch.autocast(self.batch.tokens.device.type, dtype=torch.bfloat16)
        with torch.no_grad(), cast if self.dtype == "bfloat16" else nullcontext():
            return token_losses(model, batch)

    def parts(self) -> list[Batch]:
        return self.batch.parts(self.chunk)

    def measure(
        self, model: nn.Module, average: Mapping[str, Tensor] | None, decomposition: Decomposition | None
    ) -> tuple[Tensor, dict[str, object]]:
        """(losses (S, T) of the model, the record of the weights that the arm would ship: `average` where given).

        The `decomposition` is of the shipped weights, too.
        """
        losses = self.losses(model, decomposition=decomposition if average is None else None)
        if average is None:
            return losses, self.record(losses)
        record = self.record(self.losses(model, average, decomposition))
        return losses, record | {"heldout_loss_trained": float(losses.double().mean())}

    def record(self, losses: Tensor) -> dict[str, object]:
        """Mean loss, over all tokens and by domain."""
        by_sequence = losses.double().mean(1)
        by_domain = {
            name: float(by_sequence[self.batch.domains == d].mean())
            for d, name in enumerate(self.domains)
            if bool((self.batch.domains == d).any())
        }
        return {"heldout_loss": float(losses.double().mean()), "heldout_by_domain": by_domain}


class _WithWeights(nn.Module):
    """A model called with other weights (the tied ones follow their first name)."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]):
        super().__init__()
        self._call = lambda tokens: functional_call(model, weights, (tokens,))

    def forward(self, tokens: Tensor) -> Tensor:
        return self._call(tokens)
