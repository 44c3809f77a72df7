"""The backwards behind every per-token quantity: one for the sums, one a round of sampled tokens.

A backward whose cotangent picks one token of each of the B sequences gives the gradients of B tokens, which the
sequence engine keeps apart. So n tokens cost ⌈n/B⌉ backwards on one graph, and not n. The cotangent holds the tokens'
weights (token_sample.py), so that every sum estimates the one over all tokens.

Shapes: B sequences, T positions, N tokens, n sampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zslx.gradients.engine.contributions import Grouping
from zslx.gradients.engine.loss_batch import LossFn, Selection, batch_size, choose, random_signs, split, take
from zslx.gradients.engine.reduction import Reduction
from zslx.gradients.engine.tape import Tape
from zslx.gradients.engine.token_sample import Sample, sample_tokens


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """What a pass is over.

    loss_fn(model, batch) returns token losses (B, T), or (losses, mask). n: how many tokens are sampled, rounded up to
    a multiple of B, or "all"; drawn from `generator` (default: seed 0). parameters: which; None is all. chance: a
    generator of random signs, for one more sum. sequences_at_once: the batch in pieces of so many sequences.
    """

    model: nn.Module
    loss_fn: LossFn
    batch: Any
    n: int | str
    generator: torch.Generator | None = None
    parameters: Selection = None
    chance: torch.Generator | None = None
    sequences_at_once: int | None = None


class TokenSample(Protocol):
    """What was taken from the gradients of all tokens and of those in the sample, by parameter name.

    sums: Σ_i g_ij; chance_sums: Σ_i s_i g_ij; l1: weight · Σ_j u_j |g_ij| of the sampled tokens (n,), u = 1 or
    given;
    abs_sums: Σ_i |g_ij| estimated from each of up to GROUPS groups of rounds (their sum is the estimate).
    """

    sums: dict[str, Tensor]
    chance_sums: dict[str, Tensor]
    l1: dict[str, Tensor]
    abs_sums: dict[str, list[Tensor]]
    sample: Sample


GROUPS = 8


def groups_of(rounds: int) -> int:
    """Into how many groups of equal size the rounds are cut."""
    return max(g for g in range(1, GROUPS + 1) if rounds % g == 0)


def rounds_of(n: int | str, sequences: int) -> int | None:
    """How many tokens of each sequence make n tokens or a few more; None for "all"."""
    if n != "all" and not (isinstance(n, int) and n >= 1):
        raise ValueError(f"n={n!r}: must be a number of tokens from 1, or 'all'")
    return None if isinstance(n, str) else math.ceil(n / sequences)


class TokenPass(TokenSample):
    """The backwards behind every per-token quantity: one for the sums, one a round of sampled tokens."""

    def __init__(self, over: TokenBatch, *, abs_sums: bool = False, l1_weights: Mapping[str, Tensor] | None = None):
        batch, n = over.batch, over.n
        size = batch_size(batch)
        self.rounds = rounds_of(n, size)
        self.want = frozenset({"l1", "abs_sum"} if abs_sums else {"l1"})
        self.l1_weights, self.chance = l1_weights, over.chance
        self.generator = over.generator or torch.Generator().manual_seed(0)
        self.chosen = choose(over.model, over.parameters)
        self.sums: dict[str, Tensor] = {}
        self.chance_sums: dict[str, Tensor] = {}
        self.abs_sums: dict[str, list[Tensor]] = {}
        step = over.sequences_at_once or size
        losses, parts = [], []
        for start in range(0, size, step):
            rows = torch.arange(start, min(start + step, size))
            piece = batch if step >= size else take(batch, rows)
            with Tape(over.model, self.chosen, len(rows)) as tape:
                found, sample, l1 = self._piece(tape, *split(over.loss_fn(over.model, piece)))
            losses.append(found)
            parts.append((sample, start, l1))
        self.losses = torch.cat(losses)
        self.sample = Sample.join([(sample, start) for sample, start, _ in parts])
        names = [name for name in self.chosen if any(name in l1 for _, _, l1 in parts)]
        self.l1 = {
            name: torch.cat([l1.get(name, torch.zeros(s.count, dtype=torch.float64)) for s, _, l1 in parts])
            for name in names
        }

    def _piece(self, tape: Tape, losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Sample, dict[str, Tensor]]:
        each = torch.ones_like(losses) if mask is None else mask.to(losses.dtype)
        sample = sample_tokens(each.bool().cpu(), self.rounds, self.generator)
        single = Grouping.make((torch.zeros(len(losses), dtype=torch.int64), 1), len(losses), losses.device)
        self._sum(tape, losses, each, single, self.sums)
        if self.chance is not None:
            signs = random_signs(losses.numel(), self.chance, losses).view_as(losses).to(losses.dtype)
            self._sum(tape, losses, each * signs, single, self.chance_sums)
        own = Grouping.make(None, len(losses), losses.device)
        l1: dict[str, list[Tensor]] = {}
        for r in range(sample.rounds):
            here = sample.round == r
            cotangent = torch.zeros_like(losses)
            weights = sample.weights[here].to(losses)  # so that every sum estimates that over all tokens
            cotangent[sample.sequence[here], sample.position[here]] = weights
            reduction = Reduction(want=self.want, l1_weights=self.l1_weights)
            last = r == sample.rounds - 1
            tape.backward(losses, cotangent, own, reduction.receive, retain_graph=not last)
            self._add_abs_sums(reduction, sample, r)
            for name, value in reduction.l1.items():
                l1.setdefault(name, []).append(value.double().cpu()[sample.sequence[here]])
        return losses.detach(), sample, {name: torch.cat(values) for name, values in l1.items()}

    def _sum(self, tape: Tape, losses: Tensor, cotangent: Tensor, single: Grouping, into: dict[str, Tensor]) -> None:
        reduction = Reduction(want=frozenset({"sum"}))
        tape.backward(losses, cotangent, single, reduction.receive, retain_graph=True)
        for name, value in reduction.sum.items():
            into[name] = into[name] + value if name in into else value

    def _add_abs_sums(self, reduction: Reduction, sample: Sample, r: int) -> None:
        for name, value in reduction.abs_sum.items():
            groups = groups_of(sample.rounds)
            parts = self.abs_sums.setdefault(name, [torch.zeros_like(value) for _ in range(groups)])
            parts[r * groups // sample.rounds] += value
