"""The report's figures as files for print: as wide as a column, with small type, on white, a legend above."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from analysis.numbers import printable
from analysis.report.blocks import Figure, Panel
from analysis.report.drawing import STYLE, colour, dashes, draw
from zslx.figure_style import PALETTE
from zslx.slug import slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Drawn = TypeVar("Drawn", bound="Canvas")

FORMATS = ("pdf", "svg", "png")
UNITS = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}
NARROWEST, WIDEST = 1.0, 40.0  # inches
PANEL, LABELLED = 1.55, 2.6  # inches: the least width of a panel, and of one with rows
FLATTEST = 1.4  # inches: the least height
INK, GRID = "#000000", "#dddddd"
TYPE = {
    "font.size": 7,
    "legend.fontsize": 6.5,
    "axes.labelsize": 6,
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
}


def inches(text: str) -> float:
    """`3.3in`, `84mm`, `8.4cm` or `240pt` in inches. ValueError says what is allowed."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(in|cm|mm|pt)\s*", text)
    width = float(found[1]) * UNITS[found[2]] if found else math.nan
    if not NARROWEST <= width <= WIDEST:
        allowed = f"a number with in, cm, mm or pt, from {NARROWEST:g}in to {WIDEST:g}in, such as 3.3in"
        raise ValueError(f"--width {text!r}: allowed is {allowed}")
    return width


def save_all(figures: list[Figure], folder: Path, *, kind: str, width: float) -> Iterator[Path]:
    """Write every figure to `folder`, numbered as in the report; yields each path."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, figure in enumerate(figures, 1):
        path = folder / f"{number:02d}-{slug(figure.title, 60).lower()}.{kind}"
        save(figure, path, width=width)
        yield path


def save(figure: Figure, path: Path, *, width: float) -> None:
    """One figure, `width` inches wide; the ending of `path` is the format."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    canvas = drawn(figure, Canvas, width=width)
    with rc_context(_settings(figure)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas.savefig(path, metadata=dates.get(path.suffix[1:]))


def drawn(figure: Figure, kind: type[Drawn], *, width: float) -> Drawn:
    """One figure, `width` inches wide, as a figure of matplotlib."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    least = PANEL if all(panel.axes.rows is None for panel in figure.panels) else LABELLED
    columns = min(len(figure.panels), max(1, int(width / least)))
    rows = math.ceil(len(figure.panels) / columns)
    heights = [_height(panel, width / columns) for panel in figure.panels]
    height = sum(max(heights[at : at + columns]) for at in range(0, len(heights), columns))
    longest = max((len(_name(entry.name)) for entry in figure.legend), default=1)
    across = max(1, int(width / (0.4 + 0.05 * longest)))
    legend_height = 0.13 * math.ceil(len(figure.legend) / across)
    with rc_context(_settings(figure)):
        canvas = kind(figsize=(width, height + legend_height), layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.subplots(rows, columns, squeeze=False).flat
        for place, panel in zip(axes, figure.panels, strict=False):
            draw(
                place,
                panel,
                _colour,
                title=printable(panel.title, int(15 * width / columns)),
                ink=INK,
                grid=GRID,
                scale=0.6,
            )
        for place in list(canvas.axes)[len(figure.panels) :]:
            place.set_visible(False)
        if figure.legend:
            canvas.legend(
                handles=_handles(figure), loc="outside upper left", ncols=across, frameon=False, columnspacing=1.2
            )
    return canvas


def _settings(figure: Figure) -> Any:
    """The settings of matplotlib under which a figure is drawn and saved."""
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    return STYLE | TYPE | ink | {"svg.hashsalt": figure.title}


def _height(panel: Panel, width: float) -> float:
    """Of a panel in inches: rows need their lines, everything else keeps its shape."""
    across, high = panel.axes.extent
    return 0.5 + 0.13 * len(panel.axes.rows) if panel.axes.rows is not None else max(FLATTEST, width * high / across)


def _name(text: str) -> str:
    return printable(text, 24)


def _colour(index: int) -> str:
    return PALETTE[colour(index)]


def _handles(figure: Figure) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D(
            [], [], color=_colour(e.index), linestyle=dashes(e.dash), linewidth=2.7 if e.arm and not e.index else 1.2,
            alpha=0.6 if e.arm and not e.index else 1.0, label=_name(e.name),
        )
        for e in figure.legend
    ]  # fmt: skip
