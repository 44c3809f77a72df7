"""Which positions a position attends to."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_mask(context: Tensor) -> Tensor:
    """(B, 1, T, T): whether position i attends to j, which it does from context[i] to i."""
    at = torch.arange(context.shape[1], device=context.device)
    return ((at <= at[:, None]) & (at >= context[:, :, None]))[:, None]
