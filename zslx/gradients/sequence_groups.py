"""Group gradients of one batch's sequences, in one forward and one backward.

    g_k = ∇ (Σ_{i∈k} ℓ_i) / N        N tokens of the batch, so that Σ_k g_k = ∇L

The backward is the usual one, but for the weight gradients: each is computed for every sequence by itself, reduced to
what is wanted, and dropped before the next parameter's turn. Any number of groups costs the same. Exact in the
arithmetic of the model. The cost beyond a plain pass is that of the passes over the group gradients (reduction.py);
benchmarks/gradients.py measures it. Checked by tests/oracles/test_gradients.py.

Shapes: B sequences, T positions, K groups, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zslx.gradients.engine.contributions import GroupGradients, Grouping
from zslx.gradients.engine.loss_batch import (
    Groups,
    LossFn,
    Selection,
    batch_size,
    choose,
    cotangent_of,
    random_signs,
    split,
)
from zslx.gradients.engine.reduction import Reduction
from zslx.gradients.engine.tape import Tape

DEFAULT_WANT = ("sum", "abs_sum", "sign_sum", "norms", "gramian")


@dataclass(frozen=True, kw_only=True)
class GroupStats:
    """What was taken from the K group gradients of a batch. Everything is detached; what was not asked for is empty or
    None.

    losses (B, T) nats per token; group_losses (K,) = Σ_{i∈k} ℓ_i / N; num_tokens N; num_groups K;
    sum, abs_sum, sign_sum, chance_sum: parameter name to tensor of the parameter's shape;
    gramian (K, K), norms (K,), and by parameter gramians, norms_by_parameter, l1 (K,);
    slow: parameters that took one backward a group; unused: those without a part in the losses, zero in the sums and
    in no other mapping.
    """

    losses: Tensor
    group_losses: Tensor
    num_tokens: float
    sum: Mapping[str, Tensor] = field(default_factory=dict)
    abs_sum: Mapping[str, Tensor] = field(default_factory=dict)
    sign_sum: Mapping[str, Tensor] = field(default_factory=dict)
    chance_sum: Mapping[str, Tensor] = field(default_factory=dict)
    l1: Mapping[str, Tensor] = field(default_factory=dict)
    gramian: Tensor | None = None
    gramians: Mapping[str, Tensor] = field(default_factory=dict)
    slow: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    kept_bytes: int = 0
    _squares: Mapping[str, Tensor] = field(default_factory=dict, repr=False)  # of norms without a Gramian
    _combine: Callable[[Tensor], Mapping[str, Tensor]] | None = field(default=None, repr=False)
    _parameters: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def num_groups(self) -> int:
        return len(self.group_losses)

    @property
    def norms(self) -> Tensor | None:
        squares = add_up(self._squares.values()) if self.gramian is None else self.gramian.diagonal()
        return None if squares is None else squares.clamp_min(0).sqrt()

    @property
    def norms_by_parameter(self) -> Mapping[str, Tensor]:
        squares = {name: g.diagonal() for name, g in self.gramians.items()} | {**self._squares}
        return {name: square.clamp_min(0).sqrt() for name, square in squares.items()}

    def combined(self, weights: Tensor) -> Mapping[str, Tensor]:
        """Σ_k w_k g_k by parameter name, weights (K,)."""
        if self._combine is None:
            raise ValueError("combine: the group gradients were not kept (keep=True)")
        if weights.shape != (self.num_groups,):
            raise ValueError(f"combine: weights of shape {tuple(weights.shape)}, expected ({self.num_groups},)")
        return self._combine(weights.detach().to(self.losses.device))

    @torch.no_grad()
    def combine(self, weights: Tensor) -> None:
        """Add Σ_k w_k g_k to each parameter's `.grad`, as a backward would (set it where there is none)."""
        for name, gradient in self.combined(weights).items():
            p = self._parameters[name]
            if p.grad is None:
                p.grad = gradient.to(p.dtype)
            else:
                p.grad += gradient


def sequence_stats(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    *,
    groups: Groups | None = None,
    parameters: Selection = None,
    want: Iterable[str] = DEFAULT_WANT,
    keep: bool = False,
    memory_budget: int | None = None,
    chance: torch.Generator | None = None,
) -> GroupStats:
    """Statistics of the gradients of each sequence, or of groups of sequences, in one forward and one backward.

    loss_fn(model, batch) returns losses (B, T) in nats per token, or (losses, mask (B, T)): then tokens outside
    the mask count for nothing, N included. The losses may be multiplied by detached weights.
    groups: ids (B,) and K, or a function from the detached losses (B, T) to them, called between forward and
    backward; default every sequence by itself. parameters: names, or a predicate of (name,
    parameter), default all that require a gradient. want: of sum, abs_sum, sign_sum, norms, gramian, l1.
    keep: for `combine`; K·P numbers where `memory_budget` (bytes) allows, beyond it activations and output
    gradients from which the combination is computed with one more matrix product a layer.
    chance: a generator for the random signs of `chance_sum`.
    The `.grad` of the parameters and every generator stay as they are.
    """
    chosen = choose(model, parameters)
    with Tape(model, chosen, batch_size(batch)) as tape:
        losses, mask = split(loss_fn(model, batch))
        if len(losses) != tape.sequences:
            raise ValueError(f"loss_fn: losses of {len(losses)} sequences for a batch of {tape.sequences}")
        cotangent, tokens = cotangent_of(losses, mask)
        groups = groups(losses.detach()) if callable(groups) else groups
        grouping = Grouping.make(groups, len(losses), losses.device)
        reduction = Reduction(
            want=frozenset(want),
            signs=None if chance is None else random_signs(grouping.count, chance, losses),
            keep=keep,
            memory_budget=memory_budget,
        )
        tape.backward(losses, cotangent, grouping, reduction.receive)
        slow = tuple(sorted(tape.slow))
    share = grouping.sum((losses.detach() * cotangent).sum(1))
    return collect(reduction, chosen, losses, share, tokens, slow=slow)


def collect(
    reduction: Reduction,
    parameters: Mapping[str, Tensor],
    losses: Tensor,
    share: Tensor,
    tokens: float,
    *,
    slow: tuple[str, ...] = (),
    combine: Callable[[Tensor], Mapping[str, Tensor]] | None = None,
) -> GroupStats:
    """Totals over parameters, and everything in one frozen record."""
    kept = reduction.kept
    unused = tuple(name for name in parameters if name not in reduction.received)
    for wanted, sums in zip(("sum", "abs_sum", "sign_sum"), reduction.sums, strict=True):
        if wanted in reduction.want:
            sums.update((name, torch.zeros_like(parameters[name])) for name in unused)
    if combine is None and reduction.keep:

        def combine(weights: Tensor) -> Mapping[str, Tensor]:
            return {name: weighted(g, weights, parameters[name]) for name, g in kept.items()}

    return GroupStats(
        losses=losses.detach(),
        group_losses=share,
        num_tokens=tokens,
        sum=reduction.sum,
        abs_sum=reduction.abs_sum,
        sign_sum=reduction.sign_sum,
        chance_sum=reduction.chance_sum,
        l1=reduction.l1,
        gramian=add_up(reduction.gramians.values()),
        gramians=reduction.gramians,
        slow=slow,
        unused=unused,
        kept_bytes=reduction.kept_bytes,
        _squares=reduction.squares,
        _combine=combine,
        _parameters=parameters,
    )


def weighted(g: Tensor | GroupGradients, weights: Tensor, like: Tensor) -> Tensor:
    """Σ_k w_k g_k of one parameter."""
    if isinstance(g, GroupGradients):
        return g.combine(weights)
    return (weights.to(g.dtype) @ g.flatten(1)).view(like.shape)


def add_up(terms: Iterable[Tensor]) -> Tensor | None:
    total: Tensor | None = None
    for term in terms:
        total = term.clone() if total is None else total.add_(term)
    return total
