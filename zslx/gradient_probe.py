"""Gradient interference at a probe step. (The engine's statistics of the held-out sequences.)"""

from __future__ import annotations

from typing import Any

from torch import nn

from zslx.config import Config
from zslx.data import Batch


def gradient_interference(model: nn.Module, batch: Batch, step: int, config: Config) -> dict[str, Any]:
    return {}
