"""Gradient interference: how far the gradients of sequences, tokens or positions cancel, coordinate by coordinate.

    c_j = |Σ_i g_ij| / Σ_i |g_ij|     mean = 1 − mean_j c_j     ratio = 1 − Σ_j |Σ_i g_ij| / Σ_ij |g_ij|

Coordinates where every gradient is 0 are left out of `mean`; `dead_share` is their share. The chance level is the
same with numerator Σ_i s_i g_ij, s_i = ±1 drawn from the run's seed and the step (no generator of the training).
From the Gramian of the sequences: the share of negative cosines, the mean cosine, and the gradient noise scale
B_simple = tr Σ / |G|² in sequences (McCandlish et al. 2018, 1812.06162, with unbiased estimates of both:
tr Σ from the sample variance, |G|² from the off-diagonal mean; null where that mean is not above 0).

Source of c_j: the zero-sum learning paper, Section 4, over tokens; there, coordinates outside the embeddings
(here: `by_group.body`). Exact over the given sequences. Cost: one pass of the gradient engine.
Checked by tests/oracles/test_instruments.py.

Shapes: K gradients, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zslx.config import Config
from zslx.data import Batch
from zslx.gradients import GroupStats, sequence_stats
from zslx.losses import token_losses
from zslx.model_parts import by_group, by_layer
from zslx.seeds import generator


def gradient_interference(model: nn.Module, batch: Batch, step: int, config: Config) -> dict[str, Any]:
    """What a probe step records of the gradients of `instruments.gradient_sequences` held-out sequences."""
    count = min(config.instruments.gradient_sequences, len(batch.tokens))
    if not count:
        return {}
    chosen = spread(batch, count)
    signs = generator(config.train.seed, "instruments", "chance signs", step)
    want = ("sum", "abs_sum", "gramian")
    stats = sequence_stats(model, token_losses, chosen, want=want, chance=signs)
    return {"grad_sequence": sequence_record(stats)}


def spread(batch: Batch, count: int) -> Batch:
    """`count` sequences spread evenly over the batch, and so over its domains."""
    rows = (2 * torch.arange(count, device=batch.tokens.device) + 1) * len(batch.tokens) // (2 * count)
    return Batch(tokens=batch.tokens[rows], targets=batch.targets[rows], domains=batch.domains[rows])


def sequence_record(stats: GroupStats) -> dict[str, Any]:
    """`ratio mean n chance_ratio chance_mean dead_share negative_cosines mean_cosine noise_scale by_group by_layer`."""
    assert stats.gramian is not None
    tables = Cancellation.of(stats.sum, stats.abs_sum, stats.chance_sum)
    return tables.record(stats.num_groups) | agreement(stats.gramian)


class Cancellation:
    """Numbers over coordinates of each parameter, from which every breakdown is added up.

    sums: name → (7,) float64: Σ_j |Σ_i g|, Σ_ij |g|, Σ_j c_j, live coordinates, coordinates, and with random signs
    Σ_j |Σ_i s_i g| and Σ_j c_j.
    """

    def __init__(self, sums: Mapping[str, Tensor], chance: bool):
        self.sums, self.chance = sums, chance

    @classmethod
    @torch.no_grad()
    def of(
        cls, total: Mapping[str, Tensor], size: Mapping[str, Tensor], chance: Mapping[str, Tensor] | None = None
    ) -> Cancellation:
        """From Σ_i g_ij, Σ_i |g_ij| and Σ_i s_i g_ij by parameter name."""
        names = list(total)
        rows = [_numbers(total[n].abs(), size[n], chance[n].abs() if chance else None) for n in names]
        return cls(dict(zip(names, torch.stack(rows).cpu(), strict=True)), bool(chance))

    def record(self, count: int) -> dict[str, Any]:
        """Over all coordinates, with the count n of gradients, and broken down by part and by layer."""
        return {
            **self.over(self.sums),
            "n": count,
            "by_group": {key: self.over(names) for key, names in by_group(self.sums).items()},
            "by_layer": {key: self.over(names) for key, names in by_layer(self.sums).items()},
        }

    def over(self, names: Iterable[str]) -> dict[str, float]:
        """ratio, mean, dead_share, coordinates, and the chance levels, over the coordinates of some parameters."""
        added = torch.stack([self.sums[name] for name in names]).sum(0).tolist()
        top, bottom, shares, live, coordinates, chance_top, chance_shares = added
        found = {"ratio": 1 - top / bottom if bottom else 0.0, "mean": 1 - shares / live if live else 0.0}
        if self.chance:
            found["chance_ratio"] = 1 - chance_top / bottom if bottom else 0.0
            found["chance_mean"] = 1 - chance_shares / live if live else 0.0
        return found | {"dead_share": 1 - live / coordinates, "coordinates": int(coordinates)}


def _numbers(top: Tensor, size: Tensor, chance: Tensor | None) -> Tensor:
    """The seven sums of one parameter."""
    live = size > 0
    below = torch.where(live, size, torch.ones_like(size))

    def pair(numerator: Tensor) -> list[Tensor]:
        return [numerator.sum(dtype=torch.float64), (numerator / below).sum(dtype=torch.float64)]

    sums, shares = pair(top)
    extra = pair(chance) if chance is not None else [sums.new_zeros(()), sums.new_zeros(())]
    whole = sums.new_tensor(size.numel())
    return torch.stack([sums, size.sum(dtype=torch.float64), shares, live.sum().double(), whole, *extra])


def agreement(gramian: Tensor) -> dict[str, float | None]:
    """Share of negative pairwise cosines, their mean, and the noise scale in sequences, from a Gramian (K, K)."""
    g = gramian.double().cpu()
    count = len(g)
    if count < 2:
        return {"negative_cosines": None, "mean_cosine": None, "noise_scale": None}
    off = ~torch.eye(count, dtype=torch.bool)
    norms = g.diagonal().clamp(min=0).sqrt()
    cosines = (g / (norms[:, None] * norms).clamp(min=torch.finfo(g.dtype).tiny))[off]
    # A sequence's own mean gradient is K g_k: the K² is common to both estimates.
    squared_mean = float(g[off].sum()) / (count * (count - 1))
    variance = float(g.diagonal().sum()) / count - squared_mean
    return {
        "negative_cosines": float((cosines < 0).double().mean()),
        "mean_cosine": float(cosines.mean()),
        "noise_scale": variance / squared_mean if squared_mean > 0 else None,
    }
