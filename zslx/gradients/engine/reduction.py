"""Reductions of group gradients: the sums, norms and Gramians that are kept when the gradients are dropped.

With g_k (K group gradients) and s_k = ±1 (chance level), per coordinate: Σ_k g_k, Σ_k |g_k|, Σ_k sign g_k,
Σ_k s_k g_k; over coordinates: the Gramian ⟨g_k, g_l⟩, norms ‖g_k‖, and L1 norms Σ_j u_j |g_kj| with weights u.
Exact. A block of rows is reduced at a time, so that the several passes over it find it in the cache. Sums over
coordinates are accumulated in float32 or the parameters' dtype, whichever is wider.

Cost: one pass over B·P numbers for each sum, B²·P multiplications for the Gramian.
Checked by tests/oracles/test_gradients.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zslx.gradients.engine.contributions import GroupGradients

WANTS = ("sum", "abs_sum", "sign_sum", "norms", "gramian", "l1")
# A block stays in the last cache level of a CPU; on a GPU larger blocks save launches.
BLOCK_BYTES = {"cpu": 4 << 20, "other": 256 << 20}


@dataclass(kw_only=True)
class Reduction:
    """Receives each parameter's group gradients once; `keep` retains them (or their factors) for combining."""

    want: frozenset[str]
    signs: Tensor | None = None  # (K,) ±1
    l1_weights: Mapping[str, Tensor] | None = None
    keep: bool = False
    memory_budget: int | None = None
    sum: dict[str, Tensor] = field(default_factory=dict)
    abs_sum: dict[str, Tensor] = field(default_factory=dict)
    sign_sum: dict[str, Tensor] = field(default_factory=dict)
    chance_sum: dict[str, Tensor] = field(default_factory=dict)
    gramians: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)  # (K,) ‖g_k‖²
    l1: dict[str, Tensor] = field(default_factory=dict)  # (K,)
    kept: dict[str, Tensor | GroupGradients] = field(default_factory=dict)
    kept_bytes: int = 0
    received: set[str] = field(default_factory=set)
    _rooms: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := self.want.difference(WANTS):
            raise ValueError(f"want: {', '.join(sorted(unknown))} unknown; allowed are {', '.join(WANTS)}")
        stores = {"sum": self.sum, "abs_sum": self.abs_sum, "sign_sum": self.sign_sum}
        self._coordinate_stores = [(name, store) for name, store in stores.items() if name in self.want]
        if self.signs is not None:
            self._coordinate_stores.append(("chance", self.chance_sum))

    @property
    def sums(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        return self.sum, self.abs_sum, self.sign_sum

    def receive(self, g: GroupGradients) -> None:
        """Take what is wanted from one parameter's group gradients."""
        self.received.add(g.name)
        (height, width), dtype, device = g.shape, g.dtype, g.parameter.device
        dense_bytes = g.count * height * width * dtype.itemsize
        whole = self.keep and self._keep_whole(g, dense_bytes)
        if self.keep and not whole:
            self.kept[g.name] = g
            self.kept_bytes += g.nbytes
        step = height if whole else block_rows(dense_bytes, height, device)
        room = self._room(g.count * step * width, dtype, device, whole)
        accumulator = torch.promote_types(g.parameter.dtype, torch.float32)
        into = self._allocate(g, g.count, accumulator)
        for start in range(0, height, step):
            rows = min(step, height - start)
            block = g.block(start, room[: g.count * rows * width].view(g.count, rows, width))
            here = None if rows == height else slice(start * width, (start + rows) * width)
            self._reduce(g.name, block.view(g.count, -1), into, here, accumulator, whole)
        if whole:
            self.kept[g.name] = block
            self.kept_bytes += dense_bytes

    def _keep_whole(self, g: GroupGradients, dense_bytes: int) -> bool:
        """Whether the gradients themselves are kept: the faster way, while the budget lasts."""
        if self.memory_budget is None or dense_bytes <= g.nbytes:
            return True
        return self.kept_bytes + dense_bytes <= self.memory_budget

    def _room(self, numel: int, dtype: torch.dtype, device: torch.device, fresh: bool) -> Tensor:
        """Memory for `numel` numbers; what is not kept uses the same for every parameter (fresh pages are dear)."""
        if fresh:
            return torch.empty(numel, dtype=dtype, device=device)
        room = self._rooms.get((dtype, device))
        if room is None or room.numel() < numel:
            room = self._rooms[dtype, device] = torch.empty(numel, dtype=dtype, device=device)
        return room

    def _allocate(self, g: GroupGradients, count: int, accumulator: torch.dtype) -> dict[str, Tensor]:
        """Results for one parameter and `count` groups, by what is wanted, flat."""
        p = g.parameter
        into = {}
        for name, store in self._coordinate_stores:
            store[g.name] = result = torch.empty(p.shape, dtype=p.dtype, device=p.device)
            into[name] = result.view(-1)
        if "gramian" in self.want:
            self.gramians[g.name] = torch.zeros(count, count, dtype=accumulator, device=p.device)
        elif "norms" in self.want:
            self.squares[g.name] = torch.zeros(count, dtype=accumulator, device=p.device)
        if "l1" in self.want:
            self.l1[g.name] = torch.zeros(count, dtype=accumulator, device=p.device)
        return into

    def _reduce(
        self,
        name: str,
        block: Tensor,
        into: dict[str, Tensor],
        here: slice | None,
        accumulator: torch.dtype,
        kept: bool,
    ) -> None:
        """One block (K, n) of coordinates `here` (all: None)."""
        wide = block.to(accumulator)
        if here is not None:
            into = {what: result[here] for what, result in into.items()}
        if "gramian" in self.want:
            self.gramians[name].addmm_(wide, wide.T)
        elif "norms" in self.want:
            self.squares[name] += torch.linalg.vector_norm(wide, dim=1).square_()
        if "sum" in into:
            put_sum(into["sum"], block)
        if "sign_sum" in into:
            put_sum(into["sign_sum"], block.sign())
        if self.signs is not None:  # in place where the block is not kept: its absolute values stay as they are
            signs = self.signs.to(block.dtype)[:, None]
            put_sum(into["chance"], block * signs if kept else block.mul_(signs))
        if "abs_sum" not in into and "l1" not in self.want:
            return
        size = block.abs() if kept else block.abs_()
        if "abs_sum" in into:
            put_sum(into["abs_sum"], size)
        if "l1" in self.want and self.l1_weights is None:
            self.l1[name] += size.sum(1, dtype=accumulator)
        elif "l1" in self.want and self.l1_weights is not None:
            u = self.l1_weights[name].reshape(-1)[here or slice(None)]
            self.l1[name] += size.to(accumulator) @ u.to(accumulator)


def block_rows(dense_bytes: int, height: int, device: torch.device) -> int:
    """How many rows of a parameter of `height` rows are done at a time."""
    limit = BLOCK_BYTES["cpu" if device.type == "cpu" else "other"]
    if dense_bytes <= limit:
        return height
    fitting = height * limit // dense_bytes
    return fitting - fitting % 64 if fitting > 64 else max(fitting, 1)  # odd heights are slower


def put_sum(out: Tensor, block: Tensor) -> None:
    """out (n,) = Σ_k block (K, n), added up in the dtype of `out`."""
    if out.dtype == block.dtype:
        torch.sum(block, 0, out=out)
    else:
        out.copy_(block.sum(0, dtype=torch.promote_types(out.dtype, torch.float32)))
