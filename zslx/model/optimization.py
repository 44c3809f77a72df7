"""AdamW as in the paper's runs, and the schedules: factors on the peak learning rate by step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from zslx.config.groups import OptimConfig
from zslx.config.run_config import Config


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Matrices with weight decay; embeddings (a tied head with them), norms and biases without."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if parameter.ndim >= 2 and id(parameter) not in tables else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


def adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """Fused AdamW with the paper's form of the settings."""
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


def warmup_factor(step: int, config: OptimConfig) -> float:
    """Linear from `warmup_start` at step 1 to 1 at step `warmup` (paper: from 0.1 of the peak)."""
    if step >= config.warmup:
        return 1.0
    return config.warmup_start + (1 - config.warmup_start) * (step - 1) / max(1, config.warmup - 1)


def schedule_factor(step: int, config: Config) -> float:
    """The factor on the peak rate at `step`, counted from 1: warm-up, then constant, cosine or wsd.

    wsd is constant, then linear to `final` over the last `cooldown` share of the steps.
    """
    optim, steps = config.optim, config.train.steps
    if step <= optim.warmup or optim.schedule == "constant":
        return warmup_factor(step, optim)
    if optim.schedule == "cosine":
        progress = (step - optim.warmup) / max(1, steps - optim.warmup)
        return optim.final + (1 - optim.final) * 0.5 * (1 + math.cos(math.pi * progress))
    start = max(optim.warmup, round(steps * (1 - optim.cooldown)))
    progress = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
    return 1 - (1 - optim.final) * progress
