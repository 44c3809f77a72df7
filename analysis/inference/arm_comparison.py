"""One arm against another: the word that the rule allows about it, and everything that the word rests on.

Read `compare_arm` top down. The rule is in evidence.py, its contrasts of the loss in loss_contrasts.py; the secondary
measures and how their signs depend on the early cut are made here. Deterministic: the generator of the bootstrap is
seeded by BOOTSTRAP_SEED.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from analysis.inference import evidence
from analysis.inference.compute import equal_compute
from analysis.inference.contrasts import Contrast, as_dict, contrast, pooled, pooled_sizes, seeds_needed, size_means
from analysis.inference.controls import asked_about, find_cosine, find_placebo, unasked
from analysis.inference.loss_contrasts import loss_contrasts
from analysis.inference.matched_loss import INSTRUMENTS, mechanism
from analysis.inference.pooled_breaks import CURVES, PooledBreaks
from analysis.inference.resampling import across_sizes, sign_flip
from analysis.inference.rows import ArmComparison, finite
from analysis.inference.sizes import gains
from analysis.study.arm import Arm
from analysis.study.load import Study
from analysis.study.measures import TAIL_FACTORS, Measures

BOOTSTRAP_SEED = 20250605
DECLARED_EFFECTS = (0.0025, 0.005, 0.01, 0.02)  # of the loss: for each, the seeds that finding it would need


def compare_arm(breaks: PooledBreaks, arm: Arm, against: str | None = None) -> ArmComparison:
    """One arm against the baseline or the arm that the study declares, and against its placebo and cosine where the
    study has them."""
    measures, study, base = breaks.measures, breaks.study, against or breaks.study.baseline.name
    loss = loss_contrasts(measures, arm, base, breaks.confidence)
    primary, placebo, difference = loss.primary, find_placebo(study, arm), loss.differences[arm.name]
    counted = [size for size, ok in zip(study.sizes, pooled_sizes(difference), strict=True) if ok]
    secondary = secondary_contrasts(breaks, arm.name, base, counted)
    cosine = find_cosine(study, arm)
    beyond = pooled(measures.paired(*cosine, measures.log_loss), breaks.confidence) if cosine else None
    why_not = unasked(study, beyond, cosine, primary) if cosine else None
    signs = tail_signs(measures, arm.name, base, pooled_sizes(difference))
    signs |= breaks.signs(arm.name, counted, against)
    left_out = loss.left_out(study)
    verdict = evidence.judge(
        primary,
        loss.placebo,
        secondary,
        signs,
        rates=loss.rates,
        has_placebo=arm.has_placebo,
        beyond_cosine=None if why_not else beyond,
        declared=(against is not None or asked_about(study, arm)) and not study.exploratory,
        complete=not any(left_out.values()),
        against=base,
    )
    adjusted = evidence.holm_family(secondary)
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    logs = study.grid(arm.name, measures.log_loss), study.grid(base, measures.log_loss)
    return {
        "arm": arm.name,
        "role": arm.role,
        "against": base,
        "word": verdict.word,
        "reasons": list(verdict.reasons),
        "exploratory": verdict.exploratory,
        "smallest_effect": verdict.smallest_effect,
        "beyond_lr_decay": verdict.beyond_lr_decay,
        "primary": as_dict(primary),
        "by_size": {
            size: as_dict(contrast(difference[[s]], confidence=breaks.confidence)) for s, size in enumerate(study.sizes)
        },
        "sizes_left_out": left_out,
        "sign_flip": sign_flip(difference, generator),
        "across_sizes": across_sizes(*logs, generator),
        "rates": {factor: as_dict(found) for factor, found in loss.rates.items()},
        "placebo": {"arm": placebo.name, **(as_dict(loss.placebo) or {})} if placebo else None,
        "has_placebo": arm.has_placebo,
        "beyond_cosine": {"arm": cosine[0], "against": cosine[1], "unasked": why_not, **(as_dict(beyond) or {})}
        if cosine
        else None,
        "secondary": {
            name: (as_dict(c) or {}) | {"p_holm": adjusted[name]} for name, c in secondary.items() if c is not None
        },
        "deceleration": {kind: breaks.differences(arm.name, kind, against) for kind in CURVES},
        "cut_signs": {name: [finite(s) for s in row] for name, row in signs.items()},
        "seeds_needed": seeds_by_effect(primary),
        "equal_compute": equal_compute(measures, arm.name, base),
        "scale_equivalent_gain": gains(measures, difference),
        "mechanism": mechanism(measures, arm.name, base),
        "diverged": unmatched(study, arm.name, base),
    }


def secondary_contrasts(
    breaks: PooledBreaks, arm: str, against: str, sizes: Sequence[str]
) -> dict[str, Contrast | None]:
    """Slopes, breaks (L_d and t_d as logs) and instruments, arm − baseline, averaged over sizes.

    A break measure counts over the sizes at which the break of both arms is identified; see PooledBreaks.averaged.
    """
    measures = breaks.measures
    confidence = breaks.confidence
    found = {"tail_slope": pooled(measures.paired(arm, against, measures.tail), confidence)}
    found |= breaks.averaged(arm, sizes, against=against)
    for key in INSTRUMENTS:
        found[key] = pooled(measures.paired(arm, against, partial(measures.instrument, key=key)), confidence)
    return found


def tail_signs(measures: Measures, arm: str, against: str, sizes: np.ndarray) -> dict[str, list[float]]:
    """Differences of the tail slope for each length of tail, averaged over `sizes`: their signs must agree."""

    def differ(factor: float) -> float:
        return mean_difference(measures.paired(arm, against, partial(measures.tail, factor=factor))[sizes])

    return {"tail_slope": [differ(factor) for factor in TAIL_FACTORS]}


def mean_difference(d: np.ndarray) -> float:
    """The average over sizes; nan when a size has no pair."""
    present = np.isfinite(d)
    return float(size_means(d).mean()) if d.size and present.any(axis=1).all() else math.nan


def seeds_by_effect(primary: Contrast | None) -> dict[str, int | None] | None:
    """Paired seeds with which an effect of x on log loss would be found with probability .8."""
    if primary is None or primary.se is None:
        return None
    spread = primary.se * math.sqrt(primary.seeds)
    return {f"{effect:g}": seeds_needed(effect, spread) for effect in DECLARED_EFFECTS}


def unmatched(study: Study, arm: str, against: str) -> dict[str, int]:
    """Trials of the arm that diverged where the baseline's did not: they are missing from every contrast."""
    ended = {(t.arm, t.size, t.seed): t.status for t in study.trials}
    lost = [
        t
        for t in study.trials
        if t.arm == arm and t.status == "diverged" and ended.get((against, t.size, t.seed)) == "finished"
    ]
    return {"trials": len(lost), "of": sum(t.arm == arm for t in study.trials)}
