"""Forward and backward of several runs at once, over their stacked weights; on a GPU from CUDA graphs.

A graph replays all launches of a pass as one, at a fixed address and shape. So there is one for each shape of the
batches, at most GRAPHS; further shapes (a curriculum may have many) go without.

Shapes: R runs, B sequences, T positions, V vocabulary, S held-out sequences, P numbers of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zslx.instruments.heldout import HeldOut
from zslx.instruments.rank_decomposition import Decomposition
from zslx.model.losses import cross_entropy
from zslx.text.loader import Batch
from zslx.training.stack import Stack
from zslx.training.step_gradient import GradientPass

GRAPHS = 8
Pass = Callable[..., tuple[Tensor, ...]]


class StackedPass:
    """Passes over the runs of a stack. `first`: the gradient pass of one of them, whose model and dtype all share.

    `logits`: whether a method of a run needs them.
    """

    def __init__(self, stack: Stack, first: GradientPass, *, logits: bool):
        self.stack, self.model, self.dtype, self.logits = stack, first.model, first.dtype, logits
        self.leaf = stack.weights.detach().requires_grad_()
        self.device = self.leaf.device
        self.graphs: dict[torch.Size, Pass] = {}
        self.held_out_graph: Callable[[], Tensor] | None = None

    def forward(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Losses (R, B, T) with their graph, logits (R, B, T, V) where needed, and each run's mean loss (R,)."""
        tokens, targets = (torch.stack([getattr(batch, what) for batch in batches]) for what in ("tokens", "targets"))
        run = self._graphed(tokens, targets)
        losses, *logits = run(self.leaf, tokens, targets)
        return losses, logits[0] if logits else None, losses.detach().mean((1, 2))

    def backward(self, total: Tensor) -> Tensor:
        """Gradient (R, P) of a sum over the runs."""
        return torch.autograd.grad(total, self.leaf)[0]

    def _training(self, weights: Tensor, tokens: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        bfloat16 = self.dtype == "bfloat16"
        cast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bfloat16, cache_enabled=False)
        with cast, attention():
            return self._all_runs(weights, tokens, targets, logits=self.logits)

    def _all_runs(self, weights: Tensor, tokens: Tensor, targets: Tensor, *, logits: bool) -> tuple[Tensor, ...]:
        """Losses (R, B, T), and the logits where asked for, of tokens (R, B, T), or of tokens (B, T) common to all."""

        def one(own: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
            found = torch.func.functional_call(self.model, own, (tokens,))
            return (cross_entropy(found, targets), found) if logits else (cross_entropy(found, targets),)

        place = 0 if tokens.ndim == 3 else None
        found: tuple[Tensor, ...] = torch.vmap(one, (0, place, place))(self.stack.parts(weights), tokens, targets)
        return found

    def _graphed(self, tokens: Tensor, targets: Tensor) -> Pass:
        shape = tokens.shape
        if self.device.type != "cuda" or (shape not in self.graphs and len(self.graphs) >= GRAPHS):
            return self._training
        if shape not in self.graphs:
            sample = (self.leaf, tokens.clone(), targets.clone())
            self.graphs[shape] = torch.cuda.make_graphed_callables(self._training, sample)  # type: ignore[assignment]
        return self.graphs[shape]

    @torch.no_grad()
    def held_out(self, heldout: HeldOut, decompositions: Mapping[int, Decomposition]) -> Tensor:
        """Held-out losses (R, S, T) of all runs, in the arithmetic of `HeldOut.losses`.

        A decomposition, by row, is given the ranks of the targets in the same pass.
        """
        if not decompositions and self.device.type == "cuda":
            return self._held_out_graph(heldout)
        return self._held_out(heldout, decompositions)

    def _held_out(self, heldout: HeldOut, decompositions: Mapping[int, Decomposition]) -> Tensor:
        found = []
        for part in heldout.parts():
            with attention():
                losses, *logits = self._all_runs(self.leaf, part.tokens, part.targets, logits=bool(decompositions))
            for row, decomposition in decompositions.items():
                decomposition.add(logits[0][row], part.targets, losses[row])
            found.append(losses)
        return torch.cat(found, dim=1)

    def _held_out_graph(self, heldout: HeldOut) -> Tensor:
        if self.held_out_graph is None:
            self.held_out_graph = captured(lambda: self._held_out(heldout, {}))
        return self.held_out_graph()


def captured(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`work`, recorded once and replayed at each call; its tensors keep their addresses."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what a first run sets up must not be recorded
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = work()

    def replay() -> Tensor:
        graph.replay()
        return found

    return replay


def attention() -> AbstractContextManager[Any]:
    """Attention as plain products: the fused kernels have no form over a stack that holds for every type and length."""
    return sdpa_kernel(SDPBackend.MATH)
