"""The rule by which a study speaks: paired contrasts, their intervals, and the words they allow.

Unit: the seed. Trials with one seed share initial weights and data order in every arm, so a contrast is
made of paired differences d[s, i] at size s and seed i (nan where either trial is missing). For weights w
over sizes (1/S each for the average over sizes; the least-squares weights of a slope for a trend)

    estimate = Σ_s w_s mean_i d[s, i]
    u_i      = Σ_s (w_s / n_s) (d[s, i] − mean_s)               what seed i adds, its sizes kept together
    se²      = n/(n − 1) Σ_i u_i²,   n = min_s n_s,   interval = estimate ± t_{.975, n−1} se

With all pairs there this is the t interval over per-seed averages, exactly; with missing seeds every pair
counts and n is the smallest size's count, which errs to the wide side. Sizes keep their seeds together
because they share data order: pretending that 3 sizes × 10 seeds are 30 independent pairs would be wrong.

    smallest effect seen = (t_{.975, n−1} + t_{.80, n−1}) se    found with probability .8 (two-sided 5 %)

The words (in this order; primary = log held-out loss at T, arm − baseline):
    hurts                             the primary interval lies above 0 (below 6 seeds: `above baseline`)
    no effect found                   it contains 0; or a control was run and the arm is not below it: its placebo, or
                                      the baseline at another learning rate
    below baseline, … not run         it lies below 0, and the study lacks a control: the arm's placebo, where one
                                      exists, or the baseline at half and at twice its learning rate
    improves                          primary, arm − placebo (where one exists) and arm − each rate all lie below 0
    mitigates deceleration            moreover the slope (r_d, or the tail slope where no break is
                                      identified) is higher or L_d lower after Holm's correction, neither
                                      is worse in its plain interval, and the sign is the same at every
                                      early cut
`beyond LR decay` is added to the last two when (arm + cosine) − cosine lies below 0 too, the rate of each tuned, and
with as many pairs. Below 6 seeds at any size of the study, or where a size was left out of a contrast:
`exploratory`. In a study that may stop early, t_{.975, n−1} is that of the look's own level
(analysis/inference/looks.py).

Pure functions of arrays; nothing here reads a file. Oracles: scipy's one-sample t test and enumeration
(tests/unit/test_compare_evidence.py), error rates by simulation
(tests/calibration/test_evidence_simulation.py).

Shapes: S sizes, n seeds; arrays (S, n) in nats or as named. Negative differences of loss are gains.
"""

# The docstring is printed with every comparison: it is the whole rule, with the equations of contrasts.py.
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.inference.contrasts import Contrast

VERDICT_SEEDS = 6  # fewer paired seeds are exploratory; the fewest whose exact test can reach 5 %
NOTHING = "no effect found"
# Which way is better for the measures of deceleration: +1 higher, −1 lower. t_d has no better side.
BETTER = {"r_d": +1, "tail_slope": +1, "L_d": -1}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The word that a study allows for one arm, what it rests on, and what was missing."""

    word: str
    reasons: tuple[str, ...]
    exploratory: bool
    smallest_effect: float | None
    beyond_lr_decay: bool | None = None  # None: (arm + cosine) against cosine was not run, or says nothing


def judge(
    primary: Contrast | None,
    placebo: Contrast | None,
    secondary: Mapping[str, Contrast | None],
    cut_signs: Mapping[str, Sequence[float]],
    *,
    rates: Mapping[str, Contrast | None] | None = None,
    has_placebo: bool = True,
    beyond_cosine: Contrast | None = None,
    declared: bool = True,
    complete: bool = True,
    against: str = "baseline",
) -> Verdict:
    """The rule of the module docstring.

    primary, placebo: log held-out loss at T, arm − baseline and arm − placebo, averaged over sizes;
    secondary: measure → contrast, arm − baseline (r_d, tail_slope, L_d and t_d as logs, instruments);
    cut_signs: measure → its difference at each early cut (nan: could not be taken); rates: arm − the baseline at other
    learning rates, by factor; has_placebo: whether a placebo of the arm exists at all; declared: False marks what
    was not declared before as exploratory; complete: False where a size was left out of a contrast; against: the arm
    that a study file declares in place of the baseline.
    """
    controls = [] if rates is None else list(rates.values())
    used = [c for c in (primary, placebo, *controls) if c is not None]
    exploratory = not (declared and complete) or primary is None or min(c.seeds for c in used) < VERDICT_SEEDS
    reach = [c.smallest_effect for c in used if c.smallest_effect is not None]
    smallest = max(reach) if len(reach) == len(used) and reach else None
    word, reasons = _word(primary, placebo, rates or {}, has_placebo, against)
    if word == "improves":
        mitigates, why = _mitigates(secondary, cut_signs)
        word = "mitigates deceleration" if mitigates else word
        reasons += why
    return Verdict(
        word=word,
        reasons=tuple(reasons),
        exploratory=exploratory,
        smallest_effect=smallest,
        beyond_lr_decay=None if beyond_cosine is None else beyond_cosine.below,
    )


def _word(
    primary: Contrast | None,
    placebo: Contrast | None,
    rates: Mapping[str, Contrast | None],
    has_placebo: bool,
    against: str,
) -> tuple[str, list[str]]:
    below = f"below {against}"
    if primary is None or primary.se is None:
        return NOTHING, ["fewer than two paired seeds: no interval"]
    if primary.above:
        word = "hurts" if primary.seeds >= VERDICT_SEEDS else f"above {against}"
        return word, [f"the interval of the paired difference to {against} lies above 0"]
    if not primary.below:
        return NOTHING, [f"the interval of the paired difference to {against} contains 0"]
    if placebo is not None and placebo.se is not None and not placebo.below:
        return NOTHING, [f"{below}, but not below its placebo"]
    for name, other in rates.items():
        if other is not None and other.se is not None and not other.below:
            return NOTHING, [f"{below}, but not below the baseline at {name} its learning rate"]
    if has_placebo and (placebo is None or placebo.se is None):
        return f"{below}, placebo not run", [f"{below}; no placebo of this arm to compare with"]
    if not _brackets(rates):
        return f"{below}, rates not run", [f"{below}; the baseline was not run at half and twice its rate"]
    controls = "its placebo and the baseline" if has_placebo else "the baseline"
    return "improves", [f"{below}, and below {controls} at half and at twice its learning rate"]


def _brackets(rates: Mapping[str, Contrast | None]) -> bool:
    """Whether the baseline was run at a lower and at a higher learning rate."""
    factors = [float(name.removesuffix("×")) for name, found in rates.items() if found and found.se is not None]
    return any(f < 1 for f in factors) and any(f > 1 for f in factors)


def _mitigates(
    secondary: Mapping[str, Contrast | None], cut_signs: Mapping[str, Sequence[float]]
) -> tuple[bool, list[str]]:
    """Whether the deceleration itself is relieved: (verdict, reasons)."""
    adjusted, slope = holm_family(secondary), slope_measure(secondary)
    claims, reasons = [], []
    for name in (slope, "L_d"):
        found, p, label = secondary.get(name), adjusted.get(name), name.replace("_slope", " slope")
        if found is None or found.low is None:
            continue
        gain = BETTER[name] * found.estimate
        if (found.above, found.below)[BETTER[name] > 0]:
            reasons.append(f"{label} is worse")
            return False, reasons
        if gain > 0 and p is not None and p < 1 - found.confidence:
            signs = list(cut_signs.get(name, ()))
            better = f"{label} is better (Holm p = {p:.2g})"
            if any(BETTER[name] * s <= 0 for s in signs):
                reasons.append(f"{better}, but its sign depends on the early cut")
            elif not signs or not all(map(math.isfinite, signs)):
                reasons.append(f"{better}, but not every early cut leaves enough of the curves to tell its sign")
            else:
                claims.append(name)
                reasons.append(f"{better}, the same sign at every early cut")
    if not reasons:
        reasons.append(f"no better {slope.replace('_slope', ' slope')} or L_d after Holm's correction")
    return bool(claims), reasons


def slope_measure(secondary: Mapping[str, Contrast | None]) -> str:
    """r_d, or the tail slope where breaks are not identified."""
    return "r_d" if secondary.get("r_d") is not None else "tail_slope"


def holm_family(secondary: Mapping[str, Contrast | None]) -> dict[str, float | None]:
    """Holm's p of the secondary measures; of r_d and tail slope only the one that counts is in the family."""
    other = {"r_d": "tail_slope", "tail_slope": "r_d"}[slope_measure(secondary)]
    return holm({name: c.p if c is not None and name != other else None for name, c in secondary.items()})


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down correction over the p-values that are there; None stays None and does not count."""
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    adjusted: dict[str, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[name] = largest
    return adjusted
