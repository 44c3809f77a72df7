"""The report's figures of curves and paired differences: what is drawn, and how to read it. drawing.py draws it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from analysis.inference.pooled_breaks import PooledBreaks
from analysis.inference.rows import ArmComparison
from analysis.numbers import p_value, printable
from analysis.report import curves
from analysis.report.blocks import Axes, Choices, Figure, LegendEntry, Marks, Panel, SizeScale, Stroke
from analysis.report.curves import Line, from_step, in_words
from analysis.report.drawing import style
from analysis.report.row_figure import bar, per_cent, rows_figure
from analysis.study.arm import Arm
from analysis.study.measures import flops_per_token

BAND = f"with 95 % bands (below {curves.BAND_SEEDS} seeds: the range of the seeds)"
# The baseline is a broad pale line, and is drawn first: an arm that follows it lies visibly inside.
BASELINE = {"width": 4.5, "opacity": 0.6}
FIT = "1 2"  # the dash of what is not measured: fits, chance levels


class Figures:
    """Figures of one study. Every arm keeps its colour and line style throughout."""

    def __init__(self, breaks: PooledBreaks):
        self.breaks, self.measures, self.study = breaks, breaks.measures, breaks.study
        self.index = {arm.name: i for i, arm in enumerate(ordered(self.study.arms))}

    @property
    def sizes(self) -> list[str]:
        return [s for s in self.study.sizes if s in self.measures.horizon]

    @property
    def base(self) -> str:
        return self.study.baseline.name

    def legend(self, arms: Sequence[str]) -> tuple[LegendEntry, ...]:
        return tuple(
            LegendEntry(name=a, index=self.index[a], dash=style(self.index[a])[0], arm=True)
            for a in self.index
            if a in arms
        )

    def choices(self) -> Choices:
        """What a reader of the page may choose from."""
        sizes = []
        for size in self.sizes:
            trial = self.measures.example(size)
            assert trial is not None, "a size with a horizon has a finished trial"
            tokens = self.measures.unit[size]
            sizes.append(SizeScale(name=size, tokens=tokens, flops=tokens * flops_per_token(trial)))
        return Choices(arms=self.legend(list(self.index)), sizes=tuple(sizes))

    def stroke(self, arm: str, line: Line, size: str = "", **how: Any) -> Stroke:
        looks = (BASELINE if arm == self.base else {}) | how
        return Stroke(line=line, index=self.index[arm], name=arm, arm=arm, size=size, **looks)

    def marks(self, arm: str, x: Sequence[float], y: Sequence[float], size: str = "", **how: Any) -> Marks:
        return Marks(x=x, y=y, index=self.index[arm], name=arm, arm=arm, size=size, **how)

    def per_size(
        self,
        line: Callable[[str, str], Line | None],
        what: str,
        caption: str,
        *,
        arms: Sequence[str] | None = None,
        metric: str = "",
        **axes: Any,
    ) -> Figure | None:
        """One panel a size with a line an arm; None when no arm has any."""
        panels, shown = [], set()
        for size in self.sizes:
            found = {arm: got for arm in arms or self.index if (got := line(arm, size)) is not None}
            if not found:
                continue
            shown |= set(found)
            panels.append(
                Panel(
                    title=size,
                    alternative=f"{what}, size {size}: {in_words(found)}",
                    strokes=[self.stroke(arm, got, size) for arm, got in found.items()],
                    axes=Axes(**axes),
                    size=size,
                )
            )
        if not panels:
            return None
        legend = self.legend(list(shown))
        return Figure(title=what, panels=tuple(panels), legend=legend, caption=caption, metric=metric)

    def in_order(self, contrasts: Sequence[ArmComparison]) -> list[ArmComparison]:
        """As the legend has the arms."""
        return sorted(contrasts, key=lambda row: self.index[row["arm"]])

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
                strokes.append(self.stroke(arm, line, size))
                if fit := curves.fitted(self.breaks, arm, size, "heldout"):
                    line, pooled = fit
                    x, y, slope = (pooled.ranges()[name].mean for name in ("t_d", "L_d", "r_d"))
                    if arm == self.base:
                        strokes.append(Stroke(line=line, index=0, arm=arm, size=size, dash=FIT, band=False))
                    if line.x[0] <= x <= line.x[-1]:
                        note = f"L_d {y:.3f}, t_d {x:.0f}, r_d {slope:.4f}" + ("" if pooled.identified else NOT_PLACED)
                        how: dict[str, Any] = {"shape": "D", "filled": pooled.identified, "note": note}
                        marks.append(self.marks(arm, [x], [y], size, **how))
            if found:
                text = f"Held-out loss over steps, log-log, size {size}: {in_words(found)}"
                axes = Axes(log_y=True, y_label="held-out loss (nats per token)")
                panels.append(Panel(title=size, alternative=text, strokes=strokes, marks=marks, axes=axes, size=size))
        if not panels:
            return None
        return Figure(
            title="Held-out loss",
            metric="heldout_loss",
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
            strokes.append(Stroke(line=loss, index=i, name=size, size=size, width=1.6, dash="", opacity=0.7))
            legend.append(LegendEntry(name=size, index=i))
            if fit := curves.fitted(self.breaks, self.base, size, "training"):
                line, found = fit
                x, y, slope = (found.ranges()[name].mean for name in ("t_d", "L_d", "r_d"))
                note = f"L_d {y:.3f}, t_d {x:.0f}, r_d {slope:.4f}"
                strokes.append(Stroke(line=line, index=i, size=size, dash=FIT, band=False))
                how: dict[str, Any] = {"shape": "D", "filled": found.identified, "note": note}
                marks.append(Marks(x=[x], y=[y], index=i, name=size, size=size, **how))
                words.append(f"{size}: {note}")
        if not strokes:
            return None
        drawn = Panel(
            title="",
            alternative="Training loss of the baseline over steps, log-log. " + "; ".join(words),
            strokes=strokes,
            marks=marks,
            axes=Axes(log_y=True, y_label="training loss (nats per token)"),
        )
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
        axes |= {"metric": key}
        return self.per_size(lambda arm, size: curves.instrument(self.measures, arm, size, key), what, caption, **axes)

    def forest(self, contrasts: Sequence[ArmComparison], declared: Sequence[ArmComparison] = ()) -> Figure | None:
        """Paired differences by arm and size, and over all sizes: to baseline, then those that the study declares."""
        rows, groups, words = [], [], []
        for row in (*self.in_order(contrasts), *self.in_order(declared)):
            against = f" against {printable(row['against'], 20)}" if row["against"] != self.base else ""
            name = printable(row["arm"], 26) + against
            places = [(size, found) for size, found in row["by_size"].items()]
            for size, found in [*places, ("", row["primary"])]:
                if found is None:
                    continue
                rows.append(f"{name}  {printable(size, 12) or 'all sizes'}")
                how: dict[str, Any] = {"shape": "o" if size else "D", "filled": not size, **bar(found, per_cent)}
                how["note"] = against.strip()
                groups.append(self.marks(row["arm"], [per_cent(found["estimate"])], [len(rows) - 1], size, **how))
            if row["primary"]:
                words.append(f"{row['arm']}{against} {per_cent(row['primary']['estimate']):+.2f} %")
        if not rows:
            return None
        more = " Rows that say against what are contrasts which the study declares beside those to the baseline."
        return rows_figure(
            "Held-out loss at T, arm against baseline",
            rows,
            groups,
            f"Paired differences to baseline, or to the arm that is named: {'; '.join(words)}",
            x_label="paired difference (%)",
            caption="Paired difference of held-out loss at T to the baseline, with its 95 % t interval over seeds: "
            "open circles by size, diamonds averaged over sizes (the primary contrast). Left of the line: better."
            + more
            * bool(declared),
        )

    def secondary(self, contrasts: Sequence[ArmComparison], names: Mapping[str, str]) -> Figure | None:
        """Paired differences of slopes, breaks and instruments over all sizes: a panel a measure, a row an arm."""
        contrasts = self.in_order(contrasts)
        arms = [row["arm"] for row in contrasts]
        rows = [printable(arm, 20) for arm in arms]
        panels = []
        for key, title in names.items():
            found = [(i, row["secondary"].get(key)) for i, row in enumerate(contrasts)]
            there = [(i, c) for i, c in found if c and c.get("estimate") is not None]
            if not there:
                continue
            marks = [
                self.marks(
                    arms[i],
                    [c["estimate"]],
                    [i],
                    filled=c["p_holm"] is not None and c["p_holm"] < 0.05,
                    note=f"p {p_value(c['p'])}, after Holm {p_value(c['p_holm'])}",
                    **bar(c, float),
                )
                for i, c in there
            ]
            words = "; ".join(f"{arms[i]} {c['estimate']:+.3g}, p (Holm) {p_value(c['p_holm'])}" for i, c in there)
            look: dict[str, Any] = {
                "rows": rows,
                "zero": 0.0,
                "log_x": False,
                "time": False,
                "x_label": "arm − baseline",
            }
            extent = (4.3, 1.1 + 0.24 * len(rows))
            panels.append(
                Panel(title=title, alternative=f"{title}: {words}", marks=marks, axes=Axes(**look, extent=extent))
            )
        if not panels:
            return None
        return Figure(
            title="Secondary measures, arm against baseline",
            panels=tuple(panels),
            caption="Paired differences averaged over sizes, with 95 % t intervals over seeds (not corrected for their "
            "number). Filled: still below .05 after Holm's correction over the measures of the arm. Less zero-sum "
            "learning is a lower D; less deceleration is a lower L_d, a higher r_d, a higher tail slope. A break has "
            "a point only where it is identified at enough sizes.",
        )

    def metrics(self) -> list[Figure]:
        """What the interventions themselves recorded: one figure a method, with its placebo; one panel a number."""
        methods: dict[str, dict[str, list[str]]] = {}
        arms = {arm.name: arm for arm in self.study.arms}
        for name in self.index:
            first = next(iter(self.study.of(name)), None)
            summary = self.measures.steps(first) if first else None
            method = arms[name].of or name
            for key in summary.metrics if summary else ():
                methods.setdefault(method, {}).setdefault(key, []).append(name)
        return [figure for method, keys in methods.items() if (figure := self._metrics(printable(method), keys))]

    def _metrics(self, method: str, keys: Mapping[str, Sequence[str]]) -> Figure | None:
        panels, shown = [], set()
        for key, arms in keys.items():
            strokes, words = [], {}
            for arm in arms:
                for place, size in enumerate(self.sizes, 1):
                    line = curves.metric(self.measures, arm, size, key)
                    if line is not None:
                        share = place / len(self.sizes)
                        how: dict[str, Any] = {
                            "width": 0.6 + 1.4 * share,
                            "opacity": 0.4 + 0.6 * share,
                            "band": share == 1,
                        }
                        strokes.append(self.stroke(arm, line, size, **how))
                        words[f"{arm} {size}"] = line
                        shown.add(arm)
            if strokes:
                name = key.partition("/")[2] or key
                panels.append(Panel(title=name, alternative=f"{key} over steps: {in_words(words)}", strokes=strokes))
        if not panels:
            return None
        sizes = ", ".join(self.sizes)
        return Figure(
            title=f"What {method} reported",
            panels=tuple(panels),
            legend=self.legend(list(shown)),
            caption=f"Each number that {method} recorded at every step, in bins of equal width in log t; means over "
            f"seeds, at the largest size {BAND}. From thin and pale to strong: sizes {sizes}. An arm whose numbers do "
            "not differ from its placebo's does no more than the placebo.",
        )


NOT_PLACED = " (the data do not place the break)"


def ordered(arms: Sequence[Arm]) -> list[Arm]:
    """Baseline first, then what was asked about, placebos, controls: colours go in this order."""
    rank = {"baseline": 0, "arm": 1, "placebo": 2, "control": 3}
    return sorted(arms, key=lambda arm: rank.get(arm.role, 4))
