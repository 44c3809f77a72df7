"""What positions add to the gradient of each matrix, and the sum of its absolute values, by autograd.

The product of inputs a (N, I) with a matrix (O, I) gives the matrix the gradient Δᵀa, where Δ (N, O) is the gradient of
the output; the interference of positions needs |Δ|ᵀ|a| beside it. Zeros that are added to the product have both as
gradients, in a form that vmap takes: one pass serves several runs. The gradient engine has it for a run by itself
(zslx/gradients/position_interference.py).

Shapes: N rows of a product, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Products(TorchFunctionMode):
    """Adds to each product with a matrix, zeros whose gradients are Δᵀa and |Δ|ᵀ|a| over the product's rows.

    beside: by id of a matrix, its name and the two matrices that get these gradients; seen: names of those in products.
    """

    def __init__(self) -> None:
        super().__init__()
        self.beside: dict[int, Any] = {}
        self.seen: set[str] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        product = function(*args, **(kwargs or {}))
        if function is not torch.nn.functional.linear or id(args[1]) not in self.beside:
            return product
        name, *beside = self.beside[id(args[1])]
        self.seen.add(name)
        return product + Crossed.apply(args[0].detach(), *beside)


class Crossed(torch.autograd.Function):
    """Zeros; the gradients of its two matrices are the sum and the absolute sum of the rows' outer products."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, total: Tensor, size: Tensor) -> Tensor:
        return inputs.new_zeros(*inputs.shape[:-1], len(total))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        right, left = ctx.saved_tensors[0].flatten(0, -2), gradients[0].flatten(0, -2)
        return None, left.T @ right, left.abs().T @ right.abs()
