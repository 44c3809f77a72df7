"""Gradient interference at a probe step: how far the gradients of sequences, positions or tokens cancel.

    c_j = |Σ_i g_ij| / Σ_i |g_ij|     mean = 1 − mean_j c_j     ratio = 1 − Σ_j |Σ_i g_ij| / Σ_ij |g_ij|

`ratio`, `mean` and their chance levels are of the body, the matrices of attention and MLP; `by_group` (attention,
mlp, norm, embedding, unembedding, other, all) and `by_layer` break them down. A tied matrix is one set of
coordinates and counts as embedding. Layers that a growing model does not use yet are left out. Coordinates without
any gradient are left out of `mean`; `dead_share` is theirs. The chance level is the same with numerator Σ_i s_i g_ij,
s_i = ±1 drawn from the run's seed and the step: no generator of the training is touched.

grad_sequence   exact over n held-out sequences spread evenly over the domains; from their Gramian the share of
                negative cosines, the mean cosine, and the noise scale B_simple = tr Σ / |G|² in sequences (McCandlish
                et al. 2018, 1812.06162; unbiased estimates of both, null where that of |G|² is not above 0)
grad_position   the one-product proxy over all positions of the same sequences, linear layers only
grad_token      numerator exact over all held-out tokens, denominator from n sampled ones
first_order     the update's effect on each held-out token's loss: C_g, C_ug, C_uG, D, M (zslx/gradients/first_order.py)

Source of c_j: the zero-sum learning paper, Section 4. What is exact, and what a sample costs: zslx/gradients/.
Checked by tests/oracles/test_instruments.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zslx.gradients import (
    FirstOrder,
    GroupStats,
    PositionInterference,
    TokenInterference,
    Totals,
    body_of,
    first_order,
    histogram,
    parameter_roles,
    position_interference,
    sequence_stats,
    token_interference,
    totals,
)
from zslx.instruments.heldout import HeldOut
from zslx.model.losses import token_losses
from zslx.text.loader import Batch


@dataclass(frozen=True, kw_only=True)
class GradientSample:
    """What to measure gradients over, at one point of training.

    sequences   how many held-out sequences (0: none); positions: also the proxy over their positions
    tokens      how many sampled tokens, or "all" (0: none)
    draws       the generator of a purpose ("sequence signs", "token sample", "token signs"), the same at every call
    signs       how often random signs are drawn for the chance level of the sequences
    histogram   also the counts of c_j over the body's coordinates
    """

    sequences: int
    positions: bool = True
    tokens: int | str
    draws: Callable[[str], torch.Generator]
    signs: int = 1
    histogram: bool = False


SequenceStats = Callable[..., GroupStats]


def gradient_interference(
    model: nn.Module, heldout: HeldOut, sample: GradientSample, stats: SequenceStats = sequence_stats
) -> dict[str, Any]:
    """Gradient interference at the model's weights, by the names above. `stats`: in place of `sequence_stats`."""
    return over_sequences(model, heldout, sample, stats) | over_tokens(model, heldout, sample)


def over_sequences(
    model: nn.Module, heldout: HeldOut, sample: GradientSample, stats_of: SequenceStats = sequence_stats
) -> dict[str, Any]:
    """`grad_sequence` and `grad_position`."""
    if not sample.sequences:
        return {}
    batch, signs = spread(heldout.batch, sample.sequences), sample.draws("sequence signs")
    stats = stats_of(model, token_losses, batch, want=("sum", "abs_sum", "gramian"), chance=signs)
    more = (stats_of(model, token_losses, batch, want=(), chance=signs) for _ in range(sample.signs - 1))
    record = {"grad_sequence": sequence_record(model, stats, [drawn.chance_sum for drawn in more])}
    if sample.histogram:
        body = body_of(model, stats.sum)
        record["grad_sequence"]["histogram"] = histogram(stats.sum, stats.abs_sum, body)
    if sample.positions:
        record["grad_position"] = position_record(model, position_interference(model, token_losses, batch))
    return record


def over_tokens(model: nn.Module, heldout: HeldOut, sample: GradientSample) -> dict[str, Any]:
    """`grad_token`."""
    if not sample.tokens:
        return {}
    found = token_interference(
        model,
        token_losses,
        heldout.batch,
        sample.tokens,
        generator=sample.draws("token sample"),
        chance=sample.draws("token signs"),
        sequences_at_once=heldout.chunk,
    )
    return {"grad_token": token_record(model, found)}


def update_effect(
    model: nn.Module, heldout: HeldOut, sample: GradientSample, update: Mapping[str, Tensor]
) -> dict[str, Any]:
    """`first_order`: the decomposition of `update` at the model's weights, over the held-out tokens."""
    found = first_order(
        model,
        token_losses,
        heldout.batch,
        update,
        n=sample.tokens,
        generator=sample.draws("token sample"),
        sequences_at_once=heldout.chunk,
    )
    return first_order_record(found)


def first_order_record(found: FirstOrder) -> dict[str, Any]:
    """`C_g C_ug C_uG D M true_D true_M error n num_tokens relative_se`."""
    names = ("C_g", "C_ug", "C_uG", "D", "M", "true_D", "true_M", "error")
    record = {name: getattr(found, name) for name in names}
    return record | {"n": found.count, "num_tokens": found.num_tokens, "relative_se": found.relative_error}


def spread(batch: Batch, count: int) -> Batch:
    """`count` sequences spread evenly over the batch, and so over its domains (all, where it has fewer)."""
    total = len(batch.tokens)
    count = min(count, total)
    rows = (2 * torch.arange(count, device=batch.tokens.device) + 1) * total // (2 * count)
    return Batch(tokens=batch.tokens[rows], targets=batch.targets[rows], domains=batch.domains[rows])


def sequence_record(
    model: nn.Module, stats: GroupStats, more_signs: Sequence[Mapping[str, Tensor]] = ()
) -> dict[str, Any]:
    """`ratio mean chance_ratio chance_mean dead_share coordinates n`, breakdowns, and the Gramian's numbers.

    The chance level of one draw of signs scatters (by .02 with 16 sequences): it is the mean over that of `stats`
    and `more_signs`, each Σ_k s_k g_k by parameter name.
    """
    assert stats.gramian is not None
    sizes = {name: size for name, size in stats.abs_sum.items() if name not in stats.unused}
    own = totals(stats.sum, sizes)
    chances = [totals(drawn, sizes) for drawn in (stats.chance_sum, *more_signs)]

    def over(names: list[str]) -> dict[str, Any]:
        by_chance = [added(chance, names) for chance in chances]
        ratio, mean = (sum(getattr(c, form) for c in by_chance) / len(by_chance) for form in ("ratio", "mean"))
        return both_forms(added(own, names)) | {"chance_ratio": ratio, "chance_mean": mean}

    return {
        "n": stats.num_groups,
        "chance_draws": len(chances),
        **breakdown(model, own, over),
        **agreement(stats.gramian),
    }


def position_record(model: nn.Module, found: PositionInterference) -> dict[str, Any]:
    """`ratio mean dead_share coordinates n` and breakdowns; of a tied matrix, its use as unembedding only."""
    own = found.by_parameter
    return {"n": found.count, **breakdown(model, own, lambda names: both_forms(added(own, names)))}


def token_record(model: nn.Module, found: TokenInterference) -> dict[str, Any]:
    """`ratio ratio_se mean chance_ratio n num_tokens` and breakdowns; mean is null where a sample forbids it."""

    def over(names: list[str]) -> dict[str, Any]:
        ratio, error = found.ratio_of(names)
        chance = found.chance_ratio_of(names) if found.chance_abs_of_sum else None
        return {"ratio": ratio, "ratio_se": error, "mean": found.mean_of(names), "chance_ratio": chance}

    return {"n": found.count, "num_tokens": found.num_tokens, **breakdown(model, found.by_parameter, over)}


def breakdown(model: nn.Module, names: Iterable[str], over: Callable[[list[str]], dict[str, Any]]) -> dict[str, Any]:
    """`over` the body, and by group of the model and by layer, each over the parameters among `names`."""
    roles, names = parameter_roles(model), list(names)
    groups: dict[str, list[str]] = {"all": names}
    layers: dict[int, list[str]] = {}
    for name in names:
        role = roles[name]
        groups.setdefault(role.group, []).append(name)
        if role.layer is not None:
            layers.setdefault(role.layer, []).append(name)
    return {
        **over(list(body_of(model, names))),
        "by_group": {group: over(members) for group, members in groups.items()},
        "by_layer": {str(layer): over(layers[layer]) for layer in sorted(layers)},
    }


def added(parts: Mapping[str, Totals], names: Iterable[str]) -> Totals:
    return sum((parts[name] for name in names), start=Totals())


def both_forms(whole: Totals) -> dict[str, Any]:
    return {
        "ratio": whole.ratio,
        "mean": whole.mean,
        "dead_share": whole.dead_share,
        "coordinates": whole.coordinates,
    }


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
