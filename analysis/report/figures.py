"""The report's figures: what is drawn, and how to read it. Drawing itself is in analysis/report/drawing.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.inference.pooled_breaks import PooledBreaks
from analysis.inference.rows import ArmComparison
from analysis.numbers import printable
from analysis.report import curves
from analysis.report.blocks import Figure, LegendEntry, Panel
from analysis.report.curves import Line
from analysis.report.drawing import Marks, Stroke, panel, style
from analysis.study.arm import Arm

BAND = f"with 95 % bands (below {curves.BAND_SEEDS} seeds: the range of the seeds)"


class Figures:
    """Figures of one study. Every arm keeps its colour and line style throughout."""

    def __init__(self, breaks: PooledBreaks):
        self.breaks, self.measures, self.study = breaks, breaks.measures, breaks.study
        self.index = {arm.name: i for i, arm in enumerate(ordered(self.study.arms))}
        self._drawn = 0

    @property
    def sizes(self) -> list[str]:
        return [s for s in self.study.sizes if s in self.measures.horizon]

    @property
    def base(self) -> str:
        return self.study.baseline.name

    def legend(self, arms: Sequence[str]) -> tuple[LegendEntry, ...]:
        return tuple(LegendEntry(name=a, index=self.index[a], dash=style(self.index[a])[0]) for a in arms)

    def per_size(
        self,
        line: Callable[[str, str], Line | None],
        what: str,
        caption: str,
        *,
        arms: Sequence[str] | None = None,
        **axes: Any,
    ) -> Figure | None:
        """One panel a size with a line an arm; None when no arm has any."""
        panels, shown = [], set()
        for size in self.sizes:
            found = {arm: got for arm in arms or self.index if (got := line(arm, size)) is not None}
            if not found:
                continue
            shown |= set(found)
            strokes = [self.stroke(arm, got) for arm, got in found.items()]
            panels.append(self.panel(size, strokes, f"{what}, size {size}: {in_words(found)}", **axes))
        if not panels:
            return None
        return Figure(
            title=what, panels=tuple(panels), legend=self.legend([a for a in self.index if a in shown]), caption=caption
        )

    def stroke(self, arm: str, line: Line, **how: Any) -> Stroke:
        return Stroke(line=line, index=self.index[arm], width=2.0 if arm == self.base else 1.6, **how)

    def panel(self, title: str, strokes: Sequence[Stroke], alternative: str, **axes: Any) -> Panel:
        svg = panel(self.next_name(), strokes, title=printable(title, 24), **axes)
        return Panel(svg=svg, title=title, alternative=alternative)

    def next_name(self) -> str:
        """A name that no other drawing of the page has."""
        self._drawn += 1
        return f"f{self._drawn}"

    # The figures, in the order of the report.

    def losses(self) -> Figure | None:
        """Held-out loss in log-log with fits and identified breaks."""
        panels = []
        for size in self.sizes:
            strokes, marks, found = [], [], {}
            for arm in self.index:
                if (line := curves.loss(self.measures, arm, size)) is None:
                    continue
                found[arm] = line
                strokes.append(self.stroke(arm, line))
                if fit := curves.fitted(self.breaks, arm, size, "heldout"):
                    line, pooled = fit
                    x, y = (pooled.ranges()[name].mean for name in ("t_d", "L_d"))
                    if arm == self.base:
                        strokes.append(self.stroke(arm, line, dash="1 2", band=False, opacity=0.9))
                    if line.x[0] <= x <= line.x[-1]:
                        filled = pooled.identified
                        marks.append(Marks(x=[x], y=[y], index=self.index[arm], shape="D", filled=filled))
            if found:
                alternative = f"Held-out loss over steps, log-log, size {size}: {in_words(found)}"
                panels.append(
                    self.panel(
                        size,
                        strokes,
                        alternative,
                        log_y=True,
                        y_label="held-out loss (nats per token)",
                        marks=marks,
                    )
                )
        if not panels:
            return None
        return Figure(
            title="Held-out loss",
            panels=tuple(panels),
            legend=self.legend(list(self.index)),
            caption="Held-out loss over steps, both axes logarithmic: a power law is a straight line, deceleration is "
            "where it bends. Lines: geometric means over seeds, " + BAND + " (often thinner than the line). Dotted: "
            "the fit of the baseline's mean curve after the early cut. Diamonds: (t_d, L_d) of each arm, on the "
            "crossing of the two asymptotes and so below the curve; filled where the data place the break.",
        )

    def over_sizes(self) -> Figure | None:
        """The baseline's training loss at all sizes in one panel, with fits and breaks: the paper's Figure 1."""
        strokes, marks, legend, words = [], [], [], []
        for i, size in enumerate(self.sizes, 1):
            loss = curves.training(self.breaks, self.base, size)
            if loss is None:
                continue
            strokes.append(Stroke(line=loss, index=i, width=1.2, dash="", opacity=0.6))
            legend.append(LegendEntry(name=size, index=i))
            if fit := curves.fitted(self.breaks, self.base, size, "training"):
                line, found = fit
                x, y, slope = (found.ranges()[name].mean for name in ("t_d", "L_d", "r_d"))
                strokes.append(Stroke(line=line, index=i, width=1.6, dash="1 2", band=False))
                marks.append(Marks(x=[x], y=[y], index=i, shape="D", filled=found.identified))
                words.append(f"{size}: L_d {y:.3f}, t_d {x:.0f}, r_d {slope:.4f}")
        if not strokes:
            return None
        text = "Training loss of the baseline over steps, log-log. " + "; ".join(words)
        label = "training loss (nats per token)"
        drawn = self.panel("", strokes, text, log_y=True, y_label=label, marks=marks, size=(6.4, 4.0))
        return Figure(
            title="Training loss of the baseline at all sizes",
            panels=(drawn,),
            legend=tuple(legend),
            caption="Geometric means over seeds, both axes logarithmic. Dotted: the fit after the early cut. Diamonds: "
            "(t_d, L_d), filled where the data place the break. With scale L_d falls and r_d, the slope after the "
            "break, rises.",
        )

    def differences(self) -> Figure | None:
        """Held-out loss relative to the baseline over steps."""
        others = [a for a in self.index if a != self.base]
        return self.per_size(
            lambda arm, size: from_step(curves.difference(self.measures, arm, self.base, size), 10),
            "Held-out loss relative to the baseline",
            "Held-out loss relative to the baseline's at the same step, paired by seed, " + BAND + ", pointwise. "
            "Below the line: better. The right end is one evaluation at T; the primary contrast averages those of the "
            "last eighth of the steps. A line that keeps falling gains on the baseline, one that turns back was only "
            "ahead for a while. From step 10 on.",
            arms=others,
            y_label="difference (%)",
            zero=0.0,
        )

    def slopes(self) -> Figure | None:
        return self.per_size(
            lambda arm, size: curves.slope(self.measures, arm, size),
            "Local slope of the loss curve",
            "Local slope −d log L / d log t in a window of a factor of 2, mean over seeds, " + BAND + ". Its "
            "height is the per cent of loss that one per cent more steps buys; the fall from left to right is the "
            "deceleration itself, without any fit. Higher at the right end: less deceleration.",
            y_label="−d log L / d log t",
        )

    def instrument(self, key: str, what: str, caption: str, **axes: Any) -> Figure | None:
        return self.per_size(lambda arm, size: curves.instrument(self.measures, arm, size, key), what, caption, **axes)

    def forest(self, contrasts: Sequence[ArmComparison]) -> Figure | None:
        """Paired differences to baseline by arm and size, and over all sizes."""
        rows, groups = [], []
        for row in contrasts:
            name = printable(row["arm"], 26)
            places = [(f"{name}  {printable(size, 12)}", found) for size, found in row["by_size"].items()]
            for label, found in [*places, (f"{name}  all sizes", row["primary"])]:
                if found is None:
                    continue
                rows.append(label)
                bounds = (found["low"], found["high"])
                ends = [None if at is None else [100 * math.expm1(at)] for at in bounds]
                groups.append(
                    Marks(
                        x=[100 * math.expm1(found["estimate"])],
                        y=[len(rows) - 1],
                        low=ends[0],
                        high=ends[1],
                        index=self.index[row["arm"]],
                        shape="D" if label.endswith("all sizes") else "o",
                        filled=label.endswith("all sizes"),
                    )
                )
        if not rows:
            return None
        svg = panel(
            self.next_name(), [], marks=groups, rows=rows, zero=0.0, log_x=False,
            x_label="held-out loss at T against the baseline (%)", size=(7.2, 0.9 + 0.26 * len(rows)),
        )  # fmt: skip
        words = "; ".join(
            f"{r['arm']} {100 * math.expm1(r['primary']['estimate']):+.2f} %" for r in contrasts if r["primary"]
        )
        return Figure(
            title="Held-out loss at T, arm against baseline",
            panels=(Panel(svg=svg, title="", alternative=f"Paired differences to baseline: {words}"),),
            caption="Paired difference of held-out loss at T to the baseline, with its 95 % t interval over seeds: "
            "open circles by size, diamonds averaged over sizes (the primary contrast). Left of the line: better.",
            wide=True,
        )

    def metrics(self) -> list[Figure]:
        """What the interventions themselves recorded, one figure a metric; read from the step records."""
        keys: dict[str, list[str]] = {}
        for arm in self.index:
            first = next(iter(self.study.of(arm)), None)
            summary = self.measures.steps(first) if first else None
            for key in summary.metrics if summary else ():
                keys.setdefault(key, []).append(arm)
        found = []
        for key, arms in keys.items():
            figure = self.per_size(
                lambda arm, size, key=key: curves.metric(self.measures, arm, size, key),  # type: ignore[misc]
                key,
                f"{key} over steps, averaged in bins of equal width in log t; mean over seeds, {BAND}.",
                arms=arms,
                y_label=printable(key, 32),
            )
            if figure:
                found.append(figure)
        return found


def ordered(arms: Sequence[Arm]) -> list[Arm]:
    """Baseline first, then what was asked about, placebos, controls: colours go in this order."""
    rank = {"baseline": 0, "arm": 1, "placebo": 2, "control": 3}
    return sorted(arms, key=lambda arm: rank.get(arm.role, 4))


def from_step(line: Line | None, first: float) -> Line | None:
    """The part of a line at t ≥ first."""
    if line is None or not (keep := line.x >= first).any():
        return line
    low, high = (None if v is None else v[keep] for v in (line.low, line.high))
    return Line(x=line.x[keep], y=line.y[keep], low=low, high=high)


def in_words(found: Mapping[str, Line]) -> str:
    """First, lowest and last value of each line, for readers who do not see it."""
    texts = []
    for arm, line in found.items():
        y = line.y[np.isfinite(line.y)]
        if len(y):
            texts.append(
                f"{arm} from {y[0]:.3g} to {y[-1]:.3g} at the last step (range {y.min():.3g} to {y.max():.3g})"
            )
    return "; ".join(texts)
