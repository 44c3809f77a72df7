"""How the arms were tuned before the comparison: what it cost, and each point of a search with what it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.inference.rows import Comparison
from analysis.numbers import MISSING, count, minus, printable
from analysis.report.blocks import Axes, Block, Figure, Marks, Panel, Table, Text
from analysis.report.curves import Line
from analysis.report.figures import Figures
from analysis.report.row_figure import per_cent
from analysis.study.tuning import COMPLEMENT, cut_at, searched, setting_of


def tuning(figures: Figures, comparison: Comparison) -> list[Block | None]:
    """Nothing where the arms were not tuned."""
    found = comparison["tuning"]
    if not found:
        return []
    seeds = ", ".join(map(str, found["seeds"]))
    cost = f"{found['trials']} trials, {found['train_seconds']:.0f} s of training (study {found['study']})."
    if "arms" not in found:
        text = f"The learning rates were tuned before, at each size, on seeds {seeds}: {cost}"
        return [Text(text=text), over_rates(figures, found)]
    text = (
        f"Settings and learning rate of each arm were searched before by Optuna, {found['points']} points an arm at "
        f"{found['size']}, on seeds {seeds}: {cost} Each arm trains with the best of its points; at other sizes the "
        "factor on the rate is the same. A placebo and a combination have their arm's."
    )
    if halving := found.get("halving"):
        text += " " + halved(halving)
    slices = [search_slices(figures, arm) for arm in found["arms"]]
    return [Text(text=text), best(found), *slices, importances(found), *(points(arm) for arm in found["arms"])]


def over_rates(figures: Figures, found: Mapping[str, Any]) -> Figure | None:
    """The loss at T of each tuned arm over the rates that it was given; None where the study says no losses."""
    panels = []
    known: Mapping[str, Any] = {arm: by for arm, by in found.get("log_loss", {}).items() if arm in figures.index}
    for size in figures.sizes if figures.base in known else []:
        plain = known[figures.base].get(size, {}).get("1")
        if plain is None:
            continue
        strokes, marks, words = [], [], []
        for arm, by_size in known.items():
            points = sorted((float(f), loss) for f, loss in by_size.get(size, {}).items() if loss is not None)
            if not points:
                continue
            x = np.array([factor for factor, _ in points])
            y = 100 * np.expm1(np.array([loss for _, loss in points]) - plain)
            best = int(y.argmin())
            strokes.append(figures.stroke(arm, Line(x=x, y=y), size))
            marks.append(figures.marks(arm, [x[best]], [y[best]], size, note="its rate in the comparison"))
            words.append(f"{arm}: {y[best]:+.2f} % at {x[best]:.3g}")
        axes = Axes(time=False, x_label="rate, as a factor on the preset's", y_label="loss at T (%)", zero=0.0)
        text = f"Loss at T over the learning rate, size {size}; the lowest of {'; '.join(words)}"
        panels.append(Panel(title=size, alternative=text, strokes=strokes, marks=marks, axes=axes, size=size))
    if not panels:
        return None
    return Figure(
        title="Loss at T over the learning rate",
        panels=tuple(panels),
        legend=figures.legend(list(known)),
        caption="Geometric mean of the held-out loss at T over the tuning seeds, in per cent of the baseline's at the "
        "preset's rate. Dots: the rate with which each arm was compared. Arms that are not here take the baseline's, "
        "placebos that of their arm. A rate at which a trial diverged is left out.",
    )


def halved(halving: Mapping[str, Any]) -> str:
    """What successive halving did to a search."""
    trained, of = halving["steps_trained"], halving["steps_in_all"]
    rungs, seen = (" and ".join(map(str, halving[key])) for key in ("rungs", "measured"))
    return (
        f"{count(halving['cut'], 'point')} {'was' if halving['cut'] == 1 else 'were'} cut at steps {rungs} (successive "
        f"halving), by the held-out losses of steps {seen}: {trained} of {of} steps were trained. What is slow at "
        "first may have been cut."
    )


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
        (arm["arm"], setting_of(name), arm["ranges"][name], f"{share:.2f}")
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


def search_slices(figures: Figures, arm: Mapping[str, Any]) -> Figure | None:
    """The value of each point of one arm over each setting that was searched: one panel a setting."""
    known = [point for point in arm["points"] if point["value"] is not None]
    chosen = arm["best"]["point"]
    panels = [panel for name in arm["ranges"] if (panel := search_slice(figures, arm, name, known))]
    if not panels:
        return None
    cut = sum(point["state"] == "cut" for point in arm["points"])
    lost = len(arm["points"]) - len(known) - cut
    return Figure(
        title=f"Points of {printable(arm['arm'])} over each searched setting",
        panels=tuple(panels),
        caption="Each mark is a point of the search: mean paired difference in log held-out loss to the untuned "
        f"baseline over the tuning seeds, with its standard error. Square: point 0, the arm as it is. Filled: point "
        f"{chosen}, with which the arm was compared. Lower is better. The other settings vary from mark to mark, so "
        "a slope that stands above their scatter is the setting's own; a best value at an end of its range says that "
        "the range was too narrow."
        + (f" Left out: {count(lost, 'point')} without a value." if lost else "")
        + (f" Cut early, and left out: {count(cut, 'point')}." if cut else ""),
    )


def search_slice(
    figures: Figures, arm: Mapping[str, Any], name: str, known: Sequence[Mapping[str, Any]]
) -> Panel | None:
    """The points over one setting, along x where it is a number, else a row a choice; None where no point says it."""
    placed = [(setting_at(point, arm, name), point) for point in known]
    placed = [(at, point) for at, point in placed if at is not None]
    if not placed:
        return None
    choices = sorted({str(at) for at, _ in placed}) if any(isinstance(at, str | bool) for at, _ in placed) else None
    groups: list[Marks] = []
    for at, point in placed:
        mean, se = point["value"], point["se"] or 0.0
        low, mid, high = ([per_cent(mean + k * se)] for k in (-1, 0, 1))
        x, y = ([float(at)], mid) if choices is None else (mid, [float(choices.index(str(at)))])
        how: dict[str, Any] = {
            "low": low,
            "high": high,
            "upright": choices is None,
            "shape": "o" if point["point"] else "s",
            "filled": point["point"] == arm["best"]["point"],
            "note": f"point {point['point']}: rate × {point['rate']:.3g}, {settings(point)}",
        }
        # In a join of studies the arm may have another name.
        index = figures.index.get(arm["arm"], 1)
        groups.append(Marks(x=x, y=y, index=index, name=arm["arm"], arm=arm["arm"], **how))
    best = min(placed, key=lambda pair: pair[1]["value"])
    told, unit = f"{name.replace(COMPLEMENT, '1 − ')}{' ×' if name == 'rate' else ''}", "log loss, difference (%)"
    look = {"log_x": "log scale" in arm["ranges"][name]} if choices is None else {"log_x": False, "rows": choices}
    axes = Axes(
        time=False,
        x_label=told if choices is None else unit,
        y_label=unit if choices is None else "",
        zero=0.0,
        **look,
    )
    words = f"{told} of {arm['arm']}: {len(placed)} points, the lowest {per_cent(best[1]['value']):+.2f} % at {best[0]}"
    return Panel(title=told, alternative=words, marks=groups, axes=axes, arm=arm["arm"])


def setting_at(point: Mapping[str, Any], arm: Mapping[str, Any], name: str) -> Any:
    """The setting `name` of a point, as it was searched; of point 0 that of the arm as it is. None where not known."""
    if name == "rate":
        return point["rate"]
    key = setting_of(name)
    method, _, setting = key.partition(".")
    value = point["settings"].get(method, {}).get(setting, arm.get("start", {}).get(key))
    return 1 - value if value is not None and name != key else value


def points(arm: Mapping[str, Any]) -> Table:
    """Every point of one arm, the best first."""
    ordered = sorted(arm["points"], key=lambda p: (p["value"] is None, p["value"], p["point"]))
    return Table(
        columns=("point", "rate ×", "settings", "log loss against the untuned baseline"),
        rows=tuple((str(p["point"]), f"{p['rate']:.3g}", settings(p), value(p)) for p in ordered),
        folded=f"Points of {arm['arm']}",
        caption=f"Searched: {searched(arm['ranges'])}. Point 0 is the arm as it is. Mean paired difference at T and "
        "its standard error over the tuning seeds.",
    )


def settings(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{m}.{k}={v}" for m, of in point["settings"].items() for k, v in of.items()) or MISSING


def value(point: Mapping[str, Any]) -> str:
    """The value with its standard error, or why there is none; of a point that was cut its value there."""
    if point["state"] == "cut":
        return minus(f"cut {cut_at(point['rungs'])}")
    if point["value"] is None:
        return f"{point['state']}: {point['why']}"
    return minus(f"{point['value']:+.4f}") + (f" ± {point['se']:.4f}" if point["se"] else "")
