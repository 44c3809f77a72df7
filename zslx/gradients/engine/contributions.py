"""Contributions to group gradients: what one use of a parameter adds, kept as factors until it is needed.

A parameter counts as a matrix (R, C): C is all trailing dimensions together, and a vector is one row. Its K group
gradients are a tensor (K, R, C). Each use of the parameter in the forward adds one of

    Product   M_k = Σ_{n∈k} left_n ⊗ right_n     a matrix product: output gradient × input (Goodfellow 2015)
    Rows      M_k[index_n] += value_n            a table look-up
    Dense     M_k                                anything else, already summed

`GroupGradients` is the sum over all uses. It is computed a block of rows at a time, so that absolute sums and Gramians
need no more memory than a block. The uses are summed before anything is computed from them, so that a tied embedding is
exact, its cross term included. Exact; checked by tests/oracles/test_gradients.py.

Shapes: B sequences, K groups, n token rows, R rows and C columns of the parameter.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zslx.gradients.engine.loss_batch import check_groups


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Which of K groups each of B sequences belongs to: ids (B,), with values below K."""

    ids: Tensor
    count: int
    order: Tensor | None  # sequences sorted by group; None: they already are
    sizes: tuple[int, ...]  # sequences in each group
    singles: bool  # whether every group is one sequence
    even: bool  # whether every group has as many sequences

    @classmethod
    def make(cls, groups: tuple[Tensor, int] | None, sequences: int, device: torch.device) -> Grouping:
        """From (ids (B,), K), or each sequence a group of its own."""
        if groups is None:
            ids = torch.arange(sequences, device=device)
            return cls(ids=ids, count=sequences, order=None, sizes=(1,) * sequences, singles=True, even=True)
        ids, count = check_groups(groups, (sequences,))
        ids = ids.to(device)
        sizes = tuple(torch.bincount(ids, minlength=count).tolist())
        in_order = bool((ids[1:] >= ids[:-1]).all())
        return cls(
            ids=ids,
            count=count,
            order=None if in_order else ids.argsort(stable=True),
            sizes=sizes,
            singles=set(sizes) == {1},
            even=len(set(sizes)) == 1,
        )

    def sort(self, value: Tensor) -> Tensor:
        """(B, ...) with the sequences of one group beside each other."""
        return value if self.order is None else value.index_select(0, self.order)

    def sum(self, value: Tensor) -> Tensor:
        """(B, ...) to (K, ...), summed over the sequences of each group."""
        if self.singles:
            return self.sort(value)
        return value.new_zeros(self.count, *value.shape[1:]).index_add_(0, self.ids, value)


@dataclass(eq=False, slots=True)
class Product:
    """M_k = left_kᵀ right_k over the token rows of group k, rows sorted by group.

    left (K, n, R), right (K, n, C); or (rows, R), (rows, C) where the groups have different `sizes` (K,) in rows.
    """

    left: Tensor
    right: Tensor
    sizes: tuple[int, ...] | None = None

    @classmethod
    def make(cls, left: Tensor, right: Tensor, grouping: Grouping) -> Product:
        """From factors (B, N, R) and (B, N, C) of the sequences."""
        left, right = grouping.sort(left), grouping.sort(right)
        if grouping.singles:
            return cls(left, right)
        if grouping.even:
            left, right = (t.reshape(grouping.count, -1, t.shape[-1]) for t in (left, right))
            return cls(left, right)
        sizes = tuple(size * left.shape[1] for size in grouping.sizes)
        return cls(left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1]), sizes)

    @property
    def transposed(self) -> Product:
        return Product(self.right, self.left, self.sizes)

    @property
    def nbytes(self) -> int:
        return self.left.nbytes + self.right.nbytes

    def write(self, out: Tensor, start: int) -> None:
        """Fill `out` (K, r, C) with rows start..start+r."""
        left, rows = self.left, out.shape[1]
        if rows < left.shape[-1]:
            left = left.narrow(-1, start, rows)
        if self.sizes is None:
            torch.bmm(left.mT, self.right, out=out)
            return
        for k, (a, b) in enumerate(zip(left.split(self.sizes), self.right.split(self.sizes), strict=True)):
            torch.mm(a.T, b, out=out[k])

    def add(self, out: Tensor, start: int) -> None:
        extra = torch.empty_like(out, dtype=self.left.dtype)
        self.write(extra, start)
        out += extra

    def add_combined(self, out: Tensor, weights: Tensor) -> None:
        """out (R, C) += Σ_k w_k M_k: the plain product with one factor scaled, no group's matrix made."""
        weights = weights.to(self.left.dtype)
        if self.sizes is None:
            scale = weights[:, None, None]
        else:
            scale = weights.repeat_interleave(torch.tensor(self.sizes, device=weights.device))[:, None]
        narrow_left = self.left.shape[-1] <= self.right.shape[-1]
        left = (self.left * scale if narrow_left else self.left).flatten(0, -2)
        right = (self.right if narrow_left else self.right * scale).flatten(0, -2)
        if out.dtype == left.dtype:
            out.addmm_(left.T, right)
        else:
            out += left.T @ right


@dataclass(eq=False, slots=True)
class Rows:
    """M_k[index] += value: index and group (n,), value (n, C)."""

    index: Tensor
    group: Tensor
    value: Tensor

    @classmethod
    def make(cls, index: Tensor, value: Tensor, grouping: Grouping) -> Rows:
        """From index (B, N) and value (B, N, C) of the sequences."""
        group = grouping.ids[:, None].expand_as(index)
        # In the order of the rows, a block of the table finds its own entries by bisection.
        index, order = index.reshape(-1).sort(stable=True)
        return cls(index, group.reshape(-1)[order], value.reshape(-1, value.shape[-1])[order])

    @property
    def nbytes(self) -> int:
        return self.index.nbytes + self.group.nbytes + self.value.nbytes

    def add(self, out: Tensor, start: int) -> None:
        rows = out.shape[1]
        edges = torch.tensor([start, start + rows], device=self.index.device)
        first, last = torch.searchsorted(self.index, edges).tolist()
        where = self.group[first:last] * rows + (self.index[first:last] - start)
        out.view(-1, out.shape[-1]).index_add_(0, where, self.value[first:last].to(out.dtype))

    def add_combined(self, out: Tensor, weights: Tensor) -> None:
        value = self.value * weights.to(self.value.dtype)[self.group][:, None]
        out.index_add_(0, self.index, value.to(out.dtype))


@dataclass(eq=False, slots=True)
class Dense:
    """M_k itself, (K, R, C)."""

    value: Tensor

    @property
    def nbytes(self) -> int:
        return self.value.nbytes

    def add(self, out: Tensor, start: int) -> None:
        out += self.value[:, start : start + out.shape[1]]

    def add_combined(self, out: Tensor, weights: Tensor) -> None:
        out += torch.tensordot(weights.to(self.value.dtype), self.value, dims=1)


Contribution = Product | Rows | Dense


@dataclass(eq=False)
class GroupGradients:
    """The K group gradients of one parameter: the sum of its uses' contributions, (K, R, C)."""

    name: str
    count: int
    parameter: Tensor
    uses: list[Contribution] = field(default_factory=list)
    shape: tuple[int, int] = field(init=False)  # (R, C)

    def __post_init__(self) -> None:
        self.shape = matrix_shape(self.parameter)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the products are computed in (bfloat16 under autocast)."""
        dtypes = {u.left.dtype if isinstance(u, Product) else u.value.dtype for u in self.uses}
        return functools.reduce(torch.promote_types, dtypes)

    @property
    def nbytes(self) -> int:
        return sum(use.nbytes for use in self.uses)

    def block(self, start: int, out: Tensor) -> Tensor:
        """Rows start..start+r of every group's gradient, written to `out` (K, r, C)."""
        first, *others = self.uses
        if isinstance(first, Product) and first.left.dtype == out.dtype:
            first.write(out, start)
        else:
            out.zero_()
            others = [first, *others]
        for use in others:
            use.add(out, start)
        return out

    def combine(self, weights: Tensor) -> Tensor:
        """Σ_k w_k g_k, of the parameter's shape and dtype."""
        out = torch.zeros(self.shape, dtype=self.parameter.dtype, device=self.parameter.device)
        for use in self.uses:
            use.add_combined(out, weights)
        return out.view(self.parameter.shape)


def matrix_shape(parameter: Tensor) -> tuple[int, int]:
    """(R, C) of a parameter: first dimension by the others; a vector or number is one row."""
    if parameter.ndim < 2:
        return 1, parameter.numel()
    return parameter.shape[0], parameter.numel() // max(parameter.shape[0], 1)
