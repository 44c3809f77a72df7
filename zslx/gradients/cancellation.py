"""Interference: the share by which n gradients g_i cancel in their sum, coordinate by coordinate (index j).

    c_j = |Σ_i g_ij| / Σ_i |g_ij|
    ratio form   1 − Σ_j |Σ_i g_ij| / Σ_ij |g_ij|
    mean form    1 − mean_j c_j                      coordinates with Σ_i |g_ij| = 0 left out

Source: "Training Dynamics Underlying Language Model Scaling Laws: Loss Deceleration and Zero-Sum Learning"
(ACL 2025), mean form, without the ceiling of 0.995 that its histogram puts on the mean. Exact.
Checked by tests/oracles/test_gradients_interference.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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
    """Of one parameter, or of a block of it."""
    size = total.abs()
    return Totals(
        abs_of_sum=float(size.sum()),
        sum_of_abs=float(abs_sum.sum()),
        constructive=float(size.div_(abs_sum).nansum()),  # 0/0 where no gradient arrives
        live=int(abs_sum.count_nonzero()),
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
