"""Panels as SVG text, drawn by matplotlib's objects (no pyplot, no global figure), coloured by the page.

Colours are CSS variables with a fallback (`var(--s1, #0072b2)`), text stays text, ids are unique to the
panel: one inline SVG follows the page's light or dark theme and font, and still opens on its own. The
palette is that of all figures (zslx/figure_style.py); line styles differ as well. Deterministic: no dates,
ids from a fixed salt.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np

from analysis.report.curves import Line
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
    "path.simplify": True,
    "path.simplify_threshold": 0.3,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """One line of a panel: whose it is (palette index), how it is drawn."""

    line: Line
    index: int
    width: float = 1.5
    dash: str | None = None  # None: the arm's own
    band: bool = True
    opacity: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Points (x, y) with a horizontal bar each where `low` and `high` are given."""

    x: Sequence[float]
    y: Sequence[float]
    index: int
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    shape: str = "o"
    filled: bool = True


def style(index: int) -> tuple[str, str]:
    """(dash, CSS colour) of an arm. The grey is the baseline's alone; where colours come round, dashes differ."""
    i = colour(index)
    dash = 0 if i == 0 else 1 + (i - 1 + (index - 1) // (len(PALETTE) - 1)) % (len(DASHES) - 1)
    return DASHES[dash], f"var(--s{i}, {PALETTE[i]})"


def colour(index: int) -> int:
    """The place of an arm's colour in the palette."""
    return 1 + (index - 1) % (len(PALETTE) - 1) if index else 0


@dataclass(frozen=True, kw_only=True)
class Look:
    """The axes of a panel. `zero` draws a reference line, `rows` are y ticks; size in inches."""

    title: str = ""
    x_label: str = "step"
    y_label: str = ""
    log_x: bool = True
    log_y: bool = False
    zero: float | None = None
    y_range: tuple[float, float] | None = None
    rows: Sequence[str] | None = None
    size: tuple[float, float] = (4.3, 3.0)


def panel(name: str, strokes: Sequence[Stroke], *, marks: Sequence[Marks] = (), **look: Any) -> str:
    """SVG text of one panel. `name` makes its ids unique; the other arguments are those of Look."""
    wanted = Look(**look)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        if wanted.zero is not None:
            line = axes.axhline if wanted.rows is None else axes.axvline
            line(wanted.zero, color=INK, linewidth=0.8, alpha=0.6)
        for stroke in strokes:
            _stroke(axes, stroke)
        for group in marks:
            _marks(axes, group)
        _dress(axes, wanted)

    return drawn(name, wanted.size, draw)


def drawn(name: str, size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    """SVG text of what `draw` puts into an empty figure of `size` inches."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = STYLE | {"svg.hashsalt": name}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Measured with matplotlib's font, shown with the page's: a glyph that the former lacks is no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return themed(text.getvalue(), name)


def _stroke(axes: Any, stroke: Stroke) -> None:
    line, colour = stroke.line, stand_in(stroke.index)
    dash = style(stroke.index)[0] if stroke.dash is None else stroke.dash
    pattern = (0, tuple(float(d) for d in dash.split())) if dash else "-"
    if stroke.band and line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(
        line.x, line.y, color=colour, linewidth=stroke.width, linestyle=pattern, alpha=stroke.opacity,
        solid_capstyle="round",
    )  # fmt: skip


def _marks(axes: Any, group: Marks) -> None:
    colour = stand_in(group.index)
    if group.low is not None and group.high is not None:
        for y, low, high in zip(group.y, group.low, group.high, strict=True):
            axes.plot([low, high], [y, y], color=colour, linewidth=1.6, solid_capstyle="round")
    axes.plot(
        group.x, group.y, group.shape, color=colour, markersize=5, markeredgewidth=1.2,
        markerfacecolor=colour if group.filled else "none",
    )  # fmt: skip


def _dress(axes: Any, look: Look) -> None:
    """Axes: scales, few round ticks, a light grid, no box."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_title(look.title, loc="left", fontsize=9.5, fontweight="bold")
    axes.set_xlabel(look.x_label)
    axes.set_ylabel(look.y_label)
    for axis, log in ((axes.xaxis, look.log_x), (axes.yaxis, look.log_y)):
        if log:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            ticks = round_ticks(*axis.get_view_interval())
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        elif look.rows is None or axis is axes.xaxis:
            axis.get_major_locator().set_params(nbins=6)
    if look.y_range:
        axes.set_ylim(*look.y_range)
    if look.rows is not None:
        axes.set_yticks(range(len(look.rows)), look.rows)
        axes.set_ylim(len(look.rows) - 0.4, -0.6)
    axes.grid(True, axis="x" if look.rows is not None else "both", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", *(["left"] if look.rows is not None else [])):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0 if look.rows is not None else 3, width=0.8)


def round_ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers for a logarithmic axis."""
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8), tuple(np.arange(1, 10, 0.5))):
        exponents = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        found = [d * 10.0**e for e in exponents for d in digits if low <= d * 10.0**e <= high]
        if len(found) >= 4:
            break
    return found[:: max(1, len(found) // 7)]


def short(value: float) -> str:
    """1500 → 1.5k."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
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
    return re.sub(r'(<svg[^>]*?) width="[^"]*"([^>]*?) height="[^"]*"', r"\1\2", svg, count=1)
