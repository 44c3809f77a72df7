"""Imported curves in the report: drawn, with their breaks, and tabled. They are in no contrast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.inference.rows import Comparison
from analysis.numbers import plus_minus, printable
from analysis.report.blocks import Axes, Block, Figure, LegendEntry, Marks, Panel, Stroke, Table
from analysis.report.curves import PLACES, Line
from analysis.report.drawing import style
from analysis.report.figures import NOT_PLACED
from analysis.report.headline import measure
from analysis.study.imported import Imported
from zslx.deceleration.binning import bins
from zslx.deceleration.loss_curve import Curve


def imported(curves: Sequence[Imported], comparison: Comparison) -> list[Block]:
    """Nothing where there are none."""
    rows = comparison.get("imported") or []
    if not rows:
        return []
    strokes, marks, legend = [], [], []
    for i, (found, row) in enumerate(zip(curves, rows, strict=True), 1):
        strokes.append(Stroke(line=thinned(found.curve), index=i, name=found.name))
        legend.append(LegendEntry(name=printable(found.name), index=i, dash=style(i)[0]))
        if (x := row["t_d"]) and (y := row["L_d"]) and found.curve.steps[0] <= x["mean"] <= row["T"]:
            placed = bool(x.get("identified"))
            note = f"L_d {y['mean']:.3f}, t_d {x['mean']:.0f}" + ("" if placed else NOT_PLACED)
            how: dict[str, Any] = {"index": i, "name": found.name, "shape": "D", "filled": placed, "note": note}
            marks.append(Marks(x=[x["mean"]], y=[y["mean"]], **how))
    panel = Panel(
        title="",
        alternative="Imported loss curves over their own steps, log-log. " + " ".join(row["sentence"] for row in rows),
        strokes=strokes,
        marks=marks,
        axes=Axes(time=False, log_y=True, y_label="loss (nats per token)"),
    )
    figure = Figure(
        title="Imported loss curves",
        panels=(panel,),
        legend=tuple(legend),
        caption="Runs of other people over their own steps, as they logged them, both axes logarithmic; geometric "
        "means in bins of equal width in log t. Diamonds: (t_d, L_d), filled where the data place the break. They "
        "share neither seeds nor data, perhaps not even the tokenizer, with the arms of this study: heights are not "
        "comparable.",
    )
    return [figure, imported_table(comparison)]


def imported_table(comparison: Comparison) -> Table:
    rows = [
        (
            row["arm"],
            row["word"],
            measure(row, "L_d"),
            measure(row, "t_d"),
            measure(row, "r_d"),
            plus_minus(row["tail_slope"], 4),
            f"{row['T']:,.0f}",
            row["status"],
            row["source"],
        )
        for row in comparison.get("imported") or []
    ]
    return Table(
        columns=("arm", "answer", "L_d", "t_d", "r_d", "tail slope", "last step", "break", "file"),
        rows=tuple(rows),
        caption="The rule of evidence compares trials that share seed, initial weights and data; with an imported "
        "curve nothing is paired, so it has no answer. Intervals are of the fit of one curve, by its own noise; what "
        "another seed would give is not in them. In parentheses: the data do not place the break.",
    )


def thinned(found: Curve) -> Line:
    """The curve as geometric means over bins of equal width in log t."""
    binned = bins(found.steps, np.log(found.losses), count=PLACES)
    return Line(x=np.exp(binned.x), y=np.exp(binned.y))
