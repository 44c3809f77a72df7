"""The answer in one sentence: the verdict's word, the effect with its interval, and what it was compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scipy.stats import chi2

from analysis.inference.contrasts import POWER
from analysis.inference.evidence import VERDICT_SEEDS
from analysis.inference.looks import FUTILE
from analysis.inference.rows import Answer, ArmComparison, Comparison, Looks
from analysis.numbers import change, count, difference, number, percent, signed
from analysis.study.load import Study

GAINS = ("improves", "mitigates deceleration")
MOST_NAMED = 3  # earlier studies in one sentence


def answer(study: Study, row: ArmComparison, curve: str, looks: Looks | None) -> Answer:
    """{arm, word, exploratory, sentence} of one arm's contrasts (arm_comparison.py); `curve` is the loss curve on
    which the study declares L_d, t_d and r_d."""
    word = headline(row)
    parts = [f"{row['arm']}: {word}{effect(row)}."]
    if looks:
        parts.append(f"{look(looks)}.")
    if row["placebo"] and row["placebo"].get("low") is not None:
        parts.append(f"Against its placebo: {interval(row['placebo'])}.")
    if not row["has_placebo"]:
        parts.append("No placebo of it exists: its control is the baseline at other learning rates.")
    parts.append(deceleration(row, curve))
    if row["beyond_lr_decay"] is False and row["word"] in GAINS:
        parts.append("Not shown beyond LR decay: with cosine it is not below cosine alone.")
    if (cosine := row["beyond_cosine"]) and cosine["unasked"] and row["word"] in GAINS:
        parts.append(f"Whether it acts beyond LR decay is not asked: {cosine['unasked']}.")
    for name, sizes in row["sizes_left_out"].items():
        if sizes:
            what = "" if name == row["arm"] else f" against {name}"
            parts.append(f"Fewer than two pairs{what}, so left out: size {', '.join(sizes)}.")
    if row["diverged"]["trials"]:
        lost = row["diverged"]
        parts.append(f"{lost['trials']} of its {lost['of']} trials diverged and are in none of these numbers.")
    if row["word"] != "no effect found":
        parts.append(f"Smallest effect this study could have seen: {smallest(row)}.")
    return {
        "arm": row["arm"],
        "against": row["against"],
        "word": row["word"],
        "exploratory": row["exploratory"],
        "beyond_lr_decay": row["beyond_lr_decay"],
        "sentence": " ".join(parts),
        "smallest_effect": row["smallest_effect"],
        "reasons": row["reasons"],
        "verdict_command": study.verdict_command if row["exploratory"] else None,
    }


def look(looks: Looks) -> str:
    """At which look a study stands, and whether it stopped there."""
    after, seeds = looks["after"], looks["seeds"]
    state = "" if seeds == after[-1] else ": stopped early, decided" if looks["decided"] else ": not decided, goes on"
    if (futile := looks.get("futile")) and state and looks["decided"]:
        state = (
            f": stopped early, for futility ({', '.join(futile)}: an effect that all {after[-1]} seeds find with "
            f"probability {POWER:g} would now be found with less than {FUTILE:g})"
        )
    level = f"{100 * looks['confidence']:.1f} %"
    return (
        f"Look {after.index(seeds) + 1} of {len(after)}, after {seeds} of {count(after[-1], 'seed')}{state}; its "
        f"intervals are of {level}, which is 95 % over all looks"
    )


def looked_before(comparison: Comparison) -> list[str]:
    """The studies that looked at the same arms before, in one sentence; none where there are none."""
    if not (earlier := comparison.get("earlier")):
        return []
    told = [
        f"{count(len(found['seeds']), 'seed')}{' at planned looks' if found['looks'] else ''} ({found['name']})"
        for found in earlier[:MOST_NAMED]
    ]
    more = f" and {len(earlier) - MOST_NAMED} times more" if len(earlier) > MOST_NAMED else ""
    return [f"These arms were compared before, with {', '.join(told)}{more}; the intervals do not account for that."]


def headline(row: ArmComparison) -> str:
    """The word and what qualifies it."""
    word = row["word"]
    if row["primary"] is None:
        return "nothing to compare"
    if word == "no effect found":
        word += f" (smallest effect this study could have seen: {smallest(row)})"
    return qualified(word, row["beyond_lr_decay"])


def qualified(word: str, beyond_lr_decay: bool | None) -> str:
    """The word, with what may be added to a gain."""
    return f"{word}, beyond LR decay" if beyond_lr_decay and word in GAINS else word


def smallest(row: ArmComparison) -> str:
    """The smallest effect; from few seeds with the 95 % range that the spread of as many seeds leaves it."""
    seen, primary = row["smallest_effect"], row["primary"]
    if seen is None or primary is None:
        return "cannot be said from one seed"
    seeds = primary["seeds"]
    if seeds >= VERDICT_SEEDS:
        return f"{percent(seen)} of the loss"
    low, high = (math.sqrt((seeds - 1) / float(chi2.ppf(q, seeds - 1))) * seen for q in (0.975, 0.025))
    return f"{percent(seen)} of the loss, itself uncertain with {seeds} seeds: {percent(low)} to {percent(high)}"


def deceleration(row: ArmComparison, curve: str) -> str:
    """What became of L_d, t_d and r_d, or of the tail slope where no break is identified at enough sizes."""
    averaged = row["deceleration"][curve]["averaged"]
    if averaged["r_d"] is None:
        slope = row["secondary"].get("tail_slope")
        measured = "" if not slope or slope.get("estimate") is None else f"; tail slope {number(slope)}"
        return f"Deceleration: the break is not identified at enough sizes{measured}."
    L_d, t_d, r_d = (averaged[name] for name in ("L_d", "t_d", "r_d"))
    return f"Deceleration: L_d {difference(L_d)}, t_d {difference(t_d)}, r_d {number(r_d)}."


def effect(row: ArmComparison) -> str:
    """What was measured, as a clause."""
    primary = row["primary"]
    if primary is None:
        return "; no pair of trials finished"
    sizes = len(row["by_size"].keys() - set(row["sizes_left_out"][row["arm"]]))
    return (
        f"; held-out loss at T {interval(primary)} against {row['against']}, paired over "
        f"{count(primary['seeds'], 'seed')} at {count(sizes, 'size')}"
    )


def interval(found: Mapping[str, Any]) -> str:
    """`2.9 % lower (95 % interval 2.5 to 3.3 % lower)` of a difference of log loss."""
    if found["low"] is None:
        return f"{change(found['estimate'])} (no interval from one seed)"
    low, high = found["low"], found["high"]
    if low <= 0 <= high:
        return f"{change(found['estimate'])} (95 % interval {signed(low)} to {signed(high)})"
    near, far = sorted((abs(math.expm1(low)), abs(math.expm1(high))))
    way = "lower" if high < 0 else "higher"
    return f"{change(found['estimate'])} (95 % interval {percent(near)} to {percent(far)} {way})"
