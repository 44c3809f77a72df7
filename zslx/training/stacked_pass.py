"""Forward and backward of several runs at once, over their stacked weights; on a GPU from CUDA graphs.

A graph replays all launches of a pass as one, at a fixed address and shape. So there is one for each shape of the
batches, at most GRAPHS; further shapes (a curriculum may have many) go without.

Shapes: R runs, B sequences, T positions, V vocabulary, S held-out sequences, P numbers of a run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zslx.instruments.heldout import HeldOut
from zslx.instruments.rank_decomposition import Decomposition
from zslx.model.losses import arithmetic, cross_entropy
from zslx.text.loader import Batch
from zslx.training.gradient_pass import GradientPass
from zslx.training.stack import Stack, captured

GRAPHS = 8
Pass = Callable[..., tuple[Tensor, ...]]


class StackedPass:
    """Passes over the runs of a stack. `first`: the gradient pass of one of them, whose model and dtype all share.

    `logits`: whether a method of a run needs them.
    """

    def __init__(self, stack: Stack, first: GradientPass, *, logits: bool):
        self.stack, self.dtype, self.logits = stack, first.dtype, logits
        # Of all layers, whatever the first run has in use: those that are not in use change nothing.
        self.model = copy.copy(first.model)
        self.model.depth = len(self.model.blocks)  # type: ignore
        compiled: Callable[[Any], Any] = torch.compile if first.compiled else lambda work: work
        self.training, self.by_sequence = compiled(self._training), compiled(self._by_sequence)
        self.measuring = compiled(self._all_runs)  # in float32: its logits are the largest thing there is
        self.leaf = stack.weights.detach().requires_grad_()
        self.device = self.leaf.device
        self.graphs: dict[torch.Size, Pass] = {}
        self.replays: dict[tuple[torch.Size, str], Callable[..., Any]] = {}

    def forward(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Losses (R, B, T) with their graph, logits (R, B, T, V) where needed, and each run's mean loss (R,)."""
        tokens, targets = stacked(batches)
        run = self._graphed(tokens, targets)
        losses, *logits = run(self.leaf, tokens, targets)
        return losses, logits[0] if logits else None, losses.detach().mean((1, 2))

    def sequence_gradients(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Losses (R, B, T), the gradients (R, B, P) of each sequence's share of its run's mean loss, their Gramians
        (R, B, B), and each run's mean loss (R,)."""
        tokens, targets = stacked(batches)
        key = (tokens.shape, "sequences")
        if self.device.type == "cuda" and key not in self.replays and len(self.replays) < GRAPHS:
            self.replays[key] = captured(self.by_sequence, tokens, targets)
        losses, gradients, gramians = self.replays.get(key, self.by_sequence)(tokens, targets)
        return losses, gradients, gramians, losses.mean((1, 2))

    def _by_sequence(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        share = 1 / tokens[0].numel()
        with self._cast():
            losses, gradients = self.of_sequences(lambda losses: losses.sum() * share, self.leaf, tokens, targets)
        return losses, gradients, gradients @ gradients.mT

    def of_sequences(
        self, total: Callable[..., Tensor], weights: Tensor, tokens: Tensor, targets: Tensor, *more: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses (R, B, T) at weights (R, P), and the gradients (R, B, P) of each sequence's `total`: a number made of
        its losses (T,) and its parts of `more`, tensors (R, B, ...). Tokens are (R, B, T), or (B, T) common to all."""

        def one(own: dict[str, Tensor], tokens: Tensor, targets: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
            logits = torch.func.functional_call(self.model, own, (tokens[None],))
            losses = cross_entropy(logits, targets[None])[0]
            return total(losses, *more), losses

        place, each = 0 if tokens.ndim == 3 else None, [0] * len(more)
        of_run = torch.vmap(torch.func.grad(one, has_aux=True), (None, 0, 0, *each))
        of_runs = torch.vmap(of_run, (0, place, place, *each))
        with attention():
            by_name, losses = of_runs(self.stack.parts(weights.detach()), tokens, targets, *more)
        return losses, self.stack.joined(by_name)

    def backward(self, total: Tensor) -> Tensor:
        """Gradient (R, P) of a sum over the runs."""
        return torch.autograd.grad(total, self.leaf)[0]

    def _training(self, weights: Tensor, tokens: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        with self._cast(), attention():
            return self._all_runs(weights, tokens, targets, logits=self.logits)

    def _cast(self) -> AbstractContextManager[Any]:
        return arithmetic(self.dtype, self.device, cache=False)

    def _all_runs(self, weights: Tensor, tokens: Tensor, targets: Tensor, *, logits: bool) -> tuple[Tensor, ...]:
        """Losses (R, B, T), and the logits where asked for, of tokens (R, B, T), or of tokens (B, T) common to all."""

        def one(own: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
            found = torch.func.functional_call(self.model, own, (tokens,))
            return (cross_entropy(found, targets), found) if logits else (cross_entropy(found, targets),)

        place = 0 if tokens.ndim == 3 else None
        found: tuple[Tensor, ...] = torch.vmap(one, (0, place, place))(self.stack.parts(weights), tokens, targets)
        return found

    def losses(self, weights: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
        """Losses (R, S, T) of tokens that all runs have in common, at weights (R, P) of any of them."""
        return self._all_runs(weights, tokens, targets, logits=False)[0]

    def _graphed(self, tokens: Tensor, targets: Tensor) -> Pass:
        shape = tokens.shape
        if self.device.type != "cuda" or (shape not in self.graphs and len(self.graphs) >= GRAPHS):
            return self.training
        if shape not in self.graphs:
            sample = (self.leaf, tokens.clone(), targets.clone())
            self.graphs[shape] = torch.cuda.make_graphed_callables(self.training, sample)  # type: ignore[assignment]
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
                losses, *logits = self.measuring(self.leaf, part.tokens, part.targets, logits=bool(decompositions))
            for row, decomposition in decompositions.items():
                decomposition.add(logits[0][row], part.targets, losses[row])
            found.append(losses)
        return torch.cat(found, dim=1)

    def _held_out_graph(self, heldout: HeldOut) -> Tensor:
        key = (heldout.batch.tokens.shape, "held-out")
        if key not in self.replays:
            self.replays[key] = captured(lambda: self._held_out(heldout, {}))
        return self.replays[key]()


def stacked(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Tokens and targets (R, B, T) of all runs."""
    return torch.stack([batch.tokens for batch in batches]), torch.stack([batch.targets for batch in batches])


def attention() -> AbstractContextManager[Any]:
    """Attention as plain products: the fused kernels have no form over a stack that holds for every type and length."""
    return sdpa_kernel(SDPBackend.MATH)
