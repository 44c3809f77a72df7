"""The report's part on deceleration: L_d, t_d and r_d from pooled fits, their differences, and what these come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.inference.pooled_breaks import BREAK_MEASURES, CURVES, PooledBreaks
from analysis.inference.rows import Comparison
from analysis.numbers import MISSING, difference, minus, number, printable
from analysis.report.blocks import Axes, Figure, Panel, Table
from analysis.report.curves import Line
from analysis.report.figures import Figures
from analysis.report.headline import CURVE_NAMES, PARENTHESES, measure
from zslx.deceleration.pooled_fit import CUT_SHARES


def pooled_table(comparison: Comparison) -> Table:
    """L_d, t_d, r_d and L̂_T of each arm and size, on the declared curve and on the other one."""
    declared = comparison["protocol"]["curve"]
    rows = []
    for cell in comparison["cells"]:
        for kind in (declared, *(k for k in CURVES if k != declared)):
            found = cell["fits"][kind]
            numbers = [measure(found, n) for n in (*BREAK_MEASURES, "L_T_hat")]
            rows.append((cell["size"], cell["arm"], CURVE_NAMES[kind], *numbers, *_fitted(found["break"])))
    return Table(
        columns=("size", "arm", "curve", "L_d", "t_d", "r_d", "L̂_T", "early cut", "status of the break"),
        rows=tuple(rows),
        heads=2,
        caption="Fits of the mean log loss of all seeds, with one break, after the early cut: the end of the early "
        f"phase in the baseline's curve. This study declares the {CURVE_NAMES[declared]}. Intervals are over seeds, "
        f"95 %. {PARENTHESES}",
    )


def _fitted(at: Mapping[str, Any] | None) -> tuple[str, str]:
    """(early cut, status) of a pooled fit."""
    return (MISSING, MISSING) if at is None else (f"{at['cut']:.0f}", at["status"])


def difference_table(comparison: Comparison) -> Table | None:
    """Paired differences to the baseline of L_d, t_d, r_d and L̂_T."""
    rows = []
    for row in comparison["contrasts"]:
        for size, found in row["deceleration"][comparison["protocol"]["curve"]]["by_size"].items():
            if found is not None:
                rows.append((size, row["arm"], *difference_texts(found)))
    if not rows:
        return None
    return Table(
        columns=("size", "arm", "L_d", "t_d", "r_d", "L̂_T"),
        rows=tuple(sorted(rows, key=lambda r: [s["size"] for s in comparison["sizes"]].index(r[0]))),
        heads=2,
        caption="The arm less the baseline, paired by seed: per cent of L_d, t_d and L̂_T; r_d as it is. Intervals "
        f"are over seeds, 95 %. {PARENTHESES}",
    )


def difference_texts(found: Mapping[str, Any]) -> tuple[str, ...]:
    texts = [number(found[n]) if n == "r_d" else difference(found[n]) for n in (*BREAK_MEASURES, "L_T_hat")]
    return _marked(found, texts)


def _marked(found: Mapping[str, Any], texts: Sequence[str]) -> tuple[str, ...]:
    """The texts, in parentheses where the break is not identified."""
    return tuple(text if found["identified"] else f"({text})" for text in texts)


def _parts(found: Mapping[str, Any]) -> tuple[str, ...]:
    """What L_d, t_d and r_d add, and the difference of L̂_T that they come to."""
    return (*_marked(found, [difference(found["parts"][n]) for n in BREAK_MEASURES]), difference(found["L_T_hat"]))


def parts_table(comparison: Comparison) -> Table | None:
    """What ΔL_d, Δt_d and Δr_d add to the gain in L̂_T, beside what a larger baseline gets from each."""
    rows = []
    for row in comparison["contrasts"]:
        for size, found in row["deceleration"][comparison["protocol"]["curve"]]["by_size"].items():
            if found is not None:
                rows.append((row["arm"], size, *_parts(found)))
    for scale in comparison["scale_parts"]:
        rows.append(("scale: the baseline", f"{scale['from']} → {scale['to']}", *_parts(scale)))
    if not rows:
        return None
    return Table(
        columns=("arm", "size", "by L_d", "by t_d", "by r_d", "together: L̂_T"),
        rows=tuple(rows),
        heads=1,
        caption="How a difference of the last loss comes about: L̂_T = L_d (t_d/T)^{r_d}, so that Δ log L̂_T is the sum "
        "of a part by L_d, one by t_d and one by r_d. Below 0: better. The last rows say what the baseline gets from "
        "more parameters: an arm that helps as scale does has parts of the same signs. "
        f"{PARENTHESES}",
    )


def cut_table(breaks: PooledBreaks, comparison: Comparison) -> Table | None:
    """t_d, L_d and r_d of the pooled fits at half, once and twice the early cut."""
    rows: list[tuple[str, ...]] = []
    order = ("L_d", "t_d", "r_d")
    for size in breaks.study.sizes:
        for arm in breaks.study.arms:
            found = breaks.fit(arm.name, size)
            if found is None:
                continue
            cells = []
            for share in CUT_SHARES:
                at = found.at_cuts[share]
                cells += [MISSING] * 3 if at is None else [
                    f"{math.exp(at[0]):.3f}", f"{math.exp(min(at[1], 50)):.0f}", minus(f"{at[2]:.4f}")
                ]  # fmt: skip
            rows.append((size, arm.name, *cells))
    if not rows:
        return None
    return Table(
        columns=("size", "arm", *(f"{name} at {share:g} × the cut" for share in CUT_SHARES for name in order)),
        rows=tuple(rows),
        heads=2,
        folded="L_d, t_d and r_d at other early cuts",
        caption="The same fits with half and with twice as many first steps left out. A t_d that moves with the cut is "
        "smooth curvature read as a break. A claim needs the same sign of the difference at every cut.",
    )


def plane(figures: Figures, comparison: Comparison) -> Figure | None:
    """Arms in the plane of L_d and r_d, joined to the baseline of their size; the baseline's path over sizes."""
    cells = {(c["arm"], c["size"]): c for c in comparison["cells"]}
    points = {key: (c["L_d"]["mean"], c["r_d"]["mean"]) for key, c in cells.items() if c["L_d"] and c["r_d"]}
    base = [(s, points[figures.base, s]) for s in figures.sizes if (figures.base, s) in points]
    if not base:
        return None
    strokes = [figures.stroke(figures.base, _path([p for _, p in base]))]
    marks = [figures.marks(figures.base, [p[0]], [p[1]], size) for size, p in base]
    for arm in figures.index:
        for size, start in base:
            if arm != figures.base and (arm, size) in points:
                end = points[arm, size]
                strokes.append(figures.stroke(arm, _path([start, end]), size))
                marks.append(figures.marks(arm, [end[0]], [end[1]], size, filled=False))
    words = "; ".join(f"{printable(s, 12)}: L_d {p[0]:.3f}, r_d {p[1]:.4f}" for s, p in base)
    drawn = Panel(
        title="",
        alternative=f"Baseline in the plane of L_d and r_d: {words}",
        strokes=strokes,
        marks=marks,
        axes=Axes(
            time=False,
            log_x=False,
            x_label="L_d (nats per token; to the left is better)",
            y_label="r_d (higher is better)",
            extent=(5.6, 3.8),
        ),
    )
    return Figure(
        title="Where the arms move L_d and r_d",
        panels=(drawn,),
        legend=figures.legend(list(figures.index)),
        caption="Filled points: the baseline, one a size, joined in the order of the sizes: the way that scale takes. "
        "Open points: an arm, joined to the baseline of the same size. An arm that helps as scale does moves along the "
        "way of scale, to the left and up. An arm that moves along the line of rate:0.5 and rate:2, the baseline at "
        "other learning rates, does no more than a learning rate.",
    )


def _path(points: Sequence[tuple[float, float]]) -> Line:
    x, y = np.array(points).T
    return Line(x=x, y=y)
