"""Small square matrices side by side in one panel: the stronger the colour the higher, each entry in its cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.numbers import MISSING, printable
from analysis.report.drawing import INK, drawn, stand_in

FAINTEST, STRONGEST = 0.05, 0.6  # of the colour, so that the numbers stay legible on it in both themes
MOST_WRITTEN = 8  # rows with more have cells too small for a number
NAME_WIDTH = 12


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """One matrix (n, n) with the names of its rows; nan where there is no number."""

    title: str
    names: Sequence[str]
    values: np.ndarray


def heat_maps(name: str, maps: Sequence[HeatMap], *, title: str, low: float, high: float) -> str:
    """SVG text of a panel with one or two matrices; from `low` (faintest) to `high` (strongest)."""
    digits = 2 if high - low > 0.05 else 3

    def draw(figure: Any) -> None:
        figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
        for axes, drawing in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
            _matrix(axes, drawing, low, high, digits)

    rows = max(len(m.names) for m in maps)
    return drawn(name, (4.8, 1.1 + 0.36 * min(max(rows, 3), MOST_WRITTEN)), draw)


def _matrix(axes: Any, drawing: HeatMap, low: float, high: float, digits: int) -> None:
    from matplotlib.patches import Rectangle

    n = len(drawing.names)
    for i, row in enumerate(drawing.values):
        for j, value in enumerate(row):
            known = bool(np.isfinite(value))
            if known:
                share = (value - low) / (high - low) if high > low else 0.5
                alpha = FAINTEST + (STRONGEST - FAINTEST) * float(np.clip(share, 0, 1))
                cell = Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, facecolor=stand_in(1), alpha=alpha, linewidth=0)
                axes.add_patch(cell)
            if n <= MOST_WRITTEN:
                text = f"{value:.{digits}f}".replace("0.", ".", 1) if known else MISSING
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color=INK)
    names = [printable(name, NAME_WIDTH) for name in drawing.names]
    axes.set_title(printable(drawing.title, 24), loc="left", fontsize=9)
    turn, size = (35, 8) if n <= MOST_WRITTEN else (90, 6)
    axes.set_xticks(range(n), names, rotation=turn, ha="right", va="center", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(n), names, fontsize=size)
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(n - 0.5, -0.5)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
