"""What optimizers share that move each parameter by itself: the walk over the groups, and Adam's two averages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class PerParameter(torch.optim.Optimizer, ABC):
    """An optimizer whose `move` changes one parameter, from its gradient, its group's settings and its state."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, p.grad, group, self.state[p])

    @abstractmethod
    def move(self, p: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Change the parameter in place."""


def adam_averages(p: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """m̂ and √v̂ of Adam after one more gradient; `mean`, `square` and `step` lie in the state."""
    beta1, beta2 = group["betas"]
    if not state:
        state |= {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
    state["step"] += 1
    state["mean"].lerp_(gradient, 1 - beta1)
    state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    size = (state["square"] / (1 - beta2 ** state["step"])).sqrt_()
    return state["mean"] / (1 - beta1 ** state["step"]), size


def apply(p: Tensor, update: Tensor, group: dict[str, Any]) -> None:
    """θ ← θ − η λ θ − η · update."""
    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
