"""The position proxy: interference between what single positions add to the weight gradients of linear layers.

Position n adds δ_n a_nᵀ (output gradient times input) to the layer's gradient ΔᵀA. Since |δ aᵀ| = |δ| |a|ᵀ, the sum
of the absolute values over positions is |Δ|ᵀ|A|: all tokens of a batch for one extra product. A position's
contribution is not a token loss's gradient: it holds what all later losses send back to that position.
Exact; checked by tests/oracles/test_gradients_interference.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zslx.gradients.cancellation import Totals, totals_of
from zslx.gradients.engine.contributions import GroupGradients, Grouping, Product
from zslx.gradients.engine.loss_batch import LossFn, Selection, batch_size, choose, cotangent_of, split
from zslx.gradients.engine.tape import Tape
from zslx.gradients.parameter_roles import body_of


@dataclass(frozen=True, kw_only=True)
class PositionInterference:
    """Interference between what single positions add to the weight gradients of the linear layers (a proxy).

    count: positions; by_parameter: totals of each linear layer's matrix (of a tied matrix: its use as
    unembedding only); left_out: parameters that no plain linear layer holds; body: matrices of the layers.
    """

    count: int
    by_parameter: Mapping[str, Totals]
    left_out: tuple[str, ...]
    body: tuple[str, ...]

    @property
    def ratio(self) -> float:
        return sum((self.by_parameter[name] for name in self.body), start=Totals()).ratio

    @property
    def mean(self) -> float:
        return sum((self.by_parameter[name] for name in self.body), start=Totals()).mean


def position_interference(
    model: nn.Module, loss_fn: LossFn, batch: Any, *, parameters: Selection = None
) -> PositionInterference:
    """|ΔᵀA| against |Δ|ᵀ|A| at every linear layer, over all positions of the batch, in one backward."""
    chosen = choose(model, parameters)
    found: dict[str, Totals] = {}

    def receive(g: GroupGradients) -> None:
        products = [use for use in g.uses if isinstance(use, Product)]
        if products:
            found[g.name] = position_totals(products)

    with Tape(model, chosen, batch_size(batch)) as tape:
        losses, mask = split(loss_fn(model, batch))
        cotangent, tokens = cotangent_of(losses, mask)
        ids = torch.zeros(len(losses), dtype=torch.int64)
        tape.backward(losses, cotangent, Grouping.make((ids, 1), len(losses), losses.device), receive)
    return PositionInterference(
        count=int(tokens),
        by_parameter=found,
        left_out=tuple(name for name in chosen if name not in found),
        body=body_of(model, found),
    )


def position_totals(products: list[Product]) -> Totals:
    """Of one matrix, over the token rows of all its uses."""
    whole: Tensor | None = None
    size: Tensor | None = None
    for product in products:
        left, right = product.left.flatten(0, -2), product.right.flatten(0, -2)
        total, absolute = left.T @ right, left.abs().T @ right.abs()
        whole = total if whole is None else whole + total
        size = absolute if size is None else size + absolute
    assert whole is not None and size is not None
    return totals_of(whole, size)
