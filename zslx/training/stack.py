"""The weights of several runs of one shape as one matrix, and one pass of AdamW over them.

    weights    (R, P): a row a run, its parameters one after the other, each at a multiple of ALIGN
    m, v       (R, P), steps (R, 1): AdamW's moments, and the updates that each run has made

The parameters of each run, and the moments in its optimizer, become views of its row: whatever else reads or writes
them needs not know.

Shapes: R runs, P numbers of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

ALIGN = 32  # numbers: rows of every parameter begin at 128 bytes, which the kernels of matrix products like

Optimizers = Sequence[torch.optim.Optimizer]


class Stack:
    """Weights of runs whose models have the same shapes."""

    def __init__(self, models: Sequence[nn.Module]):
        self.parameters = [dict(model.named_parameters()) for model in models]
        self.shapes = {name: p.shape for name, p in self.parameters[0].items()}
        self.sizes = [n for p in self.parameters[0].values() for n in (p.numel(), -p.numel() % ALIGN)]
        first = next(iter(self.parameters[0].values()))
        self.weights = torch.zeros(len(models), sum(self.sizes), dtype=first.dtype, device=first.device)
        for own, rows in zip(self.parameters, self.rows(self.weights), strict=True):
            for name, p in own.items():
                rows[name].copy_(p.detach())
                p.data = rows[name]

    def parts(self, flat: Tensor) -> dict[str, Tensor]:
        """By name of a parameter: the (R, *shape) that a matrix (R, P) holds of it. Views."""
        pieces = flat.split(self.sizes, dim=1)[::2]
        return {
            name: piece.unflatten(1, shape) if shape else piece[:, 0]
            for piece, (name, shape) in zip(pieces, self.shapes.items(), strict=True)
        }

    def joined(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The matrix (..., P) of parts (..., *shape) by name, its gaps zero."""
        leading = next(iter(parts.values())).shape[: -len(next(iter(self.shapes.values()))) or None]
        pieces = []
        for (name, shape), gap in zip(self.shapes.items(), self.sizes[1::2], strict=True):
            pieces.append(parts[name].reshape(*leading, shape.numel()))
            pieces.append(pieces[-1].new_zeros(*leading, gap))
        return torch.cat(pieces, dim=-1)

    def row(self, flat: Tensor) -> dict[str, Tensor]:
        """By name, the parts of one row (P,). Views."""
        return {name: part[0] for name, part in self.parts(flat[None]).items()}

    def rows(self, flat: Tensor) -> list[dict[str, Tensor]]:
        """By run, then by name: the parts of a matrix (R, P). Views."""
        return [self.row(one) for one in flat]


class StackedAdamW:
    """AdamW over all runs of a stack at once, each at its own settings; exact but for rounding.

    `optimizers`: that of each run, whose state it shares; None for a run that makes its update for itself. `compiled`:
    whether torch.compile makes one pass of it. On a GPU a graph replays it.
    """

    def __init__(
        self,
        stack: Stack,
        optimizers: Sequence[torch.optim.Optimizer | None],
        clips: Sequence[float],
        *,
        compiled: bool = False,
    ):
        self.stack, weights = stack, stack.weights
        self.update: Callable[..., tuple[Tensor, Tensor]] = torch.compile(self._update) if compiled else self._update
        self.replay: Callable[..., tuple[Tensor, Tensor]] | None = None
        runs = len(optimizers)
        self.m, self.v, self.decay = (torch.zeros_like(weights) for _ in range(3))
        self.steps = weights.new_zeros(runs, 1, dtype=torch.promote_types(weights.dtype, torch.float32))
        settings = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64).repeat(runs, 1).T.unsqueeze(-1).clone()
        moments = zip(stack.rows(self.m), stack.rows(self.v), stack.rows(self.decay), strict=True)
        for r, (optimizer, (m, v, decay)) in enumerate(zip(optimizers, moments, strict=True)):
            limit = clips[r] if clips[r] else math.inf
            settings[3, r] = limit
            if optimizer is None:
                continue
            names = {id(p): name for name, p in stack.parameters[r].items()}
            for group in optimizer.param_groups:
                settings[:3, r, 0] = torch.tensor([*group["betas"], group["eps"]], dtype=torch.float64)
                for p in group["params"]:
                    name, state = names[id(p)], optimizer.state[p]
                    decay[name].fill_(group["weight_decay"])
                    if state:
                        m[name].copy_(state["exp_avg"])
                        v[name].copy_(state["exp_avg_sq"])
                        self.steps[r] = float(state["step"])
                    optimizer.state[p] = {"step": self.steps[r, 0], "exp_avg": m[name], "exp_avg_sq": v[name]}
        self.beta1, self.beta2, self.eps, self.clip = settings.to(weights)

    @torch.no_grad()
    def step(self, gradient: Tensor, losses: Tensor, rates: Sequence[float | None]) -> tuple[Tensor, Tensor]:
        """Clip the gradient (R, P), which lies at one address always, and take the step at the `rates`; None for a run
        that takes none.

        A run whose loss or gradient is not finite keeps weights and moments. Returns the norms (R,) before clipping and
        the clipped gradient, which the next step overwrites.
        """
        own = torch.tensor([math.nan if rate is None else rate for rate in rates], dtype=gradient.dtype)
        rate = own.to(gradient.device, non_blocking=True)[:, None]
        if gradient.device.type != "cuda":
            return self.update(gradient, losses, rate)
        if self.replay is None:  # recorded at rates that move nothing
            self.replay = captured(partial(self.update, gradient), losses, torch.full_like(rate, math.nan))
        norm, clipped = self.replay(losses, rate)
        return norm.clone(), clipped

    def _update(self, gradient: Tensor, losses: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(gradient, dim=1)
        moves = (torch.isfinite(norm) & torch.isfinite(losses))[:, None]
        gradient = torch.where(moves, gradient * (self.clip / (norm[:, None] + 1e-6)).clamp(max=1.0), 0.0)
        moves = moves & ~torch.isnan(rate)
        beta1, beta2 = torch.where(moves, self.beta1, 1.0), torch.where(moves, self.beta2, 1.0)
        self.steps.add_(moves)
        self.m.lerp_(gradient, 1 - beta1)
        self.v.mul_(beta2).addcmul_(gradient, gradient * (1 - beta2))
        count = self.steps.clamp(min=1).double()
        corrected1, corrected2 = ((1 - beta.double() ** count).to(gradient) for beta in (self.beta1, self.beta2))
        change = self.m / self.v.sqrt().div_(corrected2.sqrt()).add_(self.eps)
        rate = torch.where(moves, rate, 0.0)
        self.stack.weights.mul_(1 - rate * self.decay).sub_(change.mul_(rate / corrected1))
        return norm, gradient


def captured(work: Callable[..., Any], *sample: Tensor) -> Callable[..., Any]:
    """`work`, recorded once and replayed at each call, on tensors of the sample's shapes. What it returns keeps its
    addresses, and so is overwritten by the next call."""
    fixed = [tensor.clone() for tensor in sample]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what a first run sets up must not be recorded
        work(*fixed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = work(*fixed)

    def replay(*given: Tensor) -> Any:
        for own, tensor in zip(fixed, given, strict=True):
            own.copy_(tensor)
        graph.replay()
        return found

    return replay
