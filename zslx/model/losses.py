"""Per-token cross-entropy, the quantity that every part of zslx starts from."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zslx.text.loader import Batch


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Losses (B, T), nats per token, of the next tokens. In float32 at least, exact (no fused approximation)."""
    return cross_entropy(logits_of(model, batch.tokens, batch.context), batch.targets)


def logits_of(model: nn.Module, tokens: Tensor, context: Tensor | None) -> Tensor:
    """Logits (B, T, V); a model is told of a context only where there is one."""
    logits: Tensor = model(tokens) if context is None else model(tokens, context)
    return logits


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Losses (B, T) from logits (B, T, V) and target ids (B, T)."""
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
