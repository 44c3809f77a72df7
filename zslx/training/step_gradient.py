"""The gradient of one step: plain, with token weights, or through the gradient engine.

With no intervention this is `losses.mean().backward()` and nothing else. With surgery the engine gives the
Gramian of the group gradients g_k (Σ_k g_k = ∇L) or sums over them in one backward, and the method's weights
are combined without a second one. `scale=matched` rescales the combined gradient to the plain one's norm by
√(1ᵀG1 / wᵀGw), the factor clamped to [0.1, 10] and recorded. A filter changes the gradient that came of this.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zslx.gradients import GroupStats, group_stats, token_changes, token_sums
from zslx.gradients.engine.loss_batch import Groups, LossFn
from zslx.gradients.tapped_model import TappedModel
from zslx.intervention.base import StepView
from zslx.intervention.composed import Methods
from zslx.intervention.gradient_method import CoordinateSums
from zslx.model.losses import arithmetic, cross_entropy, logits_of, losses_of, token_losses
from zslx.model.transformer import Transformer
from zslx.seeds import generator
from zslx.text.loader import Batch
from zslx.training.group_weights import GroupWeights, weigh
from zslx.training.numbers import Diverged, Number, finite
from zslx.training.scale import clamp

WATCHING = ("token_weights", "extra_loss", "group_ids", "group_weights", "combine", "observe")  # hooks that see a view
ALONE = ("depth", "filter")  # hooks that a pass over several runs has no place for
# Needs that a surgeon's pass lacks.
PASSES = frozenset({"token_alignment", "token_sums", "logits", "entropy", "reference_losses"})


@dataclass(kw_only=True)
class StepGradient:
    """What came of the gradient pass; the gradient itself lies in the parameters' `.grad`.

    losses (B, T) are the run's own: those of the view belong to the methods, which may change them.
    """

    view: StepView | None  # None where no method sees it
    losses: Tensor
    loss: Number  # their mean
    record: dict[str, float | bool] = field(default_factory=dict)
    skipped: bool = False
    gramian: Tensor | None = None
    group_losses: Tensor | None = None
    group_weights: Tensor | None = None

    def weighed(self, found: GroupWeights | Exception) -> Tensor | None:
        """Take the weights (K,) of the group gradients; they, with their scale, or None where the step is skipped."""
        if isinstance(found, Exception):
            raise found
        if found.weights is None:
            self.skipped = True
            return None
        self.group_weights, self.record = found.weights, found.record
        return found.weights * found.factor


class GradientPass:
    """Computes the gradient of a step. `reference` is the reference model of methods that need one."""

    def __init__(
        self,
        model: nn.Module,
        methods: Methods,
        *,
        dtype: str,
        reference: nn.Module | None = None,
        compiled: bool = False,
        micro_batch: int = 0,
    ):
        self.model, self.methods, self.reference = model, methods, reference
        self.dtype, self.compiled, self.micro_batch = dtype, compiled, micro_batch
        if micro_batch:
            self._check_parts()
        # The loss is compiled with the model, so that the logits need not be kept.
        # Where the model grows, each depth is compiled anew: torch would give up at eight forms.
        more: dict[str, Any] = {}
        if methods.has("depth"):
            more["recompile_limit"] = 8 * methods.run.config.model.n_layers
        self.forward = torch.compile(self._forward, **more) if compiled else self._forward
        self.tapped = self._tapped() if compiled else None

    def _tapped(self) -> TappedModel | None:
        """What the compiled pass of a surgeon over sequences takes; None where the engine runs, which is never
        compiled: for groups of tokens, and for models other than the native one."""
        if (
            not isinstance(self.model, Transformer)
            or not self.methods.surgery
            or self.methods.surgeon.by_token
            or self.methods.has("depth")
        ):
            return None
        if any(getattr(self.model, name, False) for name in ("checkpointing", "loss_chunk")):
            return None
        return TappedModel(self.model, dtype=torch.bfloat16 if self.dtype == "bfloat16" else None, compiled=True)

    def __call__(self, batch: Batch, step: int) -> StepGradient:
        self.model.zero_grad(set_to_none=True)
        if self.methods.due("token_sums"):
            self._token_sums(batch, step)
        if self.methods.surgery:
            found = self._surgery(batch, step)
        elif self.splits(batch):
            found = self._in_parts(batch, step)
        else:
            found = self._plain(batch, step)
        if self.methods.has("filter") and not found.skipped:
            self._filter(step)
        return found

    def _plain(self, batch: Batch, step: int) -> StepGradient:
        alignment = self._token_alignment(batch)
        with self.autocast(batch):
            weighted, losses, view = self._weighted_losses(self.model, batch, step, alignment)
        self.backward(self.mean(weighted, batch))
        return StepGradient(view=view, losses=losses, loss=finite("the loss", float(losses.mean()), step))

    def _check_parts(self) -> None:
        """ValueError, naming the method, where one needs the graph of the whole batch."""
        methods = self.methods
        own = [*methods.hooks["extra_loss"], *methods.hooks["group_weights"], *methods.hooks["combine"]]
        own += [m for need in ("logits", "entropy", "token_alignment", "token_sums") for m in methods.needing(need)]
        if own:
            raise ValueError(
                f"train.micro_batch={self.micro_batch}: {own[0].name} needs the whole batch in one pass; allowed is 0"
            )

    def splits(self, batch: Batch) -> bool:
        """Whether the batch is passed in parts."""
        return bool(self.micro_batch) and len(batch.tokens) > self.micro_batch

    def part(self, batch: Batch) -> Batch:
        """The sequences of a batch whose losses and gradients are made in this process: all of them.

        `splits` and the methods up to `group_stats` are what differs where several processes share a step
        (zslx/distributed).
        """
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

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Add its gradient to the parameters' `.grad`; `last`: it is the step's last backward."""
        loss.backward()

    def group_stats(
        self, batch: Batch, groups: Groups | None, losses: LossFn | None = None, **options: Any
    ) -> GroupStats:
        """The engine's statistics of groups of the batch; `losses` by default as they are in training."""
        return group_stats(self.model, losses or self.live_losses, batch, groups, **options)

    def _in_parts(self, batch: Batch, step: int) -> StepGradient:
        """The gradient from `micro_batch` sequences at a time. Methods see the whole batch: where they weight its
        tokens, its losses come first, from a forward of their own."""
        parts, view, weights = self.part(batch).parts(self.micro_batch), None, None
        if self.watched:
            with torch.no_grad():
                own = torch.cat([self.live_losses(self.model, part) for part in parts])
            outcome = self.outcome(self.whole(own, batch), batch)
            finite("the loss", float(outcome.losses.mean()), step)
            view = outcome.view
            assert view is not None
            self._fill(view, None, outcome.losses, batch)
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

    @property
    def stackable(self) -> bool:
        """Whether a pass over several runs can be made of this one's: the whole batch, nothing computed twice."""
        twice = (getattr(self.model, name, False) for name in ("checkpointing", "loss_chunk"))
        return not self.micro_batch and not any(twice)

    @property
    def one_pass(self) -> bool:
        """Whether a step takes one forward and one backward, and nothing else."""
        more = self.methods.needs & {"token_alignment", "token_sums"} or any(map(self.methods.has, ALONE))
        return self.stackable and not self.methods.surgery and not more

    @property
    def by_sequence(self) -> bool:
        """Whether a step is surgery on the gradients of sequences, or of groups of them, and nothing else."""
        other = any(map(self.methods.has, ("token_weights", "extra_loss", *ALONE))) or self.methods.needs & PASSES
        return self.stackable and self.methods.surgery and not self.methods.surgeon.by_token and not other

    @cached_property
    def watched(self) -> bool:
        """Whether a method sees the step's view."""
        return any(map(self.methods.has, WATCHING))

    @property
    def needs_logits(self) -> bool:
        return bool(self.methods.needs & {"logits", "entropy"})

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

    def _weighted_losses(
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
        self._fill(view, logits, losses, batch)
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

    def _fill(self, view: StepView, logits: Tensor | None, losses: Tensor, batch: Batch) -> None:
        """What the methods asked for beyond the losses."""
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

    def _token_alignment(self, batch: Batch) -> Tensor | None:
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

    def _stats(self, batch: Batch, step: int, want: tuple[str, ...], keep: bool) -> tuple[GroupStats, Tensor, StepView]:
        """The engine's statistics of the groups that the method asks for, of sequences or of tokens; the losses
        (B, T); the view of the step."""
        views: list[StepView] = []
        plain: list[Tensor] = []
        alignment = self._token_alignment(batch)

        def weighted(model: nn.Module, batch: Batch) -> Tensor:
            with self.autocast(batch):
                weighted, losses, view = self._weighted_losses(model, batch, step, alignment)
            assert view is not None  # a surgeon has hooks that see it
            views.append(view)
            plain.append(losses)
            return weighted

        def groups(_: Tensor) -> tuple[Tensor, int]:
            return self.methods.group_ids(views[0])

        method = self.methods.surgeon
        proxy = method.by_token and method.proxy and want == ("gramian",)
        given = groups if method.by_token or self.methods.has("group_ids") else None
        if self.tapped is not None and fits(self.tapped.nbytes(len(batch.tokens)), batch.tokens.device):
            stats = self.tapped.stats(weighted, batch, groups=given, want=want, keep=keep)
        else:
            stats = self.group_stats(
                batch, given, weighted, by_token=method.by_token, want=want, keep=keep, proxy=proxy
            )
        return stats, plain[0], views[0]

    def _surgery(self, batch: Batch, step: int) -> StepGradient:
        method = self.methods.surgeon
        elementwise = self.methods.has("combine")
        want = ("sum", *method.sums) if elementwise else ("gramian",)
        stats, losses, view = self._stats(batch, step, want, keep=not elementwise)
        loss = finite("the loss", float(losses.mean()), step)
        outcome = StepGradient(view=view, losses=losses, loss=loss, group_losses=stats.group_losses)
        if elementwise:
            used = (name for name, _ in self.model.named_parameters() if name not in stats.unused)
            self.combine(outcome, (self._sums_of(stats, name) for name in used), step)
            return outcome
        assert stats.gramian is not None
        outcome.gramian = stats.gramian
        [found] = weigh([self.methods], stats.gramian[None], stats.group_losses[None], step)
        weights = outcome.weighed(found)
        if weights is not None:
            stats.combine(weights)
        return outcome

    def outcome(self, losses: Tensor, batch: Batch) -> StepGradient:
        """Of a step whose losses (B, T) are there, and no gradient yet."""
        return StepGradient(view=view_of(losses, batch), losses=losses.detach().clone(), loss=math.nan)

    def _sums_of(self, stats: GroupStats, name: str) -> CoordinateSums:
        wanted = self.methods.surgeon.sums
        return CoordinateSums(
            name=name,
            sum=stats.sum[name],
            abs_sum=stats.abs_sum[name] if "abs_sum" in wanted else None,
            sign_sum=stats.sign_sum[name] if "sign_sum" in wanted else None,
            count=len(stats.group_losses),
        )

    def combine(self, outcome: StepGradient, every: Iterable[CoordinateSums], step: int) -> None:
        """Each parameter's gradient from sums over the groups' gradients, into its `.grad`."""
        method, parameters, every = self.methods.surgeon, dict(self.model.named_parameters()), list(every)
        # Numbers come over from a GPU all at once: each by itself would wait for it.
        for sums, is_finite in zip(every, together(torch.isfinite(sums.sum).all() for sums in every), strict=True):
            if not is_finite:
                raise Diverged(f"the gradient of {sums.name} is not finite at step {step}")
        squares = []
        for sums in every:
            parameter = parameters[sums.name]
            parameter.grad = self.methods.combine(sums).to(parameter.dtype).contiguous()
            squares += [g.double().square().sum() for g in (sums.sum, parameter.grad)]
        squared = together(squares)
        plain, combined = sum(squared[::2]), sum(squared[1::2])
        outcome.record = {"norm_ratio": math.sqrt(combined / plain) if plain else 1.0}
        if method.scale == "matched" and combined > 0:
            factor = clamp(math.sqrt(plain / combined))
            for parameter in parameters.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            outcome.record["scale"] = factor


def together(numbers: Iterable[Tensor]) -> list[Any]:
    """Numbers on a device, in one transfer."""
    values: list[Any] = torch.stack(list(numbers)).tolist()
    return values


def fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes take less than half of a GPU's memory. The same on every card of its kind."""
    return device.type != "cuda" or size <= torch.cuda.get_device_properties(device).total_memory // 2


def view_of(losses: Tensor, batch: Batch) -> StepView:
    """What a method sees of a step: losses (B, T) of its own, without their graph."""
    own = losses.detach().clone()
    return StepView(tokens=batch.tokens, targets=batch.targets, losses=own, domains=batch.domains)
