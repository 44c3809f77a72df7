"""Per-token cross-entropy, the quantity that every part of zslx starts from."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zslx.text.loader import Batch


def arithmetic(dtype: str, device: torch.device, *, cache: bool = True) -> AbstractContextManager[Any]:
    """Autocast for `train.dtype=bfloat16`, else nothing. `cache`: keep the weights' casts (not in a CUDA graph)."""
    if dtype != "bfloat16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=cache)


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Losses (B, T), nats per token, of the next tokens. In float32 at least, exact (no fused approximation)."""
    return losses_of(model, batch.tokens, batch.targets, batch.context)


def losses_of(model: nn.Module, tokens: Tensor, targets: Tensor, context: Tensor | None) -> Tensor:
    """Losses (B, T). With `model.loss_chunk` only the logits of so many positions are there at a time.

    They are made again in the backward, so that of B·T·V numbers no more than B·chunk·V are kept; exact.
    """
    chunk = getattr(model, "loss_chunk", 0)
    if not chunk or not torch.is_grad_enabled():
        return cross_entropy(logits_of(model, tokens, context), targets)
    hidden: Tensor = model.hidden(tokens, context)  # type: ignore[operator]
    found = [
        checkpoint(_head_losses, model.unembedding, h, y, use_reentrant=False, preserve_rng_state=False)
        for h, y in zip(hidden.split(chunk, 1), targets.split(chunk, 1), strict=True)
    ]
    return torch.cat(found, 1)


def _head_losses(unembedding: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(unembedding(hidden), targets)


def logits_of(model: nn.Module, tokens: Tensor, context: Tensor | None) -> Tensor:
    """Logits (B, T, V); a model is told of a context only where there is one."""
    logits: Tensor = model(tokens) if context is None else model(tokens, context)
    return logits


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Losses (B, T) from logits (B, T, V) and target ids (B, T)."""
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
