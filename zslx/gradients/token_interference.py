"""Interference between the gradients of single tokens' losses.

There are N of them, but the numerator Σ_i g_ij is the gradient of the summed loss (one backward), and the
denominator Σ_i |g_ij| a sum of positive numbers that a sample of n tokens estimates (token_pass.py). The ratio
form's error is that of a mean of n stratified draws (token_sample.py; its bias is of order 1/n); the mean form divides
by each coordinate's estimate and is biased: exact with n = all, else jackknifed over rounds and given from n = 256
on, for the matrices of the layers only. Checked by tests/oracles/test_gradients_interference.py.

Shapes: B sequences, T positions, N tokens, n sampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zslx.gradients.cancellation import Totals, totals_of
from zslx.gradients.engine.loss_batch import LossFn, Selection
from zslx.gradients.engine.token_pass import TokenBatch, TokenPass, TokenSample
from zslx.gradients.engine.token_sample import Sample
from zslx.gradients.parameter_roles import body_of

MEAN_FORM_FROM = 256


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
    over = TokenBatch(
        model=model,
        loss_fn=loss_fn,
        batch=batch,
        n=n,
        generator=generator,
        parameters=parameters,
        chance=chance,
        sequences_at_once=sequences_at_once,
    )
    measured = TokenPass(over, abs_sums=mean)
    return interference_of(measured, body_of(model, measured.sums))


def interference_of(measured: TokenSample, body: tuple[str, ...]) -> TokenInterference:
    """Interference from what was measured of the tokens; without a mean form where no absolute sums were."""
    sums, sample = measured.sums, measured.sample
    by_parameter: dict[str, Totals] = {}
    means: dict[str, float | None] = {}
    for name in sums:
        size = float(measured.l1[name].sum())
        if measured.abs_sums:
            abs_sum = sum(measured.abs_sums[name])
            assert isinstance(abs_sum, Tensor)
            one = totals_of(sums[name], abs_sum)
        else:
            one = Totals(abs_of_sum=float(sums[name].abs().sum(dtype=torch.float64)), coordinates=sums[name].numel())
        by_parameter[name] = Totals(**(vars(one) | {"sum_of_abs": size}))
        means[name] = None
        if measured.abs_sums and sample.count == sample.num_tokens:
            means[name] = one.mean
        elif measured.abs_sums and sample.count >= MEAN_FORM_FROM and name in body:
            means[name] = jackknife_mean(sums[name], measured.abs_sums[name], sample.count / sample.num_tokens)
    return TokenInterference(
        count=sample.count,
        num_tokens=sample.num_tokens,
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
