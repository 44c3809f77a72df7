"""The report of a study as a list of blocks, in the order in which a sceptical reader asks.

The question and the answer; headline table; loss curves with fits, breaks and their status; how the break hangs on
the early cut; slopes that need no break; paired differences and what they rest on; D and M; gradient interference
against chance; mechanism; trends over sizes and the scale-equivalent gain; cost; what the intervention did;
failures; how to reproduce it, and the rule. Everything comes from the records: `comparison` (analysis/compare.py)
and the curves of its trials. A section without data is left out. analysis/page.py renders the blocks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.answers import percent
from analysis.blocks import Answer, Block, Figure, Heading, Table, Text
from analysis.compare import compare_study
from analysis.figures import Figures
from analysis.measures import TAIL_FACTORS, Measures
from analysis.page import render
from analysis.table import MISSING, difference, headline, minus, plus_minus
from zslx.records import write_atomic

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
    "grad_sequence.ratio": "gradient interference, sequences",
}


def write_report(measures: Measures, out: Path, comparison: Mapping[str, Any] | None = None) -> Path:
    """Write the HTML report of a loaded study to `out`."""
    comparison = comparison or compare_study(measures)
    page = render(blocks(measures, comparison), title=f"zslx: {comparison['study']}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page.encode("utf-8", errors="replace"))
    return out


def slug(name: str) -> str:
    """A file name from any study name: letters, digits, `-` and `_`, at most 80 of them."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:80] or "study"


def blocks(measures: Measures, comparison: Mapping[str, Any]) -> list[Block]:
    """The whole report."""
    figures = Figures(measures)
    parts: list[Sequence[Block | None]] = [
        answers(comparison),
        [Heading(text="The arms at a glance", anchor="table"), headline(comparison)],
        [Heading(text="Loss curves", anchor="loss"), figures.losses(), break_status(comparison), figures.differences()],
        [Heading(text="How the break hangs on the early cut", anchor="cut"), sensitivity(measures, comparison)],
        [Heading(text="Slopes that need no break", anchor="slopes"), figures.slopes(), tail_slopes(measures, comparison)],
        [Heading(text="Paired differences", anchor="differences"), figures.forest(comparison["contrasts"]),
         *contrast_tables(comparison)],
        [Heading(text="Loss interference", anchor="interference"), *figures.interference()],
        [Heading(text="Gradient interference", anchor="gradients"), figures.gradients()],
        [Heading(text="Mechanism: better loss through less interference?", anchor="mechanism"), mechanism(comparison)],
        [Heading(text="Over model sizes", anchor="sizes"), gains(comparison), trends(comparison)],
        [Heading(text="Cost", anchor="cost"), *cost(comparison)],
        [Heading(text="What the interventions did", anchor="did"), training(measures),
         *(figure for _, figure in figures.metrics())],
        [Heading(text="Failures", anchor="failures"), failures(comparison)],
        [Heading(text="How to reproduce this", anchor="reproduce"), *reproduce(comparison)],
    ]  # fmt: skip
    found: list[Block] = []
    for part in parts:
        there = [block for block in part if block is not None]
        if len(there) > 1:
            found += there
    return found


def answers(comparison: Mapping[str, Any]) -> list[Block | None]:
    """One card an arm that was asked about."""
    trials = sum(comparison["trials"].values())
    sizes = ", ".join(s["size"] for s in comparison["sizes"])
    about = (
        f"Study {comparison['study']}: {len(comparison['arms'])} arms at {len(comparison['sizes'])} sizes ({sizes}), "
        f"{len(comparison['seeds'])} seeds, {comparison['trials'].get('finished', 0)} of {trials} trials finished"
        + (f", {comparison['created']}" if comparison["created"] else "")
    )
    found: list[Block | None] = [Text(text=about)]
    for answer in comparison["answers"]:
        notes = [reason[:1].upper() + reason[1:] + "." for reason in answer["reasons"]]
        if answer["verdict_command"]:
            notes.append(f"For a verdict: {answer['verdict_command']}")
        found.append(
            Answer(
                question=f"Does {answer['arm']} lower the loss, and relieve its deceleration, without scale?",
                sentence=answer["sentence"],
                word=answer["word"],
                exploratory=answer["exploratory"],
                notes=tuple(notes),
            )
        )
    if not comparison["answers"]:
        found.append(Text(text="No arm is asked about in this study: controls and baseline only."))
    return found


def break_status(comparison: Mapping[str, Any]) -> Table:
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
        folded="Status of the break in each arm",
        caption="break: identified; no_break: a power law is preferred; break_outside: the fitted break lies outside "
        "the curve; not_identifiable: a parameter on its bound, or t_d hangs on the early cut.",
    )


def sensitivity(measures: Measures, comparison: Mapping[str, Any]) -> Table | None:
    """t_d, L_d and r_d of the one-break fit at each early cut: baseline and the arms asked about."""
    from analysis.evidence import mean_interval

    study = measures.study
    shown = [study.baseline.name, *(a["arm"] for a in comparison["answers"])]
    rows, breaks = [], set()
    for size in study.sizes:
        for arm in shown if size in measures.horizon else ():
            trials = list(study.of(arm, size))
            if trials:
                breaks.add(len(rows))
            for cut in measures.cuts if trials else ():
                read = {
                    n: mean_interval([measures.at_cut(t, cut, n) for t in trials])
                    for n in ("t_d", "L_d", "r_d")
                }
                if any(read.values()):
                    label = f"{cut[1]:g} × {cut[0]}"
                    rows.append(
                        (
                            size,
                            arm,
                            label,
                            *(plus_minus(read[n], d) for n, d in zip(read, (0, 3, 4), strict=True)),
                        )
                    )
    if not rows:
        return None
    return Table(
        columns=("size", "arm", "steps left out", "t_d", "L_d", "r_d"),
        rows=tuple(rows),
        heads=2,
        breaks=frozenset(breaks),
        caption="The one-break fit with more or fewer early steps left out, identified or not, means over seeds. A t_d "
        "that moves with the cut is smooth curvature read as a break: then L_d, t_d and r_d are no property of the run, "
        "and the slopes below are what stands.",
    )


def tail_slopes(measures: Measures, comparison: Mapping[str, Any]) -> Table:
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


def contrast_tables(comparison: Mapping[str, Any]) -> list[Table]:
    """The primary contrast and its companions; then the secondary measures with Holm's correction."""
    primary, secondary, breaks = [], [], set()
    for row in comparison["contrasts"]:
        flip, across = row["sign_flip"], row["across_sizes"] or {}
        for against, found in (
            (row["against"], row["primary"]),
            ((row["placebo"] or {}).get("arm"), row["placebo"]),
            ((row["beyond_cosine"] or {}).get("against"), row["beyond_cosine"]),
        ):
            if not found or found.get("estimate") is None:
                continue
            first = found is row["primary"]
            name = found["arm"] if found is row["beyond_cosine"] else row["arm"]
            primary.append(
                (
                    name,
                    against,
                    difference(found),
                    p_value(found["p"]),
                    p_value(flip["p"]) if flip and first else MISSING,
                    percent_interval(across.get("interquartile_mean")) if first else MISSING,
                    share(across.get("probability_of_improvement")) if first else MISSING,
                    str(found["seeds"]),
                    MISSING if found["smallest_effect"] is None else percent(found["smallest_effect"]),
                )
            )
        breaks.add(len(secondary))
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
            caption="Log held-out loss at T, paired by seed, averaged over sizes. Sign flip: exact test over seeds, from "
            "6 seeds on. Interquartile mean of all paired differences, and probability that a run of the arm beats a run "
            "of the baseline at the same size, with bootstrap intervals over seeds. Smallest effect seen: found with "
            "probability .8.",
        ),
        Table(
            columns=("arm", "measure", "paired difference", "p (t)", "p (Holm)"),
            rows=tuple(secondary),
            heads=2,
            breaks=frozenset(breaks),
            folded="Secondary measures, corrected for their number",
            caption="Against the baseline, averaged over sizes; instruments: means over the probes after T/4. Holm's "
            "correction is over the measures of an arm; of r_d and tail slope only the one that the rule uses is in it.",
        ),
    ]  # fmt: skip


def mechanism(comparison: Mapping[str, Any]) -> Table | None:
    """Paired change of each instrument at matched loss and at matched step."""
    rows, breaks = [], set()
    for row in comparison["contrasts"]:
        breaks.add(len(rows))
        rows += [
            (row["arm"], m["label"], number(m["matched_loss"]), number(m["matched_step"]))
            for m in row["mechanism"]
        ]
    if not rows:
        return None
    return Table(
        columns=("arm", "instrument", "at matched loss", "at matched step"),
        rows=tuple(rows),
        heads=2,
        breaks=frozenset(breaks),
        caption="Paired change against the baseline, late in training. D grows along a curve whatever the method, so an "
        "arm that is ahead differs at the same step for that alone; at matched loss it is compared with the baseline "
        "when that was as good. A lower D at matched loss is less zero-sum learning; a better loss without it is a "
        "better loss for another reason.",
    )


def gains(comparison: Mapping[str, Any]) -> Table | None:
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


def trends(comparison: Mapping[str, Any]) -> Table | None:
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
        caption="Least squares over the size means, 95 % intervals over seeds. For comparison, the paper's runs from 14M "
        "to 472M parameters: L_d from 4.05 to 3.16, r_d from .0125 to .0349 (arXiv 2506.05447).",
    )


def cost(comparison: Mapping[str, Any]) -> list[Block | None]:
    """Step cost by arm and size, and the primary contrast at equal compute."""
    sizes = [s["size"] for s in comparison["sizes"]]
    cells = {(c["arm"], c["size"]): c for c in comparison["cells"]}
    rows = []
    for row in comparison["contrasts"]:
        equal = row["equal_compute"]
        measured = [plus_minus(cells[row["arm"], s]["cost"], 2, "×") for s in sizes]
        rows.append((row["arm"], *measured, difference(row["primary"]), difference(equal)))
    table = Table(
        columns=("arm", *(f"step cost, {s}" for s in sizes), "difference at equal steps", "at equal compute"),
        rows=tuple(rows),
        caption="Median seconds of a training step over the baseline's, paired by seed (without instruments). Equal "
        "compute: the dearer arm's curve is read where the other's time is up. It is read off curves made for T steps, "
        "not retrained for the budget: fair to constant rates, unfair to a decaying schedule that is cut short.",
    )
    return [table if rows else None]


def training(measures: Measures) -> Table | None:
    """Clipped and skipped steps, size of the update, by arm: from the step records."""
    import numpy as np

    rows = []
    for arm in measures.study.arms:
        found: dict[str, list[float]] = {"clipped": [], "skipped": [], "update_norm": [], "grad_norm": []}
        for trial in measures.study.of(arm.name):
            columns, steps = trial.run.steps, max(len(trial.run.steps.get("step", ())), 1)
            for key in ("clipped", "skipped"):
                found[key].append(float(np.nansum(columns[key])) / steps if key in columns else 0.0)
            for key in ("update_norm", "grad_norm"):
                if key in columns:
                    found[key].append(float(np.nanmedian(columns[key])))
        if found["clipped"]:
            shares = [f"{100 * np.mean(found[k]):.1f} %" for k in ("clipped", "skipped")]
            norms = [
                f"{np.mean(found[k]):.3g}" if found[k] else MISSING for k in ("grad_norm", "update_norm")
            ]
            rows.append((arm.name, *shares, *norms))
    if not rows:
        return None
    return Table(
        columns=("arm", "steps clipped", "steps skipped", "median gradient norm", "median ‖Δθ‖"),
        rows=tuple(rows),
        caption="Averages over all trials of an arm. Arms whose updates differ much in size differ in their effective "
        "learning rate, too.",
    )


def failures(comparison: Mapping[str, Any]) -> Table | None:
    """Trials that did not finish, and why."""
    if not comparison["failures"]:
        return None
    return Table(
        columns=("arm", "size", "seed", "status", "reason"),
        rows=tuple(
            (f["arm"], f["size"], str(f["seed"]), f["status"], f["error"]) for f in comparison["failures"]
        ),
        heads=2,
        caption="These trials are in none of the numbers above; their partners of the same seed are left out of the "
        "paired differences.",
    )


def reproduce(comparison: Mapping[str, Any]) -> list[Block | None]:
    """Command, versions, hardware, identities, the rule."""
    found = comparison["provenance"]
    facts = [
        (k, str(v)) for part in ("versions", "hardware") for k, v in found[part].items() if v is not None
    ]
    facts += [("revision", ", ".join(found["revisions"]) or MISSING)]
    facts += [(k, v) for k, v in found["environment"].items() if k in ("numerics", "corpus", "device")]
    arms = tuple(
        (
            a["name"],
            a["intervention"],
            a["role"],
            json.dumps(a["settings"], ensure_ascii=False) if a["settings"] else "",
        )
        for a in comparison["arms"]
    )
    identities = tuple((i["arm"], i["size"], str(i["seed"]), i["identity"]) for i in found["identities"])
    return [
        Text(text=comparison["command"] or "(the study does not name its command)", mono=True),
        Table(
            columns=("arm", "intervention", "role", "settings"), rows=arms, folded="Arms and their settings"
        ),
        Table(columns=("what", "value"), rows=tuple(facts), folded="Versions and hardware"),
        Table(
            columns=("arm", "size", "seed", "identity"),
            rows=identities,
            heads=2,
            folded="Identities of the trials",
        ),
        Text(text=comparison["rule"], mono=True, folded="The rule by which the answer was given"),
    ]


def number(found: Mapping[str, Any] | None) -> str:
    """`+0.0137 [+0.0122, +0.0152]`."""
    if not found or found.get("estimate") is None:
        return MISSING
    digits = decimals(found)
    bounds = "" if found["low"] is None else f" [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"
    return minus(f"{found['estimate']:+.{digits}f}{bounds}")


def decimals(found: Mapping[str, Any]) -> int:
    """Two significant digits of the half-width, between 2 and 6 decimals."""
    half = abs(found["estimate"]) if found["low"] is None else (found["high"] - found["low"]) / 2
    return 2 if half <= 0 else min(6, max(2, 1 - math.floor(math.log10(half))))


def p_value(p: float | None) -> str:
    if p is None:
        return MISSING
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def percent_interval(found: Mapping[str, float] | None) -> str:
    return difference(found) if found else MISSING


def share(found: Mapping[str, float] | None) -> str:
    return f"{found['estimate']:.2f} [{found['low']:.2f}, {found['high']:.2f}]" if found else MISSING


def figure_count(found: Sequence[Block]) -> int:
    return sum(isinstance(block, Figure) for block in found)
