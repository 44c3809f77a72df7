"""Figures as JSON for the page's script (plots.js): what their panels hold, without looks that the page decides.

Numbers have five digits; what is not finite is null. Names stand once, as places in the lists of the page's choices.
A name in a figure is one short printable line, so that no name can make a figure unreadable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from analysis.numbers import printable
from analysis.report.blocks import Choices, Figure, HeatMap, Marks, Panel, Stroke
from analysis.report.drawing import FAINTEST, MOST_WRITTEN, STRONGEST, colour, dash_of, heat_digits

INTERVALS = ("low", "high")


class PageData:
    """The JSON of a page's figures."""

    def __init__(self, choices: Choices):
        self._arms = {entry.name: i for i, entry in enumerate(choices.arms)}
        self._sizes = {size.name: i for i, size in enumerate(choices.sizes)}
        self.choices = {
            "arms": [printable(entry.name) for entry in choices.arms],
            "sizes": [{"name": s.name, "tokens": number(s.tokens), "flops": number(s.flops)} for s in choices.sizes],
        }

    def arm(self, name: str) -> int | None:
        """The place of an arm; None of a name that is no arm's."""
        return self._arms.get(name)

    def size(self, name: str) -> int | None:
        return self._sizes.get(name)

    def figure(self, figure: Figure) -> dict[str, Any]:
        legend = [{"name": printable(e.name), "c": colour(e.index), "dash": e.dash} for e in figure.legend]
        for entry, told in zip(figure.legend, legend, strict=True):
            told["arm"] = self.arm(entry.name) if entry.arm else None
        return {"title": figure.title, "legend": legend, "panels": [self.panel(p) for p in figure.panels]}

    def panel(self, panel: Panel) -> dict[str, Any]:
        look = panel.axes
        return {
            "title": printable(panel.title, 40),
            "arm": self.arm(panel.arm),
            "size": self.size(panel.size),
            "extent": look.extent,
            "x": {"label": look.x_label, "log": look.log_x, "time": look.time},
            "y": {"label": look.y_label, "log": look.log_y, "range": look.y_range},
            "zero": look.zero,
            "rows": None if look.rows is None else list(look.rows),
            "lines": [self._line(stroke) for stroke in panel.strokes],
            "marks": [self._mark(group) for group in panel.marks],
            "heat": None if panel.heat is None else heat(panel.heat),
        }

    def _whose(self, drawn: Stroke | Marks) -> dict[str, Any]:
        name = printable(drawn.name)
        return {"name": name, "arm": self.arm(drawn.arm), "size": self.size(drawn.size), "c": colour(drawn.index)}

    def _line(self, stroke: Stroke) -> dict[str, Any]:
        line = stroke.line
        found = {"x": numbers(line.x), "y": numbers(line.y)}
        if stroke.band and line.low is not None and line.high is not None:
            found |= {"low": numbers(line.low), "high": numbers(line.high)}
        return self._whose(stroke) | {"dash": dash_of(stroke), "w": stroke.width, "o": round(stroke.opacity, 2)} | found

    def _mark(self, group: Marks) -> dict[str, Any]:
        found: dict[str, Any] = {"x": numbers(group.x), "y": numbers(group.y)}
        if group.low is not None and group.high is not None:
            found |= {"low": numbers(group.low), "high": numbers(group.high)}
        looks = {"upright": group.upright, "shape": group.shape, "filled": group.filled, "note": printable(group.note)}
        return self._whose(group) | looks | found


def heat(found: HeatMap) -> dict[str, Any]:
    return {
        "names": [printable(name, 12) for name in found.names],
        "values": [numbers(row) for row in found.values],
        "low": number(found.low),
        "high": number(found.high),
        "opacity": [FAINTEST, STRONGEST],
        "digits": heat_digits(found) if len(found.names) <= MOST_WRITTEN else None,
    }


def number(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def numbers(values: Iterable[float] | Sequence[float] | np.ndarray) -> list[float | None]:
    return [number(float(v)) for v in values]


def embedded(value: Any) -> str:
    """JSON that may stand inside a script element, whatever its texts hold."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
