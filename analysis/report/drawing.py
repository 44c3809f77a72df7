"""Panels drawn by matplotlib's objects (no pyplot, no global figure): SVG text for the page, files for print.

On the page colours are CSS variables with a fallback (`var(--s1, #0072b2)`), text stays text, ids are unique to the
panel: one inline SVG follows the page's light or dark theme and font, and still opens on its own. The
palette is that of all figures (zslx/figure_style.py); line styles differ as well. Deterministic: no dates,
ids from a fixed salt.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from io import StringIO
from typing import Any

import numpy as np

from analysis.numbers import MISSING, printable
from analysis.report.blocks import Axes, HeatMap, Marks, Panel, Stroke
from zslx.figure_style import PALETTE

# The palette holds light fallbacks; report.css has both themes.
DASHES = ("", "7 2", "2.5 1.5", "8 2 2 2", "4 3", "1 1.5", "9 2 2 2 2 2", "5 1")
# Stand-ins that matplotlib draws with and that the page's colours replace.
INK, GRID = "#010101", "#020202"
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "font.family": "sans-serif",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "lines.scale_dashes": False,  # as long as in the legend and in the browser, whatever the width
    "path.simplify": True,
    "path.simplify_threshold": 0.3,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
FAINTEST, STRONGEST = 0.05, 0.6  # of a heat map's colour, so that its numbers stay legible in both themes
MOST_WRITTEN = 8  # rows of a heat map; with more its cells are too small for a number
Colour = Callable[[int], str]  # of a place in the palette


def style(index: int) -> tuple[str, str]:
    """(dash, CSS colour) of an arm. The grey is the baseline's alone; where colours come round, dashes differ."""
    i = colour(index)
    dash = 0 if i == 0 else 1 + (i - 1 + (index - 1) // (len(PALETTE) - 1)) % (len(DASHES) - 1)
    return DASHES[dash], f"var(--s{i}, {PALETTE[i]})"


def colour(index: int) -> int:
    """The place of an arm's colour in the palette."""
    return 1 + (index - 1) % (len(PALETTE) - 1) if index else 0


def dash_of(stroke: Stroke) -> str:
    return style(stroke.index)[0] if stroke.dash is None else stroke.dash


def dashes(dash: str) -> Any:
    """A dash array as matplotlib's line style."""
    return (0, tuple(float(d) for d in dash.split())) if dash else "-"


def svg(name: str, panel: Panel) -> str:
    """SVG text of one panel, for the page. `name` makes its ids unique."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = STYLE | {"svg.hashsalt": name}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Measured with matplotlib's font, shown with the page's: a glyph that the former lacks is no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=panel.axes.extent, layout="constrained")
        axes, text = figure.add_subplot(), StringIO()
        draw(axes, panel, stand_in, title=panel.title)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        # savefig would draw twice where there is a layout.
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    return themed(text.getvalue(), name)


def draw(
    axes: Any, panel: Panel, colour_of: Colour, *, title: str, ink: str = INK, grid: str = GRID, scale: float = 1.0
) -> None:
    """A panel on matplotlib's axes; `scale` is of lines and marks, and below 1 there are fewer ticks."""
    look = panel.axes
    if panel.heat is not None:
        _heat(axes, panel.heat, colour_of(1), ink)
    else:
        if look.zero is not None:
            line = axes.axhline if look.rows is None else axes.axvline
            line(look.zero, color=ink, linewidth=0.8, alpha=0.6)
        for stroke in panel.strokes:
            _stroke(axes, stroke, colour_of(stroke.index), scale)
        for group in panel.marks:
            _marks(axes, group, colour_of(group.index), scale)
        _dress(axes, look, grid, most=7 if scale >= 1 else 4)
    axes.set_title(printable(title, 40), loc="left", fontsize="medium", fontweight="bold")


def _stroke(axes: Any, stroke: Stroke, colour: str, scale: float) -> None:
    line = stroke.line
    if stroke.band and line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(
        line.x, line.y, color=colour, linewidth=scale * stroke.width, linestyle=dashes(dash_of(stroke)),
        alpha=stroke.opacity, solid_capstyle="round",
    )  # fmt: skip


def _marks(axes: Any, group: Marks, colour: str, scale: float) -> None:
    if group.low is not None and group.high is not None:
        for x, y, low, high in zip(group.x, group.y, group.low, group.high, strict=True):
            bar = ([x, x], [low, high]) if group.upright else ([low, high], [y, y])
            axes.plot(*bar, color=colour, linewidth=scale * 1.6, solid_capstyle="round")
    axes.plot(
        group.x, group.y, group.shape, color=colour, markersize=scale * 5, markeredgewidth=scale * 1.2,
        markerfacecolor=colour if group.filled else "none",
    )  # fmt: skip


def _dress(axes: Any, look: Axes, grid: str, most: int) -> None:
    """Axes: scales, few round ticks, a light grid, no box."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xlabel(look.x_label)
    axes.set_ylabel(look.y_label)
    for axis, log in ((axes.xaxis, look.log_x), (axes.yaxis, look.log_y)):
        if log:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            start, end = axis.get_view_interval()
            axis.set_major_locator(FixedLocator(round_ticks(start, end, most)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        elif look.rows is None or axis is axes.xaxis:
            axis.get_major_locator().set_params(nbins=most - 1)
    low, high = axes.get_ylim()
    if high - low < 1e-6 * abs(high):  # a constant
        axes.set_ylim(0.9 * low, 1.1 * high)
    if look.y_range:
        axes.set_ylim(*look.y_range)
    if look.rows is not None:
        axes.set_yticks(range(len(look.rows)), look.rows)
        axes.set_ylim(len(look.rows) - 0.4, -0.6)
    axes.grid(True, axis="x" if look.rows is not None else "both", color=grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", *(["left"] if look.rows is not None else [])):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0 if look.rows is not None else 3, width=0.8)


def _heat(axes: Any, heat: HeatMap, colour: str, ink: str) -> None:
    """Cells: the stronger the colour the higher, each number in its cell."""
    from matplotlib.patches import Rectangle

    n, digits = len(heat.names), heat_digits(heat)
    for i, row in enumerate(heat.values):
        for j, value in enumerate(row):
            known = bool(np.isfinite(value))
            if known:
                share = (value - heat.low) / (heat.high - heat.low) if heat.high > heat.low else 0.5
                alpha = FAINTEST + (STRONGEST - FAINTEST) * float(np.clip(share, 0, 1))
                cell = Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, facecolor=colour, alpha=alpha, linewidth=0)
                axes.add_patch(cell)
            if n <= MOST_WRITTEN:
                text = f"{value:.{digits}f}".replace("0.", ".", 1) if known else MISSING
                axes.text(j, i, text, ha="center", va="center", fontsize="smaller", color=ink)
    names = [printable(name, 12) for name in heat.names]
    turn, size = (35, 8) if n <= MOST_WRITTEN else (90, 6)
    axes.set_xticks(range(n), names, rotation=turn, ha="right", va="center", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(n), names, fontsize=size)
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(n - 0.5, -0.5)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def heat_digits(heat: HeatMap) -> int:
    """Decimals that tell its numbers apart."""
    return 2 if heat.high - heat.low > 0.05 else 3


def round_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers for a logarithmic axis: four or more where there is place for them, at most about `most`."""
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8), tuple(np.arange(1, 10, 0.5))):
        exponents = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        found = [d * 10.0**e for e in exponents for d in digits if low <= d * 10.0**e <= high]
        if len(found) >= 4:
            break
    return found[:: max(1, math.ceil(len(found) / (most + 1)))]


def short(value: float) -> str:
    """1500 → 1.5k."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def stand_in(index: int) -> str:
    """The colour that matplotlib draws with in the place of an arm's."""
    return f"#0301{colour(index):02x}"


def themed(svg: str, name: str) -> str:
    """Colours and fonts become the page's, ids the panel's own; without a size, so that it scales."""
    svg = svg[svg.index("<svg") :]
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--grid, #d9dce1)")
    for i in range(len(PALETTE)):
        svg = svg.replace(stand_in(i), style(i)[1])
    svg = re.sub(r"font-family: [^;\"]*(?=[;\"])", "font-family: inherit", svg)
    svg = re.sub(r"font: ([^'\";]*?)'[^;\"]*", r"font: \1sans-serif; font-family: inherit", svg)
    for before in ('id="', 'href="#', "url(#"):
        svg = svg.replace(before, f"{before}{name}-")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Hundredths of a point are finer than any screen; matplotlib writes six decimals.
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]).replace(" \n", " "), svg)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"([^>]*?) height="[^"]*"', r"\1\2", svg, count=1)
