"""Figures of rows: a mark or two a row with their intervals, around zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from analysis.inference.rows import Difference
from analysis.report.blocks import Axes, Figure, Marks, Panel


def rows_figure(
    title: str,
    rows: Sequence[str],
    groups: Sequence[Marks],
    alternative: str,
    *,
    x_label: str,
    caption: str,
    **how: Any,
) -> Figure:
    """A wide figure with one row of marks below the other."""
    extent = (7.2, 0.9 + 0.26 * len(rows))
    look: dict[str, Any] = {
        "rows": tuple(rows),
        "zero": 0.0,
        "log_x": False,
        "time": False,
        "x_label": x_label,
        "extent": extent,
    }
    panel = Panel(title="", alternative=alternative, marks=tuple(groups), axes=Axes(**look | how))
    return Figure(title=title, panels=(panel,), caption=caption, wide=True)


def bar(found: Difference | Mapping[str, Any], scale: Callable[[float], float]) -> dict[str, Any]:
    """The ends of an interval; none from one seed."""
    if found["low"] is None or found["high"] is None:
        return {"low": None, "high": None}
    return {"low": [scale(found["low"])], "high": [scale(found["high"])]}


def per_cent(log_difference: float) -> float:
    return 100 * math.expm1(log_difference)
