"""The answer in one sentence: the verdict's word, the effect with its interval, and what it was compared with."""

from __future__ import annotations

import math
from typing import Any

from analysis.numbers import change, count, percent, signed
from analysis.study.load import Study

GAINS = ("improves", "mitigates deceleration")


def answer(study: Study, row: dict[str, Any]) -> dict[str, Any]:
    """{arm, word, exploratory, sentence} of one arm's contrasts (analysis/inference/compare.py)."""
    word = headline(row)
    parts = [f"{row['arm']}: {word}{effect(row)}."]
    if row["placebo"] and row["placebo"].get("low") is not None:
        parts.append(f"Against its placebo: {interval(row['placebo'])}.")
    if not row["has_placebo"] and row["word"] == "below baseline, placebo not run":
        parts.append("No placebo of it exists: its control is the baseline with an equally tuned learning rate.")
    if row["beyond_lr_decay"] is False and row["word"] in GAINS:
        parts.append("Not shown beyond LR decay: with cosine it is not below cosine alone.")
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
        "word": row["word"],
        "exploratory": row["exploratory"],
        "beyond_lr_decay": row["beyond_lr_decay"],
        "sentence": " ".join(parts),
        "smallest_effect": row["smallest_effect"],
        "reasons": row["reasons"],
        "verdict_command": study.declaration.get("verdict_command") if row["exploratory"] else None,
    }


def headline(row: dict[str, Any]) -> str:
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


def smallest(row: dict[str, Any]) -> str:
    seen = row["smallest_effect"]
    return "cannot be said from one seed" if seen is None else f"{percent(seen)} of the loss"


def effect(row: dict[str, Any]) -> str:
    """What was measured, as a clause."""
    primary = row["primary"]
    if primary is None:
        return "; no pair of trials finished"
    sizes = len(row["by_size"].keys() - set(row["sizes_left_out"][row["arm"]]))
    return (
        f"; held-out loss at T {interval(primary)} against {row['against']}, paired over "
        f"{count(primary['seeds'], 'seed')} at {count(sizes, 'size')}"
    )


def interval(found: dict[str, Any]) -> str:
    """`2.9 % lower (95 % interval 2.5 to 3.3 % lower)` of a difference of log loss."""
    if found["low"] is None:
        return f"{change(found['estimate'])} (no interval from one seed)"
    low, high = found["low"], found["high"]
    if low <= 0 <= high:
        return f"{change(found['estimate'])} (95 % interval {signed(low)} to {signed(high)})"
    near, far = sorted((abs(math.expm1(low)), abs(math.expm1(high))))
    way = "lower" if high < 0 else "higher"
    return f"{change(found['estimate'])} (95 % interval {percent(near)} to {percent(far)} {way})"
