"""Gradient interference: how much of the gradients of tokens or sequences cancels, per coordinate.

    c_j = |Σ_i g_ij| / Σ_i |g_ij|
    ratio form   1 − Σ_j |Σ_i g_ij| / Σ_ij |g_ij|
    mean form    1 − mean_j c_j                      coordinates with Σ_i |g_ij| = 0 left out

Source: "Training Dynamics Underlying Language Model Scaling Laws: Loss Deceleration and Zero-Sum Learning"
(ACL 2025), mean form, without the ceiling of 0.995 that its histogram puts on the mean.

Per token there are N gradients, but the numerator is the gradient of the summed loss (one backward), and the
denominator a sum of positive numbers that a sample of n tokens estimates. One backward whose cotangent picks
one token of each of the B sequences gives B tokens' gradients, kept apart by the sequence engine: n tokens cost
⌈n/B⌉ backwards on one graph instead of N. The ratio form's error is that of a mean of n stratified draws (its
bias is of order 1/n); the mean form divides by each coordinate's estimate and is biased: exact with n = all,
else jackknifed over rounds and given from n = 256 on, for the matrices of the layers only.

The position proxy takes from each linear layer what each position adds to the weight gradient, δ_n a_nᵀ: its
absolute value summed over positions is |Δ|ᵀ|A|, one more product. It is no token loss's gradient.

Checked by tests/oracles/test_gradients_interference.py.
Shapes: B sequences, T positions, N tokens, n sampled, K groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zslx.gradients.contributions import GroupGradients, Grouping, Product
from zslx.gradients.groups import (
    LossFn,
    Selection,
    batch_size,
    choose,
    cotangent_of,
    random_signs,
    split,
    take,
)
from zslx.gradients.reduction import Reduction
from zslx.gradients.roles import parameter_roles
from zslx.gradients.sampling import Sample, sample_tokens
from zslx.gradients.tape import Tape

MEAN_FORM_FROM = 256
BINS = 100


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over coordinates, so that parameters can be added up: `sum(parts, start=Totals())`."""

    abs_of_sum: float = 0.0  # Σ_j |Σ_i g_ij|
    sum_of_abs: float = 0.0  # Σ_ij |g_ij|
    constructive: float = 0.0  # Σ_j c_j
    live: int = 0  # coordinates with a gradient
    coordinates: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            abs_of_sum=self.abs_of_sum + other.abs_of_sum,
            sum_of_abs=self.sum_of_abs + other.sum_of_abs,
            constructive=self.constructive + other.constructive,
            live=self.live + other.live,
            coordinates=self.coordinates + other.coordinates,
        )

    @property
    def ratio(self) -> float:
        return 1 - self.abs_of_sum / self.sum_of_abs if self.sum_of_abs else math.nan

    @property
    def mean(self) -> float:
        return 1 - self.constructive / self.live if self.live else math.nan

    @property
    def dead_share(self) -> float:
        return 1 - self.live / self.coordinates if self.coordinates else math.nan


def totals(sums: Mapping[str, Tensor], abs_sums: Mapping[str, Tensor]) -> dict[str, Totals]:
    """Parameter name to totals, from Σ_i g_ij and Σ_i |g_ij|. Exact."""
    return {name: totals_of(sums[name], abs_sums[name]) for name in abs_sums}


def totals_of(total: Tensor, abs_sum: Tensor) -> Totals:
    size = total.abs()
    wide = torch.promote_types(size.dtype, torch.float64) if size.device.type != "mps" else size.dtype
    live = int(abs_sum.count_nonzero())
    return Totals(
        abs_of_sum=float(size.sum(dtype=wide)),
        sum_of_abs=float(abs_sum.sum(dtype=wide)),
        constructive=float((size / abs_sum).nan_to_num_(nan=0.0).clamp_max_(1).sum(dtype=wide)),
        live=live,
        coordinates=total.numel(),
    )


def histogram(
    sums: Mapping[str, Tensor], abs_sums: Mapping[str, Tensor], names: Iterable[str], bins: int = BINS
) -> list[int]:
    """Number of coordinates by c_j, in equal bins of [0, 1], as the paper draws it."""
    counts = torch.zeros(bins, dtype=torch.float64)
    for name in names:
        live = abs_sums[name] != 0
        c = (sums[name].abs()[live] / abs_sums[name][live]).clamp_max(1)
        counts += torch.histc(c.float(), bins=bins, min=0, max=1).cpu()
    return [int(count) for count in counts]


@dataclass(frozen=True, kw_only=True)
class TokenInterference:
    """Interference between the gradients of single tokens' losses.

    count n of num_tokens N tokens in the denominator; by_parameter: totals, of which abs_of_sum is exact and
    the others scaled up from the sample (all exact at n = N); chance_abs_of_sum: the numerator with random signs;
    sample: the tokens drawn; l1: parameter name to their weight · ‖g_i‖₁ (n,), summing up to sum_of_abs;
    means: mean form by parameter, None where the sample does not allow it.
    `ratio`, `ratio_se`, `mean`, `chance_ratio`: of `body`, the matrices of the layers.
    """

    count: int
    num_tokens: int
    by_parameter: Mapping[str, Totals]
    chance_abs_of_sum: Mapping[str, float]
    l1: Mapping[str, Tensor]
    sample: Sample
    means: Mapping[str, float | None]
    body: tuple[str, ...]

    @property
    def exact(self) -> bool:
        return self.count == self.num_tokens

    def ratio_of(self, names: Iterable[str]) -> tuple[float, float]:
        """Ratio form over these parameters and its standard error."""
        names = [name for name in names if name in self.by_parameter]
        whole = sum((self.by_parameter[name] for name in names), start=Totals())
        if not names or self.exact:
            return whole.ratio, 0.0
        per_token = torch.stack([self.l1[name].double() for name in names]).sum(0)
        return whole.ratio, (1 - whole.ratio) * self.sample.relative_error(per_token)

    def chance_ratio_of(self, names: Iterable[str]) -> float:
        """What the ratio form would be if the gradients' signs were drawn at random."""
        names = [name for name in names if name in self.chance_abs_of_sum]
        size = sum(self.by_parameter[name].sum_of_abs for name in names)
        return 1 - sum(self.chance_abs_of_sum[name] for name in names) / size if size else math.nan

    def mean_of(self, names: Iterable[str]) -> float | None:
        """Mean form over these parameters, None where the sample does not allow it."""
        constructive, live = 0.0, 0
        for name in names:
            if name not in self.by_parameter:
                continue
            if (mean := self.means[name]) is None:
                return None
            constructive += (1 - mean) * self.by_parameter[name].live
            live += self.by_parameter[name].live
        return 1 - constructive / live if live else None

    @property
    def ratio(self) -> float:
        return self.ratio_of(self.body)[0]

    @property
    def ratio_se(self) -> float:
        return self.ratio_of(self.body)[1]

    @property
    def chance_ratio(self) -> float:
        return self.chance_ratio_of(self.body)

    @property
    def mean(self) -> float | None:
        return self.mean_of(self.body)


def token_interference(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    n: int | str,
    *,
    generator: torch.Generator | None = None,
    parameters: Selection = None,
    mean: bool = True,
    chance: torch.Generator | None = None,
    sequences_at_once: int | None = None,
) -> TokenInterference:
    """Interference between the gradients of the batch's N tokens; the denominator from n of them, or "all".

    loss_fn(model, batch) returns token losses (B, T), or (losses, mask). n is rounded up to a multiple of B, since a
    backward yields one token of each sequence; the sample is stratified
    over positions and drawn from `generator` (default: seed 0). mean: also the mean form (another pass over the
    gradients). chance: a generator for the random signs of the chance level (one more backward).
    sequences_at_once: split the batch so that the graph fits in memory (another sample is drawn then).
    """
    measured = TokenPass(model, loss_fn, batch, n, generator, parameters, chance, sequences_at_once, abs_sums=mean)
    roles = parameter_roles(model)
    sums, sample = measured.sums, measured.sample
    by_parameter: dict[str, Totals] = {}
    means: dict[str, float | None] = {}
    body = tuple(name for name in sums if roles[name].body)
    for name in sums:
        size = float(measured.l1[name].sum())
        if mean:
            abs_sum = sum(measured.abs_sums[name])
            assert isinstance(abs_sum, Tensor)
            one = totals_of(sums[name], abs_sum)
        else:
            one = Totals(abs_of_sum=float(sums[name].abs().sum(dtype=torch.float64)), coordinates=sums[name].numel())
        by_parameter[name] = Totals(**(vars(one) | {"sum_of_abs": size}))
        means[name] = None
        if mean and sample.count == measured.num_tokens:
            means[name] = one.mean
        elif mean and sample.count >= MEAN_FORM_FROM and name in body:
            means[name] = jackknife_mean(sums[name], measured.abs_sums[name], sample.count / measured.num_tokens)
    return TokenInterference(
        count=sample.count,
        num_tokens=measured.num_tokens,
        by_parameter=by_parameter,
        chance_abs_of_sum={name: float(s.abs().sum()) for name, s in measured.chance_sums.items()},
        l1=measured.l1,
        sample=sample,
        means=means,
        body=body,
    )


def jackknife_mean(total: Tensor, parts: list[Tensor], share: float) -> float | None:
    """Mean form from the absolute sums of R groups of sampled tokens, its bias of order 1/n removed.

    θ − (1−n/N) (R−1) (mean_r θ₍₋ᵣ₎ − θ), where θ₍₋ᵣ₎ leaves group r out; share is n/N. None below 4 groups.
    """
    count = len(parts)
    if count < 4:
        return None
    whole = torch.stack(parts).sum(0)
    mean = totals_of(total, whole).mean
    without = [totals_of(total, (whole - part) * (count / (count - 1))).mean for part in parts]
    return mean - (1 - share) * (count - 1) * (sum(without) / count - mean)


class TokenPass:
    """The backwards behind every per-token quantity: one for the sums, one a round of sampled tokens.

    sums: Σ_i g_ij; chance_sums: Σ_i s_i g_ij; l1: weight · Σ_j u_j |g_ij| of the sampled tokens (n,), u = 1 or
    given;
    abs_sums: Σ_i |g_ij| estimated from each of up to 8 groups of rounds (their sum is the estimate).
    """

    GROUPS = 8

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        batch: Any,
        n: int | str,
        generator: torch.Generator | None,
        parameters: Selection,
        chance: torch.Generator | None,
        sequences_at_once: int | None,
        *,
        abs_sums: bool = False,
        l1_weights: Mapping[str, Tensor] | None = None,
    ):
        size = batch_size(batch)
        if n != "all" and not (isinstance(n, int) and n >= 1):
            raise ValueError(f"n={n!r}: must be a number of tokens from 1, or 'all'")
        self.rounds = None if isinstance(n, str) else math.ceil(n / size)
        self.want = frozenset({"l1", "abs_sum"} if abs_sums else {"l1"})
        self.l1_weights, self.chance = l1_weights, chance
        self.generator = generator or torch.Generator().manual_seed(0)
        self.chosen = choose(model, parameters)
        self.sums: dict[str, Tensor] = {}
        self.chance_sums: dict[str, Tensor] = {}
        self.abs_sums: dict[str, list[Tensor]] = {}
        step = sequences_at_once or size
        losses, parts = [], []
        for start in range(0, size, step):
            rows = torch.arange(start, min(start + step, size))
            piece = batch if step >= size else take(batch, rows)
            with Tape(model, self.chosen, len(rows)) as tape:
                found, sample, l1 = self._piece(tape, *split(loss_fn(model, piece)))
            losses.append(found)
            parts.append((sample, start, l1))
        self.losses = torch.cat(losses)
        self.sample = Sample.join([(sample, start) for sample, start, _ in parts])
        names = [name for name in self.chosen if any(name in l1 for _, _, l1 in parts)]
        self.l1 = {
            name: torch.cat([l1.get(name, torch.zeros(s.count, dtype=torch.float64)) for s, _, l1 in parts])
            for name in names
        }
        self.num_tokens = self.sample.num_tokens

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
            groups = max(g for g in range(1, self.GROUPS + 1) if sample.rounds % g == 0)  # of equal size
            parts = self.abs_sums.setdefault(name, [torch.zeros_like(value) for _ in range(groups)])
            parts[r * groups // sample.rounds] += value


@dataclass(frozen=True, kw_only=True)
class PositionInterference:
    """Interference between what single positions add to the weight gradients of the linear layers (a proxy).

    count: positions; by_parameter: totals of each linear layer's matrix (of a tied matrix: its use as
    unembedding only); left_out: parameters that no plain linear layer holds; body: matrices of the layers.
    """

    count: int
    by_parameter: Mapping[str, Totals]
    left_out: tuple[str, ...]
    body: tuple[str, ...]

    @property
    def ratio(self) -> float:
        return sum((self.by_parameter[name] for name in self.body), start=Totals()).ratio

    @property
    def mean(self) -> float:
        return sum((self.by_parameter[name] for name in self.body), start=Totals()).mean


def position_interference(
    model: nn.Module, loss_fn: LossFn, batch: Any, *, parameters: Selection = None
) -> PositionInterference:
    """|ΔᵀA| against |Δ|ᵀ|A| at every linear layer, over all positions of the batch, in one backward."""
    chosen = choose(model, parameters)
    found: dict[str, Totals] = {}

    def receive(g: GroupGradients) -> None:
        products = [use for use in g.uses if isinstance(use, Product)]
        if products:
            found[g.name] = position_totals(products)

    with Tape(model, chosen, batch_size(batch)) as tape:
        losses, mask = split(loss_fn(model, batch))
        cotangent, tokens = cotangent_of(losses, mask)
        ids = torch.zeros(len(losses), dtype=torch.int64)
        tape.backward(losses, cotangent, Grouping.make((ids, 1), len(losses), losses.device), receive)
    roles = parameter_roles(model)
    return PositionInterference(
        count=int(tokens),
        by_parameter=found,
        left_out=tuple(name for name in chosen if name not in found),
        body=tuple(name for name in found if roles[name].body),
    )


def position_totals(products: list[Product]) -> Totals:
    """Of one matrix, over the token rows of all its uses."""
    whole: Tensor | None = None
    size: Tensor | None = None
    for product in products:
        left, right = product.left.flatten(0, -2), product.right.flatten(0, -2)
        total, absolute = left.T @ right, left.abs().T @ right.abs()
        whole = total if whole is None else whole + total
        size = absolute if size is None else size + absolute
    assert whole is not None and size is not None
    return totals_of(whole, size)
