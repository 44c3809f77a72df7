"""The report's part on the instruments: loss and gradient interference, and the decomposition of the loss."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.numbers import MISSING, minus
from analysis.report import curves
from analysis.report.blocks import Axes, Block, Figure, LegendEntry, Panel, Stroke, Table
from analysis.report.curves import in_words
from analysis.report.drawing import style
from analysis.report.figures import BAND, FIT, Figures, ordered
from analysis.study.measures import Measures, parameters
from zslx.deceleration.scaling_law import ScalingTrend, scaling_trend
from zslx.figure_style import TERMS


def interference(figures: Figures) -> list[Figure]:
    """D and M of one step and from t to 2t."""
    destructive = (
        "1 means that the changes of single tokens' losses cancel in full (zero-sum), 0 that all go one way. "
        "Means over seeds, " + BAND + "."
    )
    found = [
        figures.instrument(
            "dt1_heldout.D",
            "D of one step on held-out text",
            "D(Δℓ) of the run's own update at step t, on held-out text: " + destructive,
            y_label="D, one step",
            y_range=(0.0, 1.02),
        ),
        figures.instrument(
            "dt1_heldout.M",
            "M of one step on held-out text",
            "M(Δℓ): how far single tokens' losses move in one step, up or down. The mean loss moves by M (1 − D).",
            y_label="M, one step (nats)",
            log_y=True,
        ),
        figures.instrument(
            "dtt.D",
            "D from t to 2t on held-out text",
            "D(Δℓ) between step t and 2t, drawn at 2t: the form in which the paper finds that scale lowers D late "
            "in training. " + destructive,
            y_label="D, from t/2 to t",
            y_range=(0.0, 1.02),
        ),
    ]
    return [f for f in found if f is not None]


def plane(figures: Figures) -> Figure | None:
    """D against M of one step over contours of the change of the mean loss."""
    found = {(a, s): curves.plane(figures.measures, a, s, "dt1_heldout") for s in figures.sizes for a in figures.index}
    paths = {key: line for key, line in found.items() if line is not None and len(line.x)}
    if not paths:
        return None
    low = min(line.y.min() for line in paths.values()) / 1.4
    high = max(line.y.max() for line in paths.values()) * 1.4
    levels = 10.0 ** np.arange(np.floor(2 * np.log10(low / 30)) / 2, np.log10(high), 0.5)
    contours = [c for level in levels if (c := curves.equal_change(level, low, high)) is not None]
    grey = [Stroke(line=c, index=0, width=0.8, dash="", band=False, opacity=0.35) for c in contours]
    axes = Axes(
        x_label="D, one step", time=False, log_x=False, y_label="M, one step (nats)", log_y=True, y_range=(low, high)
    )
    panels = []
    for size in figures.sizes:
        here = {arm: paths[arm, size] for arm in figures.index if (arm, size) in paths}
        ends = [figures.marks(arm, [float(line.x[-1])], [float(line.y[-1])], size) for arm, line in here.items()]
        panels.append(
            Panel(
                title=size,
                alternative=f"M against D of one step, size {size}: {in_words(here)}",
                strokes=[*grey, *(figures.stroke(arm, line, size) for arm, line in here.items())],
                marks=ends,
                axes=axes,
                size=size,
            )
        )
    return Figure(
        title="D against M of one step",
        panels=tuple(panels),
        legend=figures.legend([a for a in figures.index if any((a, s) in paths for s in figures.sizes)]),
        caption="Training as a path, from the first step to the dot at T; means over seeds. Thin grey lines: "
        "equal change of the mean loss, |ΔL| = M (1 − D), a factor of √10 from one to the next, smaller to the "
        "right. A path that leaves for the right at the same height stops learning by cancellation (D); one that "
        "sinks, by smaller changes (M).",
    )


def decomposition(figures: Figures) -> list[Block | None]:
    """The three terms of held-out cross-entropy: over steps, and late in training over sizes."""
    terms = {
        "ee": ("Error-entropy", "entropy of the rank of the target token: how far off its place is. This term "
               "is the one that follows the model's size as a power law in the source."),
        "sa": ("Self-alignment", "divergence between the ranks that occur and the probabilities given to them."),
        "conf": ("Confidence", "log of the summed typical probabilities; it is subtracted."),
    }  # fmt: skip
    found = [
        figures.instrument(
            f"decomposition.{key}",
            f"{name} of the held-out loss",
            f"{name}: {what} Means over seeds, {BAND}. Cross-entropy = error-entropy + self-alignment − confidence, "
            "exactly; the terms depend on the number of tokens and the vocabulary.",
            y_label=f"{name.lower()} (nats)",
        )
        for key, (name, what) in terms.items()
    ]
    return [*found, term_trends(figures.measures, figures.sizes)]


def term_trends(measures: Measures, sizes: Sequence[str]) -> Table | None:
    """Each term late in training by arm and size, and its slope over sizes."""
    rows = []
    trained = {trial.size: trial for trial in measures.study.trials if trial.finished}
    n = [parameters(trained[size])["non_embedding"] for size in sizes]
    for arm in ordered(measures.study.arms):
        late = {key: [seed_mean(measures, arm.name, size, f"decomposition.{key}") for size in sizes] for key in TERMS}
        if not np.isfinite(list(late.values())).any():
            continue
        trends: dict[str, ScalingTrend] = {}
        for key, values in late.items():
            with contextlib.suppress(ValueError):  # values of both signs, or a single size
                trends[key] = scaling_trend(n, values)
        for key, values in late.items():
            own, reference = trends.get(key), trends.get("ce")
            numbers = (own.alpha, own.r2, own.alpha - reference.alpha if reference else None) if own else (None,) * 3
            rows.append((arm.name, TERMS[key], *map(three_digits, (*values, *numbers))))
    if not rows:
        return None
    return Table(
        columns=("arm", "term", *(f"{s} (nats)" for s in sizes), "slope α", "R²", "α less that of cross-entropy"),
        rows=tuple(rows),
        heads=2,
        caption="Means over seeds and over the probes after T/4. α: least squares of log |term| = c + α log N over "
        "sizes, N non-embedding parameters; with few sizes it says little.",
    )


def three_digits(value: float | None) -> str:
    return MISSING if value is None or not np.isfinite(value) else minus(f"{round(value, 3) + 0.0:.3f}")


def seed_mean(measures: Measures, arm: str, size: str, key: str) -> float:
    values = [measures.instrument(trial, key) for trial in measures.study.of(arm, size)]
    values = [v for v in values if np.isfinite(v)]
    return float(np.mean(values)) if values else np.nan


KINDS = {
    "grad_token": (
        "tokens",
        "1 − Σ|Σ g| / ΣΣ|g| over the gradients of single held-out tokens, body matrices; the denominator is estimated "
        "from a sample. In the zero-sum learning paper it rises towards 1 before the loss decelerates, over a million "
        "tokens; over few tokens of a small model it stays near its chance level.",
    ),
    "grad_sequence": (
        "sequences",
        "The same over the gradients of a few whole sequences. In a sequence most of the opposition of its tokens has "
        "cancelled already, so that little is left above chance.",
    ),
}
GROUPS = ("attention", "mlp", "embedding", "norm", "unembedding")


def gradients(figures: Figures) -> list[Figure | None]:
    """Gradient interference of tokens and of sequences with its chance level; of tokens by group of parameters."""
    found = [
        with_chance(figures, f"{kind}.ratio", f"{kind}.chance_ratio", f"Gradient interference of {what}", text)
        for kind, (what, text) in KINDS.items()
    ]
    return [*found, by_group(figures), agreement(figures)]


def with_chance(figures: Figures, key: str, chance_key: str, title: str, text: str) -> Figure | None:
    panels, shown = [], {}
    for size in figures.sizes:
        strokes, found = [], {}
        for arm in figures.index:
            line = curves.instrument(figures.measures, arm, size, key)
            if line is None:
                continue
            found[arm] = shown[arm] = line
            strokes.append(figures.stroke(arm, line, size))
            chance = curves.instrument(figures.measures, arm, size, chance_key)
            if chance is not None:
                how: dict[str, Any] = {"name": f"{arm}, chance", "dash": FIT, "band": False, "width": 1.2}
                strokes.append(Stroke(line=chance, index=figures.index[arm], arm=arm, size=size, **how))
        if found:
            words = f"{title}, size {size}: {in_words(found)}"
            axes = Axes(y_label="interference (ratio)")
            panels.append(Panel(title=size, alternative=words, strokes=strokes, axes=axes, size=size))
    if not panels:
        return None
    return Figure(
        title=title,
        metric=key,
        panels=tuple(panels),
        legend=figures.legend([a for a in figures.index if a in shown]),
        caption=f"{text} {BAND[0].upper() + BAND[1:]}. Dotted: its chance level, the same gradients with random signs. "
        "Below chance: the gradients share a direction; at chance: they cancel as unrelated ones would; above: they "
        "oppose one another.",
    )


def by_group(figures: Figures) -> Figure | None:
    """The baseline's gradient interference of tokens in each group of parameters, one panel a size."""
    panels, legend = [], []
    for size in figures.sizes:
        found = {}
        for group in GROUPS:
            line = curves.instrument(figures.measures, figures.base, size, f"grad_token.by_group.{group}.ratio")
            if line is not None:
                found[group] = line
        if found:
            strokes = [
                Stroke(line=line, index=GROUPS.index(g) + 1, name=g, size=size, band=False) for g, line in found.items()
            ]
            text = f"Gradient interference of tokens by group of parameters, size {size}: {in_words(found)}"
            axes = Axes(y_label="interference (ratio)")
            panels.append(Panel(title=size, alternative=text, strokes=strokes, axes=axes, size=size))
            legend = [g for g in GROUPS if g in found]
    if not panels:
        return None
    return Figure(
        title="Gradient interference of tokens by group of parameters, baseline",
        panels=tuple(panels),
        legend=tuple(
            LegendEntry(name=g, index=GROUPS.index(g) + 1, dash=style(GROUPS.index(g) + 1)[0]) for g in legend
        ),
        caption="Means over seeds. A tied matrix counts as embedding.",
    )


def agreement(figures: Figures) -> Figure | None:
    """C_g of the run's own updates."""
    return figures.instrument(
        "first_order.C_g",
        "Agreement C_g of token gradients in the update",
        "C_g = Σ_j |Σ_i g_ij Δθ_j| / Σ_ij |g_ij Δθ_j| over held-out tokens i and parameters j, for the run's own "
        "update. Falling: single tokens' gradients come to cancel where the update moves. With C_ug and C_uG it gives "
        "1 − D(Δℓ̂) = C_g · C_uG / C_ug; all are in the records. Means over seeds, " + BAND + ".",
        y_label="C_g",
        log_y=True,
    )
