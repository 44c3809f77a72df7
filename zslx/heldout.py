"""Held-out loss on the fixed set, and at which steps it and the other instruments are measured."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from zslx.data import Batch
from zslx.losses import token_losses


def heldout_steps(steps: int, points: int) -> list[int]:
    """About `points` log-spaced steps from 0 (before training) to the last, the probe steps among them."""
    spaced = {int(s) for s in np.round(np.geomspace(1, steps, 4 * points))}
    # Early on, rounding merges neighbours: thin the rest to what is left of the number asked for.
    chosen = {0, steps, *probe_steps(steps)}
    rest = sorted(spaced - chosen)
    wanted = max(0, points - len(chosen))
    if rest and wanted:
        log = np.log(rest)
        marks = np.linspace(log[0], log[-1], wanted)
        chosen |= {rest[int(np.abs(log - m).argmin())] for m in marks}
    return sorted(chosen)


def probe_steps(steps: int) -> list[int]:
    """Powers of two, the steps half-way between (1.5 × 2^k), and the last: with t they hold 2t up to the last."""
    found = {steps}
    power = 1
    while power <= steps:
        found |= {power, power * 3 // 2} if power > 1 else {1}
        power *= 2
    return sorted(s for s in found if s <= steps)


class HeldOut:
    """Per-token losses of the fixed held-out set, in passes that leave nothing behind."""

    def __init__(self, batch: Batch, domains: tuple[str, ...], *, chunk: int, dtype: str):
        self.batch, self.domains, self.chunk, self.dtype = batch, domains, max(1, chunk), dtype

    @torch.no_grad()
    def losses(self, model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Losses (S, T) in nats, with `weights` in place of the model's own where given."""
        device = self.batch.tokens.device.type
        cast = torch.autocast(device, dtype=torch.bfloat16) if self.dtype == "bfloat16" else nullcontext()
        if weights is not None:
            own = model
            model = _WithWeights(own, dict(weights))
        with cast:
            parts = [token_losses(model, part) for part in self.parts()]
        return torch.cat(parts)

    def parts(self) -> list[Batch]:
        b = self.batch
        starts = range(0, len(b.tokens), self.chunk)
        cuts = [slice(i, i + self.chunk) for i in starts]
        return [Batch(tokens=b.tokens[c], targets=b.targets[c], domains=b.domains[c]) for c in cuts]

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
