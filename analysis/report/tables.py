"""The report's tables, each from the comparison (inference/compare.py) or, where that is named, from the trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.inference.rows import Comparison
from analysis.numbers import MISSING, difference, minus, number, p_value, percent, plus_minus, share
from analysis.report.blocks import Table
from analysis.study.measures import TAIL_FACTORS, Measures

MEASURE_NAMES = {
    "tail_slope": "tail slope",
    "r_d": "r_d",
    "L_d": "log L_d",
    "t_d": "log t_d",
    "dt1_heldout.D": "D, one step, held-out",
    "dt1_heldout.M": "M, one step, held-out (nats)",
    "dt1_batch.D": "D, one step, its own batch",
    "dtt.D": "D, t to 2t, held-out",
    "dtt.M": "M, t to 2t, held-out (nats)",
    "grad_token.ratio": "gradient interference, tokens",
    "grad_sequence.ratio": "gradient interference, sequences",
    "first_order.C_g": "C_g, agreement of token gradients",
}


def break_status(comparison: Comparison) -> Table:
    """How many trials' breaks are identified, and why the others' are not."""
    rows = [
        (
            cell["size"],
            cell["arm"],
            ", ".join(f"{status} {n}" for status, n in sorted(cell["break_status"].items())),
        )
        for cell in comparison["cells"]
    ]
    return Table(
        columns=("size", "arm", "trials by status of the break"),
        rows=tuple(rows),
        heads=2,
        folded="Status of the break in each single trial",
        caption="Fits of the held-out loss of single trials, which are noisier than their mean. break: identified; "
        "no_break: a power law is preferred; break_outside: the fitted break lies outside the curve; not_identifiable: "
        "a parameter on its bound, or t_d depends on the early cut.",
    )


def tail_slopes(comparison: Comparison) -> Table:
    """Paired change of the tail slope over the last factors of 2, 4 and 8."""
    rows = []
    for row in comparison["contrasts"]:
        values = row["cut_signs"]["tail_slope"]
        rows.append((row["arm"], *(MISSING if v is None else minus(f"{v:+.4f}") for v in values)))
    return Table(
        columns=("arm", *(f"last factor of {f}" for f in TAIL_FACTORS)),
        rows=tuple(rows),
        caption="Paired change of the tail slope against the baseline (above 0: less deceleration), averaged over "
        "sizes, over three lengths of tail. The sign has to be the same for a claim.",
    )


def contrast_tables(comparison: Comparison) -> list[Table]:
    """The primary contrast and its companions; then the secondary measures with Holm's correction."""
    primary: list[tuple[str, ...]] = []
    secondary: list[tuple[str, ...]] = []
    for row in comparison["contrasts"]:
        flip, across = row["sign_flip"], row["across_sizes"] or {}
        placebo, cosine = row["placebo"] or {}, row["beyond_cosine"] or {}
        for name, against, found in (
            (row["arm"], row["against"], row["primary"]),
            (row["arm"], placebo.get("arm"), placebo),
            (cosine.get("arm"), cosine.get("against"), cosine),
        ):
            if not found or found.get("estimate") is None:
                continue
            first = found is row["primary"]
            primary.append(
                (
                    str(name),
                    str(against),
                    difference(found),
                    p_value(found["p"]),
                    p_value(flip["p"]) if flip and first else MISSING,
                    difference(across.get("interquartile_mean")) if first else MISSING,
                    share(across.get("probability_of_improvement")) if first else MISSING,
                    str(found["seeds"]),
                    MISSING if found["smallest_effect"] is None else percent(found["smallest_effect"]),
                )
            )
        for name, found in row["secondary"].items():
            secondary.append(
                (
                    row["arm"],
                    MEASURE_NAMES.get(name, name),
                    number(found),
                    p_value(found["p"]),
                    p_value(found["p_holm"]),
                )
            )
    return [
        Table(
            columns=("arm", "against", "difference", "p (t)", "p (sign flip)", "interquartile mean",
                     "probability of improvement", "seeds", "smallest effect seen"),
            rows=tuple(primary),
            heads=2,
            caption="Log held-out loss at T, paired by seed, averaged over sizes. Sign flip: exact test over seeds, "
            "from 6 seeds on. Interquartile mean of all paired differences, and probability that a run of the arm "
            "beats a run of the baseline at the same size, with bootstrap intervals over seeds. Smallest effect seen: "
            "what would have been found with probability .8.",
        ),
        Table(
            columns=("arm", "measure", "paired difference", "p (t)", "p (Holm)"),
            rows=tuple(secondary),
            heads=2,
                folded="Secondary measures, corrected for their number",
            caption="Against the baseline, averaged over sizes; instruments: means over the probes after T/4. Holm's "
            "correction is over the measures of an arm; of r_d and tail slope only the one that the rule uses counts.",
        ),
    ]  # fmt: skip


def mechanism(comparison: Comparison) -> Table | None:
    """Paired change of each instrument at matched loss and at matched step."""
    rows: list[tuple[str, ...]] = []
    for row in comparison["contrasts"]:
        rows += [
            (row["arm"], m["label"], number(m["matched_loss"]), number(m["matched_step"])) for m in row["mechanism"]
        ]
    if not rows:
        return None
    return Table(
        columns=("arm", "instrument", "at matched loss", "at matched step"),
        rows=tuple(rows),
        heads=2,
        caption="Paired change against the baseline, late in training. D grows along a curve whatever the method, "
        "so an arm that is ahead differs at the same step for that alone; at matched loss it is compared with the "
        "baseline when that was as good. A lower D at matched loss is less zero-sum learning; a better loss without "
        "it is a better loss for another reason.",
    )


def gains(comparison: Comparison) -> Table | None:
    """Scale-equivalent gain by arm and size."""
    rows = []
    for row in comparison["contrasts"]:
        for size, found in row["scale_equivalent_gain"].items():
            if "refused" in found:
                rows.append((row["arm"], size, MISSING, found["refused"]))
            else:
                note = "extrapolated beyond the sizes trained" if found["extrapolated"] else ""
                rows.append(
                    (
                        row["arm"],
                        size,
                        f"{found['gain']:.2f} × [{found['low']:.2f}, {found['high']:.2f}]",
                        note,
                    )
                )
    if not rows:
        return None
    return Table(
        columns=("arm", "size", "scale-equivalent gain", ""),
        rows=tuple(rows),
        heads=2,
        caption="The factor by which the baseline's non-embedding parameters would have to grow for the arm's loss: "
        "exp(−Δ log L / β), β the slope of the baseline's −log L_T in log N; 95 % interval over both (Fieller).",
    )


def trends(comparison: Comparison) -> Table | None:
    """Slopes in log non-embedding N."""
    found = comparison["trends"]
    if "refused" in found:
        return None
    rows = []
    for arm, by_measure in found["non_embedding"].items():
        for name, trend in by_measure.items():
            total = found["total"][arm][name]
            rows.append((arm, {"log_loss": "log held-out loss"}.get(name, MEASURE_NAMES.get(name, name)),
                         trend.get("refused") or number(trend), total.get("refused") or number(total)))  # fmt: skip
    return Table(
        columns=("arm", "measure", "slope in log N, non-embedding", "slope in log N, total"),
        rows=tuple(rows),
        heads=2,
        folded="Trends over sizes",
        caption="Least squares over the size means, 95 % intervals over seeds. For comparison, the paper's runs from "
        "14M to 472M parameters: L_d from 4.05 to 3.16, r_d from .0125 to .0349 (arXiv 2506.05447).",
    )


LAWS = {
    "kaplan": "L = (N_c / N)^α",
    "chinchilla": "L = E + A N^−α",
    "chinchilla_tokens": "L = E + A N^−α + B D^−β",
}
CONSTANTS = {"alpha": "α", "beta": "β", "log_N_c": "log N_c", "log_A": "log A", "log_B": "log B"}


def laws(comparison: Comparison) -> Table | None:
    """Scaling laws of the baseline's final loss, or why a study's sizes do not support one."""
    rows = []
    for name, law in comparison["trends"].get("laws", {}).items():
        if "refused" in law:
            rows.append((LAWS[name], f"not fitted: {law['refused']}", MISSING))
            continue
        constants = {CONSTANTS.get(k, k): minus(f"{value:.3g}") for k, value in law.items() if k != "rmse_log"}
        rows.append((LAWS[name], ", ".join(f"{k} = {v}" for k, v in constants.items()), percent(law["rmse_log"])))
    if not rows:
        return None
    return Table(
        columns=("law", "constants", "misfit"),
        rows=tuple(rows),
        folded="Scaling laws of the baseline",
        caption="Kaplan et al. 2020 and Hoffmann et al. 2022, fitted to the mean held-out loss at T of each size; N "
        "the non-embedding parameters, D the tokens trained on. Misfit: root mean square in log loss.",
    )


def seeds_needed(comparison: Comparison) -> Table | None:
    """How many paired seeds a verdict on an effect of a given size would need."""
    found = {row["arm"]: row["seeds_needed"] for row in comparison["contrasts"] if row["seeds_needed"]}
    if not found:
        return None
    effects = list(next(iter(found.values())))
    return Table(
        columns=("arm", *(percent(float(effect)) for effect in effects)),
        rows=tuple((arm, *(str(n[effect] or "over 10,000") for effect in effects)) for arm, n in found.items()),
        folded="How many seeds would it take?",
        caption="Paired seeds with which a true effect of that size on held-out loss would be found with probability "
        ".8, from the spread of this study's paired differences. From few seeds that spread is itself uncertain.",
    )


def at_equal_compute(found: Mapping[str, Any] | None) -> str:
    """The difference, or why there is none."""
    if found and found["estimate"] is None and found["unaffordable"]:
        return "its reference model takes it all"
    return difference(found)


def cost(comparison: Comparison) -> Table | None:
    """Step cost by arm and size, and the primary contrast at equal compute."""
    sizes = [s["size"] for s in comparison["sizes"]]
    cells = {(c["arm"], c["size"]): c for c in comparison["cells"]}
    rows = []
    for row in comparison["contrasts"]:
        equal = row["equal_compute"]
        measured = [plus_minus(cells[row["arm"], s]["cost"], 2, "×") for s in sizes]
        rows.append((row["arm"], *measured, difference(row["primary"]), at_equal_compute(equal)))
    if not rows:
        return None
    return Table(
        columns=("arm", *(f"step cost, {s}" for s in sizes), "difference at equal steps", "at equal compute"),
        rows=tuple(rows),
        caption="Median seconds of a training step over the baseline's, paired by seed (without instruments). Equal "
        "compute: the dearer arm's curve is read where the other's time of training is up; a reference model is "
        "trained before the first step, and may leave nothing. Curves are made for T steps, not retrained for the "
        "budget: fair to constant rates, unfair to a decaying schedule that is cut short.",
    )


def training(measures: Measures) -> Table | None:
    """Clipped and skipped steps, size of the update, by arm: from the step and probe records."""
    rows, unread = [], 0
    for arm in measures.study.arms:
        trials = list(measures.study.of(arm.name))
        every = [measures.steps(trial) for trial in trials]
        found = [summary for summary in every if summary]
        unread += len(every) - len(found)
        if found:
            shares = [np.mean([getattr(s, name) for s in found]) for name in ("clipped", "skipped")]
            updates = [np.median(t.values["update_norm"][1]) for t in trials if "update_norm" in t.values]
            norms = [np.mean([s.grad_norm for s in found]), np.mean(updates) if updates else np.nan]
            rows.append(
                (
                    arm.name,
                    *(f"{100 * share:.1f} %" for share in shares),
                    *(f"{norm:.3g}" if np.isfinite(norm) else MISSING for norm in norms),
                )
            )
    if not rows:
        return None
    return Table(
        columns=("arm", "steps clipped", "steps skipped", "median gradient norm", "median ‖Δθ‖"),
        rows=tuple(rows),
        caption="Averages over all trials of an arm; ‖Δθ‖ over the probe steps. Arms whose updates differ much in "
        "size differ in their effective learning rate, too."
        + (f" The step records of {unread} trials could not be read." if unread else ""),
    )


def failures(comparison: Comparison) -> Table | None:
    """Trials that did not finish, and why."""
    if not comparison["failures"]:
        return None
    return Table(
        columns=("arm", "size", "seed", "status", "reason"),
        rows=tuple((f["arm"], f["size"], str(f["seed"]), f["status"], f["error"]) for f in comparison["failures"]),
        heads=2,
        caption="These trials are in none of the numbers above; their partners of the same seed are left out of the "
        "paired differences.",
    )
