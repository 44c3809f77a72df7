"""The figures of `zslx probe`, PNG and SVG: interference, its plane, first order, gradients, decomposition, histogram.

Drawn by matplotlib's objects (no pyplot, no global figure), imported when a figure is drawn. Colours are
Okabe and Ito's, one a run, in the order of the runs; what differs within a run differs in line style.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zslx.deceleration.scaling_law import ScalingTrend
from zslx.figure_style import TERMS
from zslx.probing.panels import colour, dress, legend, line, log_axis, once, short
from zslx.probing.series import Series, at, final_trends, trends_over_steps

STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "zslx", "font.size": 9, "axes.titlesize": 9}
DPI = 160


def write_figures(series: Sequence[Series], folder: Path) -> Path:
    """Draw every figure that the records have numbers for, as FIGURE.png and FIGURE.svg in `folder`."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = [one.label for one in series]
    assert all(one.records for one in series)
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = Figure(layout="constrained")
            FigureCanvasAgg(figure)
            if not draw(figure, series):
                continue
            if len(set(labels)) > 1 or name not in ("decomposition", "histogram"):
                legend(figure)
            figure.savefig(folder / f"{name}.png", dpi=DPI)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return folder


CHANGES = {"dt1_heldout": "one update, held-out", "dtt": "from t/2 to t, held-out"}


def _changes(series: Sequence[Series]) -> dict[str, str]:
    """Those of CHANGES that any record has: checkpoints of others have no update of their own."""
    return {kind: name for kind, name in CHANGES.items() if any(len(one.curve(kind, "D")[0]) for one in series)}


def interference(figure: Any, series: Sequence[Series]) -> bool:
    """D and M over steps: one update and t/2 to t, held-out."""
    kinds = _changes(series)
    if not kinds:
        return False
    figure.set_size_inches(3.8 * len(kinds), 5.0)
    axes = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
    for i, one in enumerate(series):
        for row, key in enumerate(("D", "M")):
            for column, kind in enumerate(kinds):
                line(axes[row][column], one.curve(kind, key), i, "-", one.label)
    for ax, title in zip(axes[0], kinds.values(), strict=True):
        ax.set_title(title, loc="left", fontweight="bold")
        ax.set_ylim(0, 1.02)
    axes[0][0].set_ylabel("D, share that cancels")
    axes[1][0].set_ylabel("M, mean |Δℓ| (nats)")
    for ax in axes.flat:
        dress(ax, log_y=ax in axes[1])
    for ax in axes[1]:
        ax.set_xlabel("step t")
    return True


def plane(figure: Any, series: Sequence[Series]) -> bool:
    """D against M over contours of |ΔL| = M (1 − D)."""
    kinds = _changes(series)
    if not kinds:
        return False
    figure.set_size_inches(4.1 * len(kinds), 3.9)
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    for ax, (kind, title) in zip(axes, kinds.items(), strict=True):
        points = [one.both((kind, "D"), (kind, "M")) for one in series]
        sizes = np.concatenate([m for _, _, m in points]) if points else np.empty(0)
        ax.set_title(title, loc="left", fontweight="bold")
        if len(sizes):
            _contours(ax, sizes.min() / 1.6, sizes.max() * 1.6)
        for i, (_, d, m) in enumerate(points):
            ax.plot(d, m, color=colour(i), lw=1.1, alpha=0.7)
            ax.scatter(d, m, s=10 + 4 * np.arange(len(d)), color=colour(i), label=once(ax, i, series), zorder=3)
            if len(d):
                ax.scatter(d[-1], m[-1], s=14 + 4 * len(d), facecolor=colour(i), edgecolor="black", lw=1.2, zorder=4)
        steps = points[0][0]
        if len(steps):
            ax.set_xlabel(f"D, share that cancels (step {short(steps[0])} small, {short(steps[-1])} ringed)")
    axes[0].set_ylabel("M, mean |Δℓ| (nats)")
    return True


def _contours(ax: Any, low: float, high: float) -> None:
    """Lines of equal |ΔL|, a factor of √10 apart, with their values on them."""
    d, m = np.meshgrid(np.linspace(0, 0.995, 200), np.geomspace(low, high, 200))
    change = m * (1 - d)
    # From D near 1 on, the lines crowd: none below a change of a thirtieth of the smallest M.
    levels = 10.0 ** np.arange(np.floor(2 * np.log10(low / 30)) / 2, np.log10(high), 0.5)
    lines = ax.contour(d, m, change, levels=levels, colors="#9aa0a8", linewidths=0.6)
    ax.clabel(lines, fmt=lambda v: f"{v:.2g}", fontsize=6.5)
    ax.set_xlim(0, 1)
    log_axis(ax)
    ax.set_ylim(low, high)


def first_order(figure: Any, series: Sequence[Series]) -> bool:
    """C_g, C_uG/C_ug and the error of the first-order changes, over steps."""
    figure.set_size_inches(9.6, 2.9)
    axes = figure.subplots(1, 3)
    titles = ("C_g", "C_uG / C_ug", "error of first order, Σ|Δℓ−Δℓ̂| / Σ|Δℓ|")
    for i, one in enumerate(series):
        steps, c_g = one.curve("first_order", "C_g")
        error = one.curve("first_order", "relative_se")[1]
        line(axes[0], (steps, c_g), i, "-", one.label)
        if len(error) == len(c_g):
            axes[0].fill_between(
                steps, c_g * (1 - 1.96 * error), c_g * (1 + 1.96 * error), color=colour(i), alpha=0.2, lw=0
            )
        (_, c_ug), (_, c_total) = one.curve("first_order", "C_ug"), one.curve("first_order", "C_uG")
        if len(c_ug) == len(steps) == len(c_total):
            line(axes[1], (steps, c_total / c_ug), i)
        line(axes[2], one.curve("first_order", "error"), i)
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, loc="left", fontweight="bold")
        ax.set_xlabel("step t")
        dress(ax, log_y=True)
    return any(len(one.curve("first_order", "C_g")[0]) for one in series)


def gradients(figure: Any, series: Sequence[Series]) -> bool:
    """Gradient interference of the body's matrices against its chance level."""
    figure.set_size_inches(9.6, 3.1)
    axes = figure.subplots(1, 3)
    kinds = ("grad_sequence", "grad_token", "grad_position")
    for ax, kind in zip(axes, kinds, strict=True):
        for i, one in enumerate(series):
            steps, ratio = one.curve(kind, "ratio")
            line(ax, (steps, ratio), i, "-", f"{one.label}" if kind == kinds[0] else None)
            error = one.curve(kind, "ratio_se")[1]
            if len(error) == len(ratio) and len(ratio):
                ax.fill_between(steps, ratio - 1.96 * error, ratio + 1.96 * error, color=colour(i), alpha=0.2, lw=0)
            name = f"{one.label}, random signs" if kind == kinds[0] else None
            line(ax, one.curve(kind, "chance_ratio"), i, ":", name, mark="")
        n, total = at(series[0].records[-1], (kind, "n")), at(series[0].records[-1], (kind, "num_tokens"))
        count = f"n = {n:g}" + (f" of {total:g}" if total and total != n else "") if n else ""
        ax.set_title(f"{kind.removeprefix('grad_')}s, {count}", loc="left", fontweight="bold")
        ax.set_xlabel("step t")
        dress(ax)
    axes[0].set_ylabel("1 − Σ|Σ g| / Σ|g|, body matrices")
    return True


def decomposition(figure: Any, series: Sequence[Series]) -> bool:
    """Cross-entropy, error-entropy, self-alignment and confidence over steps; hollow: at half the tokens."""
    figure.set_size_inches(9.6, 2.9)
    axes = figure.subplots(1, 4)
    titles = TERMS
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        for i, one in enumerate(series):
            line(ax, one.curve("decomposition", key), i, "-", one.label if key == "ce" else None)
            steps, half = one.curve("decomposition", "half", key)
            if key != "ce":
                ax.plot(steps, half, "o", ms=3.2, mfc="none", mec=colour(i), mew=0.7)
        ax.set_title(title, loc="left", fontweight="bold")
        ax.set_xlabel("step t")
        dress(ax)
    axes[0].set_ylabel("nats per token (hollow: at N/2)")
    return True


def scaling(figure: Any, series: Sequence[Series]) -> bool:
    """log|term| of the decomposition over log N, from three sizes on; below, its slopes at the steps that all have."""
    try:
        found = final_trends(series)
    except ValueError:  # decompositions that cannot be compared
        return False
    if found is None:
        return False
    over_steps = trends_over_steps(series)
    figure.set_size_inches(11.2, 5.4 if len(over_steps) > 1 else 2.9)
    axes = figure.subplots(2 if len(over_steps) > 1 else 1, 4, squeeze=False)
    sizes, terms = [one.parameters for one in series], [one.records[-1]["decomposition"] for one in series]
    for i, (key, name) in enumerate((TERMS | {"conf": "|confidence|"}).items()):
        ax, trend = axes[0][i], found[key]
        ax.plot(sizes, [abs(t[key]) for t in terms], "o", color=colour(i), ms=4)
        ax.set_title(f"{name}\n{_slope(trend)}", loc="left")
        if isinstance(trend, ScalingTrend):
            x = np.array([min(sizes), max(sizes)])
            ax.plot(x, np.exp(trend.c) * x**trend.alpha, color=colour(i), lw=1.4)
        ax.set_xlabel("parameters without embeddings")
        dress(ax, log_x=False, log_y=True)
        ax.set_xscale("log")
        if len(set(sizes)) < 6:
            ax.set_xticks(sorted(set(sizes)), [f"{size / 1e6:.2g}M" for size in sorted(set(sizes))], minor=False)
            ax.set_xticks([], minor=True)
        if len(over_steps) > 1:
            _slopes(axes[1][i], over_steps, key, i)
    steps = {one.records[-1]["step"] for one in series}
    step = f"step {min(steps)}" if len(steps) == 1 else "last steps"
    axes[0][0].set_ylabel(f"nats per token, {step}, n = {terms[0]['n']}")
    if len(over_steps) > 1:
        axes[1][0].set_ylabel("slope α, 95 % interval")
    return True


def _slopes(ax: Any, over_steps: Mapping[int, Mapping[str, Any]], key: str, i: int) -> None:
    """The slope of a term with its interval, step by step; the axis shows the slopes, which intervals may leave."""
    known = [(s, t[key]) for s, t in over_steps.items() if isinstance(t[key], ScalingTrend)]
    if known:
        steps, alphas = np.array([s for s, _ in known]), np.array([t.alpha for _, t in known])
        low, high = np.array([t.interval for _, t in known]).T
        line(ax, (steps, alphas), i)
        ax.fill_between(steps, low, high, color=colour(i), alpha=0.2, lw=0)
        room = 0.5 * np.ptp(alphas) + 0.01
        ax.set_ylim(alphas.min() - room, alphas.max() + room)
    ax.axhline(0, color="#9aa0a8", lw=0.8)
    ax.set_xlabel("step t")
    dress(ax)


def _slope(trend: ScalingTrend | ValueError) -> str:
    """`α −0.049 (−0.060 to −0.038)` and below it `R² 0.990, gap −0.006`, or why there is none."""
    if isinstance(trend, ValueError):
        return str(trend).partition(": ")[2]
    alpha, low, high = (f"{round(x, 3) + 0.0:+.3f}" for x in (trend.alpha, *(trend.interval or (trend.alpha,) * 2)))
    r2 = "" if trend.r2 is None else f"R² {trend.r2:.3f}"
    gap = f", gap {trend.slope_gap:+.3f}" if trend.slope_gap else ""
    return f"α {alpha} ({low} to {high})\n{r2}{gap}"


def histogram(figure: Any, series: Sequence[Series]) -> bool:
    """Distribution over coordinates of c_j = |Σ g| / Σ|g|, sequences, at a few steps of each run."""
    drawn = [one for one in series if any(r.get("grad_sequence", {}).get("histogram") for r in one.records)]
    if not drawn:
        return False
    figure.set_size_inches(1.2 + 3.6 * len(drawn), 3.1)
    for ax, one in zip(np.atleast_1d(figure.subplots(1, len(drawn), sharey=True)), drawn, strict=True):
        chosen = [one.records[k] for k in sorted({round(x) for x in np.linspace(0, len(one.records) - 1, 5)})]
        for k, record in enumerate(chosen):
            counts = np.array(record["grad_sequence"]["histogram"], dtype=float)
            middle = (np.arange(len(counts)) + 0.5) / len(counts)
            shade = str(0.8 - 0.8 * k / max(1, len(chosen) - 1))
            density = counts / counts.sum() * len(counts)
            ax.plot(middle, density, color=shade, lw=1.3, label=f"step {short(record['step'])}")
        ax.set_title(one.label, loc="left", fontweight="bold")
        ax.set_xlabel("c = |Σ g| / Σ|g| of a coordinate, sequences")
        ax.legend(frameon=False)
        dress(ax, log_x=False)
        ax.set_xlim(0, 1)
    figure.axes[0].set_ylabel("density")
    return True


FIGURES: dict[str, Callable[[Any, Sequence[Series]], bool]] = {
    "interference": interference,
    "plane": plane,
    "first_order": first_order,
    "gradients": gradients,
    "decomposition": decomposition,
    "scaling": scaling,
    "histogram": histogram,
}
