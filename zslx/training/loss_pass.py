"""The losses of a step: the forward of a run's model, and what the methods make of it before a backward.

With no intervention they are the model's. Token weights multiply them, extra losses are added. Methods see them in a
view of the step, with what else they asked for: logits, entropy, losses of a reference model, token alignment.

Shapes: B sequences, T positions, V vocabulary, K groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zslx.gradients import GroupStats, group_stats, token_changes
from zslx.gradients.engine.loss_batch import Groups, LossFn
from zslx.intervention.base import StepView
from zslx.intervention.composed import Methods
from zslx.model.losses import arithmetic, cross_entropy, logits_of, losses_of, token_losses
from zslx.text.loader import Batch
from zslx.training.numbers import finite

WATCHING = ("token_weights", "extra_loss", "group_ids", "group_weights", "combine", "observe")  # hooks that see a view


class LossPass:
    """Computes the losses of a step. `reference` is the reference model of methods that need one."""

    taps = True  # whether compiled surgery takes the gradients of sequences from a tapped model (surgery.py)

    def __init__(
        self,
        model: nn.Module,
        methods: Methods,
        *,
        dtype: str,
        reference: nn.Module | None = None,
        compiled: bool = False,
    ):
        self.model, self.methods, self.reference = model, methods, reference
        self.dtype, self.compiled = dtype, compiled
        # The loss is compiled with the model, so that the logits need not be kept.
        # Where the model grows, each depth is compiled anew: torch would give up at eight forms.
        more: dict[str, Any] = {}
        if methods.has("depth"):
            more["recompile_limit"] = 8 * methods.run.config.model.n_layers
        self.forward = torch.compile(self._forward, **more) if compiled else self._forward

    # What differs where several processes share a step (zslx/distributed).

    def part(self, batch: Batch) -> Batch:
        """The sequences of a batch whose losses and gradients are made in this process: all of them."""
        return batch

    def rows(self, values: Tensor) -> Tensor:
        """Of values (B, ...), those of this process's sequences."""
        return values

    def whole(self, values: Tensor, batch: Batch) -> Tensor:
        """Values (B, ...) of the whole batch from those of this process's sequences."""
        return values

    def mean(self, losses: Tensor, batch: Batch) -> Tensor:
        """What the losses of this process's sequences add to the mean loss of the batch."""
        return losses.mean()

    def total(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The sums over all processes."""
        return tensors

    def group_stats(
        self, batch: Batch, groups: Groups | None, losses: LossFn | None = None, **options: Any
    ) -> GroupStats:
        """The engine's statistics of groups of the batch; `losses` by default as they are in training."""
        return group_stats(self.model, losses or self.live_losses, batch, groups, **options)

    # Losses of any batch.

    def losses(self, batch: Batch) -> Tensor:
        """Losses (B, T) of any batch at the present weights, without a graph, in the arithmetic of the training."""
        with torch.no_grad():
            return self.whole(self.live_losses(self.model, self.part(batch)), batch)

    def live_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Losses (B, T) of a model on all of these sequences, with their graph, in the arithmetic of the training."""
        with self.autocast(batch):
            return token_losses(model, batch)

    def reference_losses(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean loss (n,), nats, of the reference model on each of these windows (n, T+1)."""
        assert self.reference is not None
        device, found = next(self.reference.parameters()).device, []
        for part in torch.from_numpy(rows).split(64):
            ids = part.to(device)
            batch = Batch(tokens=ids[:, :-1], targets=ids[:, 1:], domains=ids.new_zeros(len(ids)))
            with torch.no_grad():
                found.append(self.live_losses(self.reference, batch).double().mean(1).cpu())
        return torch.cat(found).numpy()

    def autocast(self, batch: Batch) -> AbstractContextManager[Any]:
        return arithmetic(self.dtype, batch.tokens.device)

    # Losses of a step.

    @cached_property
    def watched(self) -> bool:
        """Whether a method sees the step's view."""
        return any(map(self.methods.has, WATCHING))

    @property
    def needs_logits(self) -> bool:
        return bool(self.methods.needs & {"logits", "entropy"})

    @property
    def recomputes(self) -> bool:
        """Whether the backward makes parts of the forward again."""
        return any(getattr(self.model, name, False) for name in ("checkpointing", "loss_chunk"))

    def step_losses(
        self, model: nn.Module, batch: Batch, step: int, alignment: Tensor | None
    ) -> tuple[Tensor, Tensor, StepView | None]:
        """Of this process's part, losses times the token weights, plus the extra losses; of the whole batch, the losses
        (B, T) themselves and the view of the step."""
        part = self.part(batch)
        losses, logits = self.forward(model, part.tokens, part.targets, part.context)
        plain = self.whole(losses.detach(), batch)
        if not self.watched:
            return losses, plain, None
        finite("the loss", float(plain.mean()), step)
        weighted, view = self.weighted(losses, logits, batch, alignment, plain)
        return weighted, plain, view

    def weighted(
        self,
        losses: Tensor,
        logits: Tensor | None,
        batch: Batch,
        alignment: Tensor | None = None,
        plain: Tensor | None = None,
    ) -> tuple[Tensor, StepView]:
        """Losses (B, T) as the methods weight them, and what they saw of the step. The losses are finite.

        `plain`: those of the whole batch, where `losses` are of a part of it.
        """
        view = view_of(losses if plain is None else plain, batch)
        if alignment is not None:
            view.token_alignment = alignment
        self.fill(view, logits, losses, batch)
        weights, extra = self.methods.token_weights(view), self.methods.extra_loss(view)
        weighted = losses if weights is None else losses * self.rows(weights)
        if extra is not None:
            weighted = weighted + extra.to(weighted.dtype)  # the same for every token: the mean gains it once
        for live in ("live_losses", "logits"):  # release the graph
            view.__dict__.pop(live, None)
        return weighted, view

    def _forward(
        self, model: nn.Module, tokens: Tensor, targets: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Losses (B, T), and the logits (B, T, V) where a method needs them."""
        if not self.needs_logits:
            return losses_of(model, tokens, targets, context), None
        logits = logits_of(model, tokens, context)
        return cross_entropy(logits, targets), logits

    def fill(self, view: StepView, logits: Tensor | None, losses: Tensor, batch: Batch) -> None:
        """Put into the view what the methods asked for beyond the losses."""
        needs = self.methods.needs
        if self.methods.has("extra_loss"):
            view.live_losses = losses
        if logits is not None and "logits" in needs:
            view.logits = logits.float() if logits.dtype.itemsize < 4 else logits
        if logits is not None and "entropy" in needs:
            log_p = torch.log_softmax(logits.detach().float(), dim=-1)
            view.entropy = self.whole(-(log_p.exp() * log_p).sum(-1), batch)
        if any(not type(m).overrides("windows") for m in self.methods.needing("reference_losses")):
            assert self.reference is not None
            with torch.no_grad():
                view.reference_losses = self.whole(token_losses(self.reference, self.part(batch)), batch)

    def token_alignment(self, batch: Batch) -> Tensor | None:
        """⟨g_i, ∇L⟩ (B, T) of every token's gradient with the batch's, where a method needs it.

        One backward and one forward product of their own, before the step's: the engine must not see them.
        """
        if "token_alignment" not in self.methods.needs:
            return None
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        part = self.part(batch)
        loss = self.mean(self.live_losses(self.model, part), batch)
        gradient = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        moves = dict(zip(parameters, self.total(gradient), strict=True))
        return self.whole(token_changes(self.model, token_losses, part, moves)[0], batch)


def view_of(losses: Tensor, batch: Batch) -> StepView:
    """What a method sees of a step: losses (B, T) of its own, without their graph."""
    own = losses.detach().clone()
    return StepView(tokens=batch.tokens, targets=batch.targets, losses=own, domains=batch.domains)
