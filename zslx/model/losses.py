"""Per-token cross-entropy, the quantity that every part of zslx starts from."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zslx.text.loader import Batch


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Losses (B, T), nats per token, of the next tokens. In float32 at least, exact (no fused approximation)."""
    return cross_entropy(model(batch.tokens), batch.targets)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Losses (B, T) from logits (B, T, V) and target ids (B, T)."""
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
