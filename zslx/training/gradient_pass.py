"""The gradient of one step: of all losses in one pass, in parts, or by surgery.

With no intervention this is `losses.mean().backward()` and nothing else. A filter changes the gradient that came of
it. loss_pass.py makes the losses and weights them, surgery.py combines the gradients of groups.

Shapes: B sequences, T positions.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from zslx.gradients import token_sums
from zslx.intervention.composed import Methods
from zslx.seeds import generator
from zslx.text.loader import Batch
from zslx.training.loss_pass import LossPass, view_of
from zslx.training.numbers import Diverged, finite
from zslx.training.step_gradient import StepGradient
from zslx.training.surgery import Surgery

ALONE = ("depth", "filter")  # hooks that a pass over several runs has no place for
# Needs that a surgeon's pass lacks.
PASSES = frozenset({"token_alignment", "token_sums", "logits", "entropy", "reference_losses"})


class GradientPass(LossPass):
    """Computes the gradient of a step, `micro_batch` sequences at a time where that is not 0."""

    def __init__(self, model: nn.Module, methods: Methods, *, micro_batch: int = 0, **options: Any):
        super().__init__(model, methods, **options)
        self.micro_batch = micro_batch
        if micro_batch:
            self._check_parts()
        self.surgery = Surgery(self) if methods.surgery else None

    def _check_parts(self) -> None:
        """ValueError, naming the method, where one needs the graph of the whole batch."""
        methods = self.methods
        own = [*methods.hooks["extra_loss"], *methods.hooks["group_weights"], *methods.hooks["combine"]]
        own += [m for need in ("logits", "entropy", "token_alignment", "token_sums") for m in methods.needing(need)]
        if own:
            raise ValueError(
                f"train.micro_batch={self.micro_batch}: {own[0].name} needs the whole batch in one pass; allowed is 0"
            )

    def __call__(self, batch: Batch, step: int) -> StepGradient:
        self.model.zero_grad(set_to_none=True)
        if self.methods.due("token_sums"):
            self._token_sums(batch, step)
        if self.surgery is not None:
            found = self.surgery(batch, step)
        elif self.splits(batch):
            found = self._in_parts(batch, step)
        else:
            found = self._plain(batch, step)
        if self.methods.has("filter") and not found.skipped:
            self._filter(step)
        return found

    def _plain(self, batch: Batch, step: int) -> StepGradient:
        alignment = self.token_alignment(batch)
        with self.autocast(batch):
            weighted, losses, view = self.step_losses(self.model, batch, step, alignment)
        self.backward(self.mean(weighted, batch))
        return StepGradient(view=view, losses=losses, loss=finite("the loss", float(losses.mean()), step))

    def _in_parts(self, batch: Batch, step: int) -> StepGradient:
        """The gradient from `micro_batch` sequences at a time. Methods see the whole batch: where they weight its
        tokens, its losses come first, from a forward of their own."""
        parts, view, weights = self.part(batch).parts(self.micro_batch), None, None
        if self.watched:
            with torch.no_grad():
                losses = self.whole(torch.cat([self.live_losses(self.model, part) for part in parts]), batch)
            finite("the loss", float(losses.mean()), step)
            view = view_of(losses, batch)
            self.fill(view, None, losses, batch)
            weights = self.methods.token_weights(view)
        found = []
        of_part = [None] * len(parts) if weights is None else self.rows(weights).split(self.micro_batch)
        for part, factors in zip(parts, of_part, strict=True):
            with self.autocast(batch):
                losses, _ = self.forward(self.model, part.tokens, part.targets, part.context)
                weighted = losses if factors is None else losses * factors
            self.backward(weighted.sum() / batch.tokens.numel(), last=part is parts[-1])
            found.append(losses.detach())
        losses = self.whole(torch.cat(found), batch)
        return StepGradient(view=view, losses=losses, loss=finite("the loss", float(losses.mean()), step))

    # These two differ, too, where several processes share a step.

    def splits(self, batch: Batch) -> bool:
        """Whether the batch is passed in parts."""
        return bool(self.micro_batch) and len(batch.tokens) > self.micro_batch

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Add its gradient to the parameters' `.grad`; `last`: it is the step's last backward."""
        loss.backward()

    # What a pass over several runs asks.

    @property
    def stackable(self) -> bool:
        """Whether a pass over several runs can be made of this one's: the whole batch, nothing computed twice."""
        return not self.micro_batch and not self.recomputes

    @cached_property
    def one_pass(self) -> bool:
        """Whether a step takes one forward and one backward, and nothing else."""
        more = self.methods.needs & {"token_alignment", "token_sums"} or any(map(self.methods.has, ALONE))
        return self.stackable and not self.methods.surgery and not more

    @cached_property
    def by_sequence(self) -> bool:
        """Whether a step is surgery on the gradients of sequences, or of groups of them, and nothing else."""
        other = any(map(self.methods.has, ("token_weights", "extra_loss", *ALONE))) or self.methods.needs & PASSES
        return self.stackable and self.methods.surgery and not self.methods.surgeon.by_token and not other

    # What methods take from the gradient, and what they do to it.

    def _token_sums(self, batch: Batch, step: int) -> None:
        """Sums over the gradients of the batch's tokens, into the run's view. Draws depend on seed and step alone."""
        run, needing = self.methods.run, self.methods.needing("token_sums")
        draws = generator(run.config.train.seed, "token sums", step)
        count = max(method.samples for method in needing)
        found = token_sums(self.model, self.live_losses, batch, count, generator=draws, step=step)
        if not all(torch.isfinite(total).all() for total in found.signed_sum.values()):
            raise Diverged(f"a token's gradient is not finite at step {step}")
        run.token_sums = found

    def _filter(self, step: int) -> None:
        """Give each parameter's gradient to the method that filters it."""
        for name, parameter in self.model.named_parameters():
            if parameter.grad is None:
                continue
            if not torch.isfinite(parameter.grad).all():
                raise Diverged(f"the gradient of {name} is not finite at step {step}")
            # A fused optimizer misreads a gradient that lies otherwise in memory than its parameter.
            parameter.grad = self.methods.filter(name, parameter.grad).to(parameter.dtype).contiguous()
