"""Adds up the gradients of the ranks while the backward runs, in one order on all of them.

The n-th collective of a rank meets the n-th of every other one. The backward makes gradients in the order of its graph,
and the graphs of the ranks differ where a model chooses parameters by what it reads: experts, to which no token of a
rank may be routed. So each gradient waits for its turn, the last layer first, which is nearly the order in which they
are made. A parameter that this rank did not use has its turn with zeros; one that no rank used has no gradient, as on
one device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zslx.distributed import group
from zslx.model.transformer import Transformer


class OrderedReduction:
    """Sums the gradients of a model's parameters over the ranks."""

    def __init__(self, model: nn.Module):
        self.order = [p for p in reversed(list(model.parameters())) if p.requires_grad]
        self.routes = not isinstance(model, Transformer)  # the native model uses every parameter
        self.running = False
        self.there: set[int] = set()
        self.under_way: list[Any] = []  # of the parameters up to the next in turn
        for parameter in self.order:
            parameter.register_post_accumulate_grad_hook(self._made)

    def backward(self, loss: Tensor) -> None:
        """The step's last backward: afterwards `.grad` is the sum over the ranks, the same bits on each."""
        self.there.clear()
        self.under_way.clear()
        self.running = True
        try:
            loss.backward()
        finally:
            self.running = False
        used = torch.tensor([p.grad is not None for p in self.order], dtype=torch.uint8)
        for parameter in self.order[len(self.under_way) :]:
            if parameter.grad is None and self.routes:
                parameter.grad = torch.zeros_like(parameter)
            self._send(parameter)
        for work in self.under_way:
            if work is not None:
                work.wait()
        if self.routes:
            dist.all_reduce(used, dist.ReduceOp.MAX)
            for parameter, by_any in zip(self.order, used.tolist(), strict=True):
                if not by_any:
                    parameter.grad = None

    def _made(self, parameter: Tensor) -> None:
        """A gradient is there: send those whose turn has come."""
        if not self.running:
            return
        self.there.add(id(parameter))
        while len(self.under_way) < len(self.order):
            following = self.order[len(self.under_way)]
            if id(following) not in self.there:
                return
            self._send(following)

    def _send(self, parameter: Tensor) -> None:
        if parameter.grad is None:  # on every rank
            self.under_way.append(None)
            return
        group.sent["all_reduce"] += parameter.grad.nbytes
        self.under_way.append(dist.all_reduce(parameter.grad, async_op=True))
