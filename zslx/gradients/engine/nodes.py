"""The autograd nodes that a tape puts in place of an operation on a parameter.

Forward, a node does the operation itself. Backward, the input's gradient is the usual one; the parameter's goes to the
tape, kept apart by sequence, and autograd gets it only where the tape says so (`passes`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zslx.gradients.engine.contributions import Rows
from zslx.gradients.engine.sources import Receiver, Use


def unseen(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Run without passing each operation through the tape."""

    @functools.wraps(backward)
    def run(ctx: Any, delta: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # may recompute the forward, which must be seen
        with torch._C.DisableTorchFunction():
            return backward(ctx, delta, *saved)

    return run


class Linear(torch.autograd.Function):
    """y = x Wᵀ + b (x W + b where transposed); the gradients of W and b go to the tape."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tape: Receiver,
        use_w: Use | None,
        use_b: Use | None,
        transposed: bool,
    ) -> Tensor:
        ctx.tape, ctx.uses, ctx.transposed = tape, (use_w, use_b), transposed
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        weight = weight.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight.T if transposed else weight, bias)

    @staticmethod
    @unseen
    def backward(ctx: Any, delta: Tensor, x: Tensor, weight: Tensor) -> tuple[Any, ...]:
        tape: Receiver = ctx.tape
        use_w, use_b = ctx.uses
        rows = delta.reshape(tape.sequences, -1, delta.shape[-1])
        inputs = x.reshape(tape.sequences, -1, x.shape[-1])
        if tape.phase == "check":
            tape.check(use_w, rows)
            tape.check(use_b, rows)
        if tape.wants(use_w):
            tape.collect_product(use_w, rows, inputs, ctx.transposed)
        if tape.wants(use_b):
            tape.collect_dense(use_b, rows.sum(1))
        grad_x = grad_w = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = delta @ (weight.T if ctx.transposed else weight)
        if ctx.needs_input_grad[1] and tape.passes(use_w):
            grad_w = (rows.flatten(0, 1).T @ inputs.flatten(0, 1)).to(ctx.dtypes[0])
            grad_w = grad_w.T if ctx.transposed else grad_w
        if ctx.needs_input_grad[2] and tape.passes(use_b):
            grad_b = rows.sum((0, 1)).to(ctx.dtypes[1])
        return grad_x, grad_w, grad_b, None, None, None, None


class Embedding(torch.autograd.Function):
    """Rows of a table, a row for each id; the gradient goes to the tape."""

    @staticmethod
    def forward(
        ctx: Any, index: Tensor, weight: Tensor, padding: int | None, tape: Receiver, use: Use | None
    ) -> Tensor:
        ctx.tape, ctx.use, ctx.padding, ctx.shape = tape, use, padding, weight.shape
        ctx.save_for_backward(index)
        return F.embedding(index, weight)

    @staticmethod
    @unseen
    def backward(ctx: Any, delta: Tensor, index: Tensor) -> tuple[Any, ...]:
        tape: Receiver = ctx.tape
        if ctx.padding is not None:
            delta = delta.masked_fill((index == ctx.padding)[..., None], 0)
        tape.check(ctx.use, delta)
        if tape.wants(ctx.use):
            index = index.flatten(1)
            rows = Rows.make(index, delta.reshape(*index.shape, -1), tape.grouping)
            tape.arrive(ctx.use.source.names[0], rows)
        grad = None
        if tape.passes(ctx.use):
            grad = delta.new_zeros(ctx.shape).index_add_(0, index.flatten(), delta.flatten(0, -2))
        return None, grad, None, None, None


class Expand(torch.autograd.Function):
    """A source as B views of itself, with `ndim` dimensions; the gradient of each goes to the tape."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, ndim: int, tape: Receiver, use: Use | None) -> Tensor:
        ctx.tape, ctx.use, ctx.shape = tape, use, z.shape
        inner = z.shape[1:] if z.ndim == ndim else z.shape
        return z.view(1, *[1] * (ndim - 1 - len(inner)), *inner).expand(tape.sequences, *[-1] * (ndim - 1))

    @staticmethod
    @unseen
    def backward(ctx: Any, delta: Tensor) -> tuple[Any, ...]:
        tape: Receiver = ctx.tape
        tape.check(ctx.use, delta)
        if tape.wants(ctx.use):
            tape.collect_dense(ctx.use, delta.reshape(len(delta), *ctx.shape))
        grad = delta.sum(0).view(ctx.shape) if tape.passes(ctx.use) else None
        return grad, None, None, None
