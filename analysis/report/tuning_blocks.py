"""How the arms were tuned before the comparison: what it cost, and each point of a search with what it came to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.inference.rows import Comparison
from analysis.numbers import MISSING, minus
from analysis.report.blocks import Block, Table, Text


def tuning(comparison: Comparison) -> list[Block | None]:
    """Nothing where the arms were not tuned."""
    found = comparison["tuning"]
    if not found:
        return []
    seeds = ", ".join(map(str, found["seeds"]))
    cost = f"{found['trials']} trials, {found['train_seconds']:.0f} s of training (study {found['study']})."
    if "arms" not in found:
        return [Text(text=f"The learning rates were tuned before, at each size, on seeds {seeds}: {cost}")]
    text = (
        f"Settings and learning rate of each arm were searched before by Optuna, {found['points']} points an arm at "
        f"{found['size']}, on seeds {seeds}: {cost} Each arm trains with the best of its points; at other sizes the "
        "factor on the rate is the same. A placebo and a combination have their arm's."
    )
    return [Text(text=text), best(found), importances(found), *(points(arm) for arm in found["arms"])]


def best(found: Mapping[str, Any]) -> Table:
    """The best point of each arm."""
    rows = []
    for arm in found["arms"]:
        point = arm["points"][arm["best"]["point"]]
        rows.append((arm["arm"], str(point["point"]), f"{point['rate']:.3g}", settings(point), value(point)))
    return Table(
        columns=("arm", "best point", "rate ×", "settings", "log loss against the untuned baseline"),
        rows=tuple(rows),
        caption="Best of as many points for every arm. The best of several is better than it will be on other seeds; "
        "the comparison above is on fresh ones.",
    )


def importances(found: Mapping[str, Any]) -> Table | None:
    """How much each of several settings mattered; None where no search has enough points to tell."""
    rows = [
        (arm["arm"], name, arm["ranges"][name], f"{share:.2f}")
        for arm in found["arms"]
        for name, share in arm["importances"].items()
        if len(arm["importances"]) > 1
    ]
    if not rows:
        return None
    return Table(
        columns=("arm", "setting", "searched", "importance"),
        rows=tuple(rows),
        heads=2,
        caption="Importance: share of a setting in what tells the better points from the others (PED-ANOVA, Watanabe "
        "et al. 2023). With few points it is uncertain itself.",
    )


def points(arm: Mapping[str, Any]) -> Table:
    """Every point of one arm, the best first."""
    ordered = sorted(arm["points"], key=lambda p: (p["value"] is None, p["value"], p["point"]))
    return Table(
        columns=("point", "rate ×", "settings", "log loss against the untuned baseline"),
        rows=tuple((str(p["point"]), f"{p['rate']:.3g}", settings(p), value(p)) for p in ordered),
        folded=f"Points of {arm['arm']}",
        caption="Searched: " + "; ".join(f"{name} {text}" for name, text in arm["ranges"].items()) + ". Point 0 is the "
        "arm as it is. Mean paired difference at T and its standard error over the tuning seeds.",
    )


def settings(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{m}.{k}={v}" for m, of in point["settings"].items() for k, v in of.items()) or MISSING


def value(point: Mapping[str, Any]) -> str:
    """The value with its standard error, or why there is none."""
    if point["value"] is None:
        return f"{point['state']}: {point['why']}"
    return minus(f"{point['value']:+.4f}") + (f" ± {point['se']:.4f}" if point["se"] else "")
