"""What is taken from the group gradients of each parameter before they are dropped.

With g_k (K group gradients) and s_k = ±1 (chance level), per coordinate: Σ_k g_k, Σ_k |g_k|, Σ_k sign g_k,
Σ_k s_k g_k; over coordinates: the Gramian ⟨g_k, g_l⟩, norms ‖g_k‖, and L1 norms Σ_j u_j |g_kj| with weights u.
Exact; a block of rows at a time, so that the passes over a block find it in the cache.
Numbers over coordinates are accumulated in float32 or the parameters' dtype, whichever is wider.

Cost: one pass over B·P numbers for each sum, B²·P multiplications for the Gramian.
Checked by tests/oracles/test_gradients.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zslx.gradients.contributions import GroupGradients

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
    _room: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := self.want.difference(WANTS):
            raise ValueError(f"want: {', '.join(sorted(unknown))} unknown; allowed are {', '.join(WANTS)}")

    def receive(self, g: GroupGradients) -> None:
        """Take what is wanted from one parameter's group gradients."""
        whole = self.keep and self._keep_whole(g)
        if self.keep and not whole:
            self.kept[g.name] = g
            self.kept_bytes += g.nbytes
        accumulator = torch.promote_types(g.parameter.dtype, torch.float32)
        self._allocate(g, accumulator)
        height, width = g.shape
        limit = BLOCK_BYTES["cpu" if g.parameter.device.type == "cpu" else "other"]
        fitting = limit // max(g.count * width * g.dtype.itemsize, 1)
        fitting -= fitting % 64 if fitting > 64 else 0  # products of odd heights are slower
        step = height if whole else max(1, min(height, fitting))
        memory = self._memory(g, g.count * step * width, whole)
        for start in range(0, height, step):
            rows = min(step, height - start)
            block = g.block(start, memory[: g.count * rows * width].view(g.count, rows, width))
            self._reduce(g.name, block.view(g.count, -1), start * width, accumulator, whole)
            if whole:
                self.kept[g.name] = block
                self.kept_bytes += block.nbytes

    def _memory(self, g: GroupGradients, numel: int, fresh: bool) -> Tensor:
        """Room for `numel` numbers; where they are not kept, the same for every parameter (fresh pages are dear)."""
        device = g.parameter.device
        if fresh:
            return torch.empty(numel, dtype=g.dtype, device=device)
        room = self._room.get((g.dtype, device))
        if room is None or room.numel() < numel:
            room = self._room[g.dtype, device] = torch.empty(numel, dtype=g.dtype, device=device)
        return room

    def _keep_whole(self, g: GroupGradients) -> bool:
        """Whether the gradients themselves are kept: the faster way, while the budget lasts."""
        if self.memory_budget is None or g.dense_nbytes <= g.nbytes:
            return True
        return self.kept_bytes + g.dense_nbytes <= self.memory_budget

    def _allocate(self, g: GroupGradients, accumulator: torch.dtype) -> None:
        p, device = g.parameter, g.parameter.device
        for name, store in (("sum", self.sum), ("abs_sum", self.abs_sum), ("sign_sum", self.sign_sum)):
            if name in self.want:
                store[g.name] = torch.empty(p.shape, dtype=p.dtype, device=device)
        if self.signs is not None:
            self.chance_sum[g.name] = torch.empty(p.shape, dtype=p.dtype, device=device)
        if "gramian" in self.want:
            self.gramians[g.name] = torch.zeros(g.count, g.count, dtype=accumulator, device=device)
        elif "norms" in self.want:
            self.squares[g.name] = torch.zeros(g.count, dtype=accumulator, device=device)
        if "l1" in self.want:
            self.l1[g.name] = torch.zeros(g.count, dtype=accumulator, device=device)

    def _reduce(self, name: str, block: Tensor, first: int, accumulator: torch.dtype, kept: bool) -> None:
        """One block (K, n) of coordinates first..first+n."""
        here = slice(first, first + block.shape[1])
        wide = block.to(accumulator)

        def place(store: dict[str, Tensor]) -> Tensor:
            flat = store[name].view(-1)
            return flat if len(flat) == block.shape[1] else flat[here]

        if "gramian" in self.want:
            self.gramians[name].addmm_(wide, wide.T)
        elif "norms" in self.want:
            self.squares[name] += torch.linalg.vector_norm(wide, dim=1).square_()
        if self.signs is not None:
            place(self.chance_sum).copy_(self.signs.to(accumulator) @ wide)
        if "sum" in self.want:
            put_sum(place(self.sum), block)
        if "sign_sum" in self.want:
            put_sum(place(self.sign_sum), block.sign())
        if not self.want & {"abs_sum", "l1"}:
            return
        size = block.abs() if kept else block.abs_()
        if "abs_sum" in self.want:
            put_sum(place(self.abs_sum), size)
        if "l1" in self.want:
            u = None if self.l1_weights is None else self.l1_weights[name].reshape(-1)[here].to(accumulator)
            self.l1[name] += size.sum(1, dtype=accumulator) if u is None else size.to(accumulator) @ u


def put_sum(out: Tensor, block: Tensor) -> None:
    """out (n,) = Σ_k block (K, n), added up in the dtype of `out`."""
    if out.dtype == block.dtype:
        torch.sum(block, 0, out=out)
    else:
        out.copy_(block.sum(0, dtype=torch.promote_types(out.dtype, torch.float32)))
