"""The comparison of a study's arms: one JSON-ready dict, the single source of table, `--json`, report and wandb.

Read top down: `compare` gathers what each arm measures (cells), the paired contrasts, scale-equivalent
gains and mechanism of each arm but the baseline, and the answers. The rule is in analysis/inference/evidence.py, what
is read off a trial in analysis/study/measures.py; here they meet. Deterministic: the generator of the bootstrap
is seeded by BOOTSTRAP_SEED. Units: losses in nats per token; differences of log loss (−0.01 is 1 % lower);
seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis.inference import evidence, size_trends
from analysis.inference.answers import answer
from analysis.inference.evidence import Contrast, contrast, mean_interval, pooled
from analysis.inference.held_out_parts import held_out_parts
from analysis.inference.imported_curves import imported_row
from analysis.inference.looks import confidence_at, futile
from analysis.inference.matched_loss import INSTRUMENTS, mechanism
from analysis.inference.pooled_breaks import CURVES, PooledBreaks, load
from analysis.inference.rows import ArmComparison, Cell, Comparison, Difference, Interval, Looks, Size
from analysis.study.arm import Arm, rate_factor
from analysis.study.load import Study, Trial, environment
from analysis.study.measures import TAIL_FACTORS, Measures, parameters
from zslx.config.spec import Spec

BOOTSTRAP_SEED = 20250605
FUTILE_WORD = f"{evidence.NOTHING}, futile"
DECLARED_EFFECTS = (0.0025, 0.005, 0.01, 0.02)  # of the loss: for each, the seeds that finding it would need

Measure = Callable[[Trial], float]


def compare(results: Path | str, study: str | None = None) -> Comparison:
    """Everything that the records of one study (the newest by default) say. ValueError when there is none."""
    return compare_study(load(results, study))


def compare_study(breaks: PooledBreaks) -> Comparison:
    """The comparison of a loaded study, whose fits `breaks` makes."""
    measures, study = breaks.measures, breaks.study
    contrasts = [compare_arm(breaks, arm) for arm in study.arms if arm.role != "baseline"]
    asked = {arm.name for arm in study.arms if asked_about(study, arm)}
    more = [compare_arm(breaks, arm, against) for arm, against in declared(study)]
    answered = [row for row in contrasts if row["arm"] in asked] + more
    stand = looks(breaks)
    answers = [answer(study, row, breaks.kind, stand) for row in answered]
    seeds = [c["primary"]["seeds"] for c in contrasts + more if c["primary"]]
    found: Comparison = {
        "study": study.name,
        "preset": study.preset,
        "created": study.created,
        "command": study.command,
        "verdict_command": study.verdict_command,
        "exploratory": study.exploratory or not seeds or min(seeds) < evidence.VERDICT_SEEDS,
        "answers": answers,
        "looks": stand,
        "sizes": [describe_size(measures, size) for size in study.sizes],
        "seeds": list(study.seeds),
        "arms": [
            {
                "name": a.name,
                "intervention": a.intervention,
                "role": a.role,
                "of": a.of,
                "settings": dict(a.settings),
            }
            for a in study.arms
        ],
        "protocol": breaks.protocol(),
        "tuning": study.tuning,
        "cells": [describe_cell(breaks, arm, s) for s in range(len(study.sizes)) for arm in study.arms],
        "contrasts": contrasts,
        "declared_contrasts": more,
        "scale_parts": breaks.scale_parts(),
        "trends": trends(breaks),
        "failures": [
            {"arm": t.arm, "size": t.size, "seed": t.seed, "status": t.status, "error": t.error}
            for t in study.trials
            if not t.finished
        ],
        "trials": dict(Counter(t.status for t in study.trials)),
        "provenance": provenance(study),
        "rule": (evidence.__doc__ or "").strip(),
    }
    if study.imported:
        found["imported"] = [imported_row(one) for one in study.imported]
    return found


def looks(breaks: PooledBreaks) -> Looks | None:
    """At which look the study stands, and whether it has an answer there; None where none were planned."""
    study = breaks.study
    if not study.looks:
        return None
    words = decided(breaks.measures)
    found: Looks = {
        "after": list(study.looks),
        "seeds": len(study.seeds),
        "confidence": breaks.confidence,
        "decided": bool(words) and all(words.values()),
    }
    if study.futility:
        found["futile"] = [name for name, word in words.items() if word == FUTILE_WORD]
    return found


def asked_about(study: Study, arm: Arm) -> bool:
    """Whether the study's question is about this arm: not where it only adds cosine to another one."""
    return arm.role == "arm" and not any(adds_cosine(arm, other) for other in study.arms if other.role == "arm")


def adds_cosine(both: Arm, arm: Arm) -> bool:
    """Whether `both` is the arm with cosine, its settings the same."""
    same = all(both.settings.get(method) == arm.settings.get(method) for method in Spec.parse(arm.intervention).names)
    return both != arm and both.parts == arm.parts | {"cosine"} and same


def describe_size(measures: Measures, size: str) -> Size:
    """T, tokens a step and parameter counts of one size."""
    trial = measures.example(size)
    horizon, unit = measures.horizon.get(size), measures.unit.get(size)
    return {
        "size": size,
        "T": horizon,
        "tokens_per_step": unit,
        "parameters": parameters(trial) if trial else None,
    }


def parameter_counts(measures: Measures) -> list[dict[str, int]] | None:
    """The parameters of each size; None where one has no finished trial."""
    counts = [describe_size(measures, size)["parameters"] for size in measures.study.sizes]
    known = [c for c in counts if c is not None]
    return known if len(known) == len(counts) else None


# What an arm measures.


def describe_cell(breaks: PooledBreaks, arm: Arm, at: int) -> Cell:
    """One arm at one size: means with 95 % t intervals over seeds, and the paired difference to baseline."""
    measures, study, size = breaks.measures, breaks.study, breaks.study.sizes[at]
    trials = list(study.of(arm.name, size)) if size in measures.horizon else []
    loss = [math.exp(measures.log_loss(t)) for t in trials]
    fits = {kind: breaks.cell(arm.name, size, kind) for kind in CURVES}
    difference = None
    if arm.role != "baseline":
        row = paired(measures, arm.name, study.baseline.name, measures.log_loss)[[at]]
        difference = as_dict(contrast(row, confidence=breaks.confidence))
    return {
        "arm": arm.name,
        "size": size,
        "finished": len(trials),
        "heldout_loss": mean_interval(loss),
        "tail_slope": mean_interval([measures.tail(t) for t in trials]),
        "break_status": dict(Counter(measures.fit(t).status for t in trials)),
        **fits[breaks.kind],
        "fits": fits,
        "difference": difference,
        "cost": step_cost(measures, arm.name, at),
        "step_seconds": mean_interval([measures.step_seconds(t) for t in trials], log=True),
        "instruments": {
            key: mean_interval([measures.instrument(t, key) for t in trials])
            for key in INSTRUMENTS
            if any(key in t.values for t in trials)
        },
        "held_out": held_out_parts(measures, arm.name, size),
    }


def step_cost(measures: Measures, arm: str, at: int) -> Interval | None:
    """Seconds of a step over the baseline's, paired by seed: geometric mean and interval."""
    log_seconds = paired(measures, arm, measures.study.baseline.name, lambda t: math.log(measures.step_seconds(t)))
    return mean_interval(np.exp(log_seconds[at]), log=True)


def trends(breaks: PooledBreaks) -> dict[str, Any]:
    """Slopes of each arm's measures in log N (non-embedding and total), and laws of the baseline's loss."""
    measures, study = breaks.measures, breaks.study
    counts = parameter_counts(measures)
    if counts is None:
        return {"refused": "a size without a finished trial has no parameter count"}
    found: dict[str, Any] = {}
    for kind in ("non_embedding", "total"):
        n = np.array([c[kind] for c in counts], dtype=np.float64)
        found[kind] = {
            arm.name: {
                "log_loss": size_trends.trend(study.grid(arm.name, measures.log_loss), n),
                "tail_slope": size_trends.trend(study.grid(arm.name, measures.tail), n),
                **breaks.trends(arm.name, n),
            }
            for arm in study.arms
        }
    n = np.array([c["non_embedding"] for c in counts], dtype=np.float64)
    tokens = np.array([measures.horizon[s] * measures.unit[s] for s in study.sizes])
    found["laws"] = size_trends.laws(study.grid(study.baseline.name, measures.log_loss), n, tokens)
    return found


# Paired contrasts.


def paired(measures: Measures, arm: str, against: str, measure: Measure) -> np.ndarray:
    """Differences (S, n) between two arms; nan where either trial is missing."""
    study = measures.study
    return study.grid(arm, measure) - study.grid(against, measure)


@dataclass(frozen=True)
class LossContrasts:
    """What the word about an arm rests on: log held-out loss at T, paired.

    `differences` (S, n) to the baseline, or what is declared in its place, and to the placebo, by their names.
    """

    primary: Contrast | None
    placebo: Contrast | None
    rates: dict[str, Contrast | None]
    differences: dict[str, np.ndarray]

    def futile(self, study: Study) -> bool:
        """Whether the rest of the seeds would hardly give an answer."""
        return futile(self.primary, [self.placebo, *self.rates.values()], study.looks, len(study.seeds))

    def left_out(self, study: Study) -> dict[str, list[str]]:
        return {name: left_out_of(study, d) for name, d in self.differences.items()}


def loss_contrasts(measures: Measures, arm: Arm, against: str, confidence: float) -> LossContrasts:
    """An arm against another, against its placebo, and against the baseline at other learning rates."""
    study, loss = measures.study, measures.log_loss
    differences = {arm.name: paired(measures, arm.name, against, loss)}
    placebo = find_placebo(study, arm)
    if placebo:
        differences[placebo.name] = paired(measures, arm.name, placebo.name, loss)
    return LossContrasts(
        primary=pooled(differences[arm.name], confidence),
        placebo=pooled(differences[placebo.name], confidence) if placebo else None,
        rates={
            f"{factor:g}×": pooled(paired(measures, arm.name, control.name, loss), confidence)
            for factor, control in rate_controls(study)
            if control != arm
        },
        differences=differences,
    )


def decided(measures: Measures) -> dict[str, str | None]:
    """The word about each arm that is asked about, where the study has one at the look at which it stands; else None.
    FUTILE_WORD where the rest of the seeds would hardly give one, in a study that may stop for that.

    Needs no fit: whether a gain also mitigates the deceleration is no reason to go on.
    """
    study, found = measures.study, {}
    confidence = confidence_at(study.looks, len(study.seeds))
    asked = [(arm, study.baseline.name) for arm in study.arms if asked_about(study, arm)]
    for arm, against in asked + declared(study):
        contrasts = loss_contrasts(measures, arm, against, confidence)
        verdict = evidence.judge(
            contrasts.primary,
            contrasts.placebo,
            {},
            {},
            rates=contrasts.rates,
            has_placebo=arm.has_placebo,
            complete=not any(contrasts.left_out(study).values()),
            against=against,
        )
        name = arm.name if against == study.baseline.name else f"{arm.name} against {against}"
        if verdict.word != evidence.NOTHING:
            found[name] = None if verdict.exploratory else verdict.word
        else:
            stops = study.futility and not verdict.exploratory and contrasts.futile(study)
            found[name] = FUTILE_WORD if stops else None
    return found


def declared(study: Study) -> list[tuple[Arm, str]]:
    """The contrasts that the study declares beside those to the baseline."""
    return [(arm, study.contrasts[arm.name]) for arm in study.arms if arm.name in study.contrasts]


def compare_arm(breaks: PooledBreaks, arm: Arm, against: str | None = None) -> ArmComparison:
    """One arm against the baseline or the arm that the study declares, and against its placebo and cosine where the
    study has them."""
    measures, study, base = breaks.measures, breaks.study, against or breaks.study.baseline.name
    contrasts = loss_contrasts(measures, arm, base, breaks.confidence)
    primary, placebo, difference = contrasts.primary, find_placebo(study, arm), contrasts.differences[arm.name]
    counted = [size for size, ok in zip(study.sizes, evidence.pooled_sizes(difference), strict=True) if ok]
    secondary = secondary_contrasts(breaks, arm.name, base, counted)
    with_cosine, cosine = find_cosine(study, arm)
    beyond = None
    if with_cosine and cosine:
        beyond = pooled(paired(measures, with_cosine, cosine, measures.log_loss), breaks.confidence)
    signs = tail_signs(measures, arm.name, base, evidence.pooled_sizes(difference))
    signs |= breaks.signs(arm.name, counted, against)
    left_out = contrasts.left_out(study)
    verdict = evidence.judge(
        primary,
        contrasts.placebo,
        secondary,
        signs,
        rates=contrasts.rates,
        has_placebo=arm.has_placebo,
        beyond_cosine=beyond,
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
        "sign_flip": evidence.sign_flip(difference, generator),
        "across_sizes": evidence.across_sizes(*logs, generator),
        "rates": {factor: as_dict(found) for factor, found in contrasts.rates.items()},
        "placebo": {"arm": placebo.name, **(as_dict(contrasts.placebo) or {})} if placebo else None,
        "has_placebo": arm.has_placebo,
        "beyond_cosine": {"arm": with_cosine, "against": cosine, **(as_dict(beyond) or {})} if with_cosine else None,
        "secondary": {
            name: (as_dict(c) or {}) | {"p_holm": adjusted[name]} for name, c in secondary.items() if c is not None
        },
        "deceleration": {kind: breaks.differences(arm.name, kind, against) for kind in CURVES},
        "cut_signs": {name: [value_or_none(s) for s in row] for name, row in signs.items()},
        "seeds_needed": seeds_needed(primary),
        "equal_compute": equal_compute(measures, arm.name, base),
        "scale_equivalent_gain": gains(measures, difference),
        "mechanism": mechanism(measures, arm.name, base),
        "diverged": unmatched(study, arm.name, base),
    }


def left_out_of(study: Study, difference: np.ndarray) -> list[str]:
    """Sizes with too few pairs to count in the average over sizes."""
    return [size for size, ok in zip(study.sizes, evidence.pooled_sizes(difference), strict=True) if not ok]


def as_dict(found: Contrast | None) -> Difference | None:
    return None if found is None else found.as_dict()


def find_placebo(study: Study, arm: Arm) -> Arm | None:
    return next((a for a in study.arms if a.role == "placebo" and a.of == arm.name), None)


def rate_controls(study: Study) -> list[tuple[float, Arm]]:
    """(factor, arm) of the baseline at other learning rates."""
    factors = [(rate_factor(a.name), a) for a in study.arms]
    return [(factor, arm) for factor, arm in factors if factor is not None]


def find_cosine(study: Study, arm: Arm) -> tuple[str | None, str | None]:
    """(arm + cosine, cosine) by name, where the study has both."""
    for both in (a for a in study.arms if adds_cosine(a, arm)):
        for cosine in (a for a in study.arms if a.parts == {"cosine"} and a != both):
            if cosine.settings.get("cosine") == both.settings.get("cosine"):
                return both.name, cosine.name
    return None, None


def secondary_contrasts(
    breaks: PooledBreaks, arm: str, against: str, sizes: Sequence[str]
) -> dict[str, Contrast | None]:
    """Slopes, breaks (L_d and t_d as logs) and instruments, arm − baseline, averaged over sizes.

    A break measure counts over the sizes at which the break of both arms is identified; see PooledBreaks.averaged.
    """
    measures = breaks.measures
    confidence = breaks.confidence
    found = {"tail_slope": pooled(paired(measures, arm, against, measures.tail), confidence)}
    found |= breaks.averaged(arm, sizes, against=against)
    for key in INSTRUMENTS:
        found[key] = pooled(paired(measures, arm, against, partial(measures.instrument, key=key)), confidence)
    return found


def tail_signs(measures: Measures, arm: str, against: str, sizes: np.ndarray) -> dict[str, list[float]]:
    """Differences of the tail slope for each length of tail, averaged over `sizes`: their signs must agree."""

    def differ(factor: float) -> float:
        return mean_difference(paired(measures, arm, against, partial(measures.tail, factor=factor))[sizes])

    return {"tail_slope": [differ(factor) for factor in TAIL_FACTORS]}


def mean_difference(d: np.ndarray) -> float:
    """The average over sizes; nan when a size has no pair."""
    present = np.isfinite(d)
    return float(evidence.size_means(d).mean()) if d.size and present.any(axis=1).all() else math.nan


def seeds_needed(primary: Contrast | None) -> dict[str, int | None] | None:
    """Paired seeds with which an effect of x on log loss would be found with probability .8."""
    if primary is None or primary.se is None:
        return None
    spread = primary.se * math.sqrt(primary.seeds)
    return {f"{effect:g}": evidence.seeds_needed(effect, spread) for effect in DECLARED_EFFECTS}


def equal_compute(measures: Measures, arm: str, against: str) -> dict[str, Any] | None:
    """Paired difference at equal measured compute: the dearer of the two is read where its time is up.

    Compute: seconds of training up to T, those of a reference model included, without instruments.

    Read off curves whose schedule was made for T steps, not retrained for the budget: `read_off` says so.
    It is fair to constant rates; a decaying schedule that is cut short is put at a disadvantage.
    """
    study = measures.study
    log_seconds = paired(measures, arm, against, lambda trial: math.log(measures.compute_seconds(trial)))
    means = [mean_interval(np.exp(row), log=True) for row in log_seconds]
    cost = np.array([np.nan if m is None else m["mean"] for m in means])
    if not np.isfinite(cost).any():
        return None
    place = {size: s for s, size in enumerate(study.sizes)}

    def read(share: Callable[[float], float]) -> Measure:
        def at(trial: Trial) -> float:
            c = cost[place[trial.size]]
            return measures.log_loss(trial, measures.horizon[trial.size] * share(c)) if np.isfinite(c) else math.nan

        return at

    arm_loss = study.grid(arm, read(lambda c: min(1.0, 1 / c)))
    base_loss = study.grid(against, read(lambda c: min(1.0, c)))
    found = pooled(arm_loss - base_loss)
    return (
        None if found is None else dict(found.as_dict()) | {"read_off": True, "cost": [value_or_none(c) for c in cost]}
    )


def value_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def gains(measures: Measures, difference: np.ndarray) -> dict[str, Any]:
    """Scale-equivalent gain at each size."""
    study = measures.study
    counts = parameter_counts(measures)
    if counts is None:
        return {size: {"refused": "a size has no finished trial"} for size in study.sizes}
    n = np.array([c["non_embedding"] for c in counts], dtype=np.float64)
    base = study.grid(study.baseline.name, measures.log_loss)
    return {size: size_trends.equivalent_gain(difference, base, n, s) for s, size in enumerate(study.sizes)}


def unmatched(study: Study, arm: str, against: str) -> dict[str, int]:
    """Trials of the arm that diverged where the baseline's did not: they are missing from every contrast."""
    ended = {(t.arm, t.size, t.seed): t.status for t in study.trials}
    lost = [
        t
        for t in study.trials
        if t.arm == arm and t.status == "diverged" and ended.get((against, t.size, t.seed)) == "finished"
    ]
    return {"trials": len(lost), "of": sum(t.arm == arm for t in study.trials)}


def provenance(study: Study) -> dict[str, Any]:
    """Identities, versions and hardware of the finished trials."""
    finished = [t for t in study.trials if t.finished]
    first: dict[str, Any] = dict(finished[0].manifest) if finished else {}
    revisions = sorted({str(t.manifest["revision"]) for t in finished if t.manifest.get("revision")})
    return {
        "environment": environment(finished[0]) if finished else {},
        "versions": first.get("versions") or {},
        "hardware": first.get("hardware") or {},
        "revisions": revisions,
        "identities": [{"arm": t.arm, "size": t.size, "seed": t.seed, "identity": t.identity} for t in study.trials],
    }
