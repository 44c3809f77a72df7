"""Gradient interference of several runs at once, at a probe step, over their stacked weights.

What a run by itself takes from the gradient engine (zslx/instruments/gradient_interference.py), each quantity for all
runs in the same passes: vmap over runs gives the gradients of sums of token losses, vmap over runs and examples
those of single sequences and tokens. Each run draws the tokens and signs that it draws by itself. The records, which
need no pass over a model, are made run by run on the host. Exact but for rounding. Checked against runs by
themselves by tests/unit/test_pack.py.

Shapes: R runs, S sequences, T positions, P numbers of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zslx.gradients.cancellation import totals_of
from zslx.gradients.engine.loss_batch import random_signs
from zslx.gradients.engine.token_pass import groups_of, rounds_of
from zslx.gradients.engine.token_sample import Sample, sample_tokens
from zslx.gradients.first_order import decomposed, forward_mode
from zslx.gradients.parameter_roles import body_of
from zslx.gradients.position_interference import PositionInterference
from zslx.gradients.sequence_groups import GroupStats
from zslx.gradients.token_interference import interference_of
from zslx.instruments.gradient_interference import (
    GradientSample,
    first_order_record,
    position_record,
    sequence_record,
    spread,
    token_record,
)
from zslx.instruments.heldout import HeldOut
from zslx.model.losses import cross_entropy
from zslx.text.loader import Batch
from zslx.training.position_products import Products
from zslx.training.stacked_pass import StackedPass, attention

BYTES = 1 << 29  # of the gradients of single examples that are there at a time


@dataclass(kw_only=True)
class Tokens:
    """What was taken from the gradients of one run's tokens (zslx/gradients/engine/token_pass.py)."""

    sample: Sample
    sums: dict[str, Tensor]
    chance_sums: dict[str, Tensor]
    l1: dict[str, Tensor]
    abs_sums: dict[str, list[Tensor]] = field(default_factory=dict)


class StackedProbe:
    """Records of gradient interference. `samples` and `weights` are those of the same R runs, in order."""

    def __init__(self, passes: StackedPass, heldout: HeldOut):
        self.stack, self.model, self.passes, self.heldout = passes.stack, passes.model, passes, heldout

    def records(self, samples: Sequence[GradientSample], before: Tensor, after: Tensor) -> list[dict[str, Any]]:
        """What `Instruments.gradients` measures, of runs whose weights (R, P) were moved by an update. The samples are
        of the same numbers of sequences and tokens."""
        found: list[dict[str, Any]] = [{} for _ in samples]
        first = samples[0]
        parts: list[list[dict[str, Any]]] = []
        if first.tokens:
            parts.append(self.update_effect(samples, before, after))
        if first.sequences:
            batch = spread(self.heldout.batch, first.sequences)
            parts.append(self.over_sequences(batch, samples, after))
            if first.positions:
                parts.append(self.over_positions(batch, after))
        if first.tokens:
            parts.append(self.over_tokens(samples, after))
        for part in parts:
            for record, own in zip(found, part, strict=True):
                record |= own
        return found

    # Sequences and positions.

    def over_sequences(self, batch: Batch, samples: Sequence[GradientSample], weights: Tensor) -> list[dict[str, Any]]:
        count = len(batch.tokens)
        signs = [random_signs(count, sample.draws("sequence signs"), weights) for sample in samples]
        share = torch.full_like(batch.targets, 1 / batch.tokens.numel(), dtype=weights.dtype)
        found = []
        for rows in torch.arange(len(weights)).split(self._at_once(count)):
            losses, gradients = self._of_examples(weights[rows], batch, share.expand(len(rows), -1, -1))
            chance = torch.einsum("rs,rsp->rp", torch.stack([signs[r] for r in rows]).to(gradients), gradients)
            measured = [losses, gradients.sum(1), gradients.abs().sum(1), chance, gradients @ gradients.mT]
            for own, total, size, drawn, gramian in zip(*(part.cpu() for part in measured), strict=True):
                stats = GroupStats(
                    losses=own,
                    group_losses=own.sum(1) / own.numel(),
                    num_tokens=own.numel(),
                    gramian=gramian,
                    sum=self.stack.row(total),
                    abs_sum=self.stack.row(size),
                    chance_sum=self.stack.row(drawn),
                )
                found.append({"grad_sequence": sequence_record(self.model, stats)})
        return found

    def over_positions(self, batch: Batch, weights: Tensor) -> list[dict[str, Any]]:
        """The total and the absolute sum of what positions add to each linear layer's matrix, as gradients with
        respect to two matrices of zeros beside it."""
        own = self.stack.parts(weights)
        linear = Products()
        zeros = {name: torch.zeros_like(part) for name, part in own.items() if part.ndim == 3}

        def loss(beside: tuple[dict[str, Tensor], ...], own: dict[str, Tensor]) -> Tensor:
            linear.beside = {id(own[name]): (name, *(part[name] for part in beside)) for name in zeros}
            with linear:
                logits = torch.func.functional_call(self.model, own, (batch.tokens,))
            return cross_entropy(logits, batch.targets).mean()

        with attention():
            total, size = torch.vmap(torch.func.grad(loss))((zeros, zeros), own)
        found = []
        for r in range(len(weights)):
            by_parameter = {name: totals_of(total[name][r].cpu(), size[name][r].cpu()) for name in sorted(linear.seen)}
            names = [name for name in own if name in by_parameter]
            measured = PositionInterference(
                count=batch.tokens.numel(),
                by_parameter={name: by_parameter[name] for name in names},
                left_out=(),
                body=body_of(self.model, names),
            )
            found.append({"grad_position": position_record(self.model, measured)})
        return found

    # Tokens.

    def over_tokens(self, samples: Sequence[GradientSample], weights: Tensor) -> list[dict[str, Any]]:
        measured = self._tokens(samples, weights, None)
        return [
            {"grad_token": token_record(self.model, interference_of(own, body_of(self.model, own.sums)))}
            for own in measured
        ]

    def update_effect(self, samples: Sequence[GradientSample], before: Tensor, after: Tensor) -> list[dict[str, Any]]:
        moves = after - before
        measured = self._tokens(samples, before, moves.abs())
        change, true_change = self._changes(before, moves)
        return [
            {"first_order": first_order_record(decomposed(own_change, own_true, self.stack.row(move), own))}
            for own_change, own_true, move, own in zip(change, true_change, moves.cpu(), measured, strict=True)
        ]

    def _changes(self, before: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
        """Changes (R, S, T) of the held-out losses, to first order and true."""
        change, true_change = [], []
        for part in self.heldout.parts():

            def losses(weights: Tensor, part: Batch = part) -> Tensor:
                return self.passes.losses(weights, part.tokens, part.targets)

            with forward_mode():
                made: Any = torch.func.jvp(losses, (before,), (moves,))
                at, forward = made
                true_change.append((losses(before + moves) - at).cpu())
                change.append(forward.cpu())
        return torch.cat(change, 1), torch.cat(true_change, 1)

    def _tokens(self, samples: Sequence[GradientSample], weights: Tensor, scale: Tensor | None) -> list[Tokens]:
        """Sums over the tokens, and over samples of them: their `l1` of |g| times `scale` (R, P), with chance sums and
        absolute sums where there is none."""
        rounds = rounds_of(samples[0].tokens, len(self.heldout.batch.tokens))
        drawers = [(sample.draws("token sample"), sample.draws("token signs")) for sample in samples]
        sums, chance = torch.zeros_like(weights), torch.zeros_like(weights)
        abs_sums: list[Tensor] = []
        drawn: list[list[tuple[Sample, int]]] = [[] for _ in samples]
        l1: list[dict[str, list[Tensor]]] = [{} for _ in samples]
        start = 0
        for part in self.heldout.parts():
            mask = torch.ones(part.tokens.shape, dtype=torch.bool)
            here = [sample_tokens(mask, rounds, draws) for draws, _ in drawers]
            each = torch.ones(len(weights), *mask.shape, dtype=weights.dtype)
            cotangents = [each.to(weights.device)]
            if scale is None:
                signs = [random_signs(mask.numel(), generator, weights).view(mask.shape) for _, generator in drawers]
                cotangents.append(torch.stack(signs))
            for into, found in zip((sums, chance), self._of_sums(weights, part, cotangents), strict=False):
                into += found
            for own, sample in zip(drawn, here, strict=True):
                own.append((sample, start))
            start += len(mask)
            count = here[0].rounds
            abs_sums = abs_sums or [torch.zeros_like(weights) for _ in range(groups_of(count))]
            for r in range(count):
                cotangent = torch.zeros_like(each)
                for row, sample in enumerate(here):
                    of = sample.round == r
                    cotangent[row, sample.sequence[of], sample.position[of]] = sample.weights[of].to(each)
                for gradients in self._sizes(weights, part, cotangent.to(weights.device)):
                    if scale is None:
                        abs_sums[r * len(abs_sums) // count] += gradients.sum(1)
                    else:
                        gradients *= scale[:, None]
                    for name, piece in self._by_name(gradients).items():
                        for row, values in enumerate(piece.double().cpu()):
                            l1[row].setdefault(name, []).append(values)
        return self._gathered(drawn, l1, sums, chance if scale is None else None, abs_sums)

    def _gathered(
        self,
        drawn: Sequence[list[tuple[Sample, int]]],
        l1: Sequence[Mapping[str, list[Tensor]]],
        sums: Tensor,
        chance: Tensor | None,
        abs_sums: Sequence[Tensor],
    ) -> list[Tokens]:
        rows = self.stack.rows(sums.cpu())
        chances = [{} for _ in rows] if chance is None else self.stack.rows(chance.cpu())
        sizes = [] if chance is None else [self.stack.rows(part.cpu()) for part in abs_sums]
        return [
            Tokens(
                sample=Sample.join(drawn[r]),
                sums=rows[r],
                chance_sums=chances[r],
                l1={name: torch.cat(values) for name, values in l1[r].items()},
                abs_sums={name: [part[r][name] for part in sizes] for name in rows[r]} if sizes else {},
            )
            for r in range(len(rows))
        ]

    def _by_name(self, gradients: Tensor) -> dict[str, Tensor]:
        """Sums (R, S) over the numbers of each parameter, of (R, S, P)."""
        parts = self.stack.parts(gradients.flatten(0, 1))
        return {name: part.flatten(1).sum(1).view(gradients.shape[:2]) for name, part in parts.items()}

    def _sizes(self, weights: Tensor, part: Batch, cotangent: Tensor) -> Iterator[Tensor]:
        """|g| (R, S', P) of the examples, some sequences at a time."""
        for rows in torch.arange(len(part.tokens)).split(self._at_once(len(weights))):
            piece = Batch(tokens=part.tokens[rows], targets=part.targets[rows], domains=part.domains[rows])
            yield self._of_examples(weights, piece, cotangent[:, rows])[1].abs_()

    # Passes.

    def _of_sums(self, weights: Tensor, part: Batch, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """Gradients (R, P) of sums of token losses, weighted by cotangents (R, S, T)."""
        leaf = weights.detach().requires_grad_()
        with attention():
            losses = self.passes.losses(leaf, part.tokens, part.targets)
        last = len(cotangents) - 1
        return [
            torch.autograd.grad(losses, leaf, cotangent.to(losses), retain_graph=i < last)[0]
            for i, cotangent in enumerate(cotangents)
        ]

    def _of_examples(self, weights: Tensor, batch: Batch, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (R, S, T), and the gradients (R, S, P) of each sequence's, weighted by a cotangent (R, S, T)."""

        def total(losses: Tensor, cotangent: Tensor) -> Tensor:
            return (losses * cotangent).sum()

        return self.passes.of_sequences(total, weights, batch.tokens, batch.targets, cotangent)

    def _at_once(self, of_each: int) -> int:
        """How many gradients of P numbers, `of_each` at a time, fit into BYTES."""
        weights = self.stack.weights
        return max(1, BYTES // (of_each * weights.shape[1] * weights.element_size()))
