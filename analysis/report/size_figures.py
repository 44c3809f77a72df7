"""The report's figures over sizes, beside the published models, and of cost: what is drawn, and how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.inference.rows import Comparison
from analysis.numbers import difference, printable
from analysis.report.blocks import Axes, Figure, LegendEntry, Marks, Panel, Stroke
from analysis.report.curves import Line
from analysis.report.figures import FIT, Figures
from analysis.report.row_figure import bar, per_cent, rows_figure

# The models of the zero-sum learning paper (arXiv 2506.05447): non-embedding parameters 5.5 L d² of its configurations,
# and L_d, t_d, r_d of its released fits to the training loss (repeated by tests/oracles/test_fit.py).
PUBLISHED = {
    "14M": (1_441_792, 4.0501, 5877, 0.012517),
    "37M": (11_534_336, 3.6016, 5907, 0.016341),
    "78M": (38_928_384, 3.3807, 5928, 0.019740),
    "144M": (92_274_688, 3.2459, 6074, 0.023015),
    "285M": (207_618_048, 3.1444, 5264, 0.025043),
    "472M": (369_098_752, 3.1562, 4644, 0.034858),
}
PUBLISHED_NAME = "published models"
NAMES = {
    "L_d": "L_d (nats per token)",
    "t_d": "t_d (steps)",
    "r_d": "r_d",
    "heldout_loss": "held-out loss at T (nats per token)",
}


def over_sizes(figures: Figures, comparison: Comparison) -> Figure | None:
    """L_d, t_d, r_d and the loss of each arm over non-embedding parameters, before the published models."""
    n = {s["size"]: s["parameters"]["non_embedding"] for s in comparison["sizes"] if s["parameters"]}
    cells = {(c["arm"], c["size"]): c for c in comparison["cells"]}
    panels, backdrop = [], False
    for at, (key, label) in enumerate(NAMES.items(), 1):
        strokes, marks, words = [], [], []
        if key != "heldout_loss":
            line = Line(x=np.array([p[0] for p in PUBLISHED.values()]), y=np.array([p[at] for p in PUBLISHED.values()]))
            strokes.append(Stroke(line=line, index=0, dash=FIT, width=1.2))
            marks += [
                Marks(x=[p[0]], y=[p[at]], index=0, name=f"published {name}", shape="s", filled=False)
                for name, p in PUBLISHED.items()
            ]
        for arm in figures.index:
            points = [(size, n[size], _value(cells[arm, size], key)) for size in figures.sizes if size in n]
            there = [(size, x, found) for size, x, found in points if found]
            if not there:
                continue
            path = Line(x=np.array([x for _, x, _ in there]), y=np.array([f["mean"] for _, _, f in there]))
            strokes.append(figures.stroke(arm, path))
            for size, x, found in there:
                how = {"filled": found.get("identified", True), "note": size, **bar(found, float)}
                marks.append(figures.marks(arm, [x], [found["mean"]], upright=True, **how))
            words.append(f"{arm}: " + ", ".join(f"{f['mean']:.3g} at {size}" for size, _, f in there))
        if words:
            backdrop = backdrop or key != "heldout_loss"
            heights = [y for drawn in marks for y in drawn.y]
            low, high = min(heights), max(heights)  # long intervals of few seeds are cut off
            pad = 0.3 * (high - low)
            ends = (low - pad, high + pad) if key == "r_d" else (low / 1.15, high * 1.15)
            axes = Axes(x_label="non-embedding parameters", time=False, log_y=key != "r_d", y_range=ends)
            panels.append(
                Panel(title=label, alternative=f"{label} over sizes. {'; '.join(words)}", strokes=strokes, marks=marks,
                      axes=axes)
            )  # fmt: skip
    if not panels or len(figures.sizes) < 2:
        return None
    published = (LegendEntry(name=PUBLISHED_NAME, index=0, dash=FIT),) if backdrop else ()
    return Figure(
        title="L_d, t_d, r_d and loss over sizes",
        panels=tuple(panels),
        legend=(*figures.legend(list(figures.index)), *published),
        caption="Means over seeds with 95 % intervals; open points: the data do not place the break. Dotted with "
        "squares: the six models of the zero-sum learning paper (arXiv 2506.05447, released fits), trained on other "
        "text with another tokenizer and 524,288 tokens a step: the way they go with scale can be compared, their "
        "height cannot. What scale does: L_d falls and r_d rises. An arm that does what scale does lies, at the same "
        "size, as high as the baseline further right.",
    )


def _value(cell: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    """The measure, where a panel with a logarithmic axis can show it."""
    found = cell[key]
    return found if found and (key == "r_d" or found["mean"] > 0) else None


def gains(figures: Figures, comparison: Comparison) -> Figure | None:
    """Scale-equivalent gains, a row an arm and size."""
    rows, groups, words = [], [], []
    for row in figures.in_order(comparison["contrasts"]):
        for size, found in row["scale_equivalent_gain"].items():
            if "refused" in found or not 0 < found["low"] <= found["high"] < 1e12:
                continue
            rows.append(f"{printable(row['arm'], 26)}  {printable(size, 12)}")
            note = "extrapolated" if found["extrapolated"] else ""
            how = {"filled": not found["extrapolated"], "note": note, **bar(found, float)}
            groups.append(figures.marks(row["arm"], [found["gain"]], [len(rows) - 1], size, **how))
            words.append(f"{row['arm']} at {size}: {found['gain']:.2f} ×")
    if not rows:
        return None
    return rows_figure(
        "Scale-equivalent gain",
        rows,
        groups,
        f"Scale-equivalent gain. {'; '.join(words)}",
        x_label="factor on the parameters",
        zero=1.0,
        log_x=True,
        caption="The factor by which the baseline's non-embedding parameters would have to grow for the arm's loss at "
        "T: exp(−Δ log L / β), β the slope of the baseline's −log L_T in log N; 95 % interval over both (Fieller). "
        "Right of the line: the arm is worth so much scale. Open: beyond the sizes trained.",
    )


def compute_matched(figures: Figures, comparison: Comparison) -> Figure | None:
    """The primary contrast at equal steps and at equal compute, a row an arm."""
    rows: list[str] = []
    groups, words = [], []
    for row in figures.in_order(comparison["contrasts"]):
        both = [(row["primary"], -0.15, True), (row["equal_compute"], 0.15, False)]
        if not all(found and found.get("estimate") is not None for found, _, _ in both):
            continue
        rows.append(printable(row["arm"], 26))
        for found, shift, steps in both:
            assert found is not None
            note = "equal steps" if steps else "equal compute"
            how = {"filled": steps, "note": note, **bar(found, per_cent)}
            y: Sequence[float] = [len(rows) - 1 + shift]
            groups.append(figures.marks(row["arm"], [per_cent(found["estimate"])], y, **how))
        words.append(f"{row['arm']}: {difference(row['primary'])}, at equal compute {difference(row['equal_compute'])}")
    if not rows:
        return None
    return rows_figure(
        "Held-out loss at equal steps and at equal compute",
        rows,
        groups,
        f"Paired differences to baseline. {'; '.join(words)}",
        x_label="difference to the baseline (%)",
        caption="Filled: at equal steps (the primary contrast). Open: at equal compute, where the dearer arm's curve "
        "is read when the other's time of training is up, that of a reference model included. 95 % intervals. "
        "Left of the line: better. An arm whose open point lies right of the line costs more than it gains.",
    )
