"""What the figures of `zslx probe` share: lines and their colours, axes, one legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zslx.figure_style import PALETTE
from zslx.probing.series import Series

COLOURS = (*PALETTE[1:], PALETTE[0])


def line(ax: Any, points: tuple[Any, Any], i: int, dash: str = "-", label: str | None = None, mark: str = "o") -> None:
    steps, values = points
    if len(steps):
        ax.plot(steps, values, dash, color=colour(i), lw=1.4, marker=mark, ms=2.6, label=label)


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def once(ax: Any, i: int, series: Sequence[Series]) -> str | None:
    """The run's label in the first panel alone."""
    return series[i].label if ax is ax.figure.axes[0] else None


def dress(ax: Any, *, log_x: bool = True, log_y: bool = False) -> None:
    if log_x:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda value, _: short(value))
        ax.xaxis.get_major_locator().set_params(numticks=7)
    if log_y and ax.lines:
        log_axis(ax)
    ax.grid(True, color="#e3e5e8", lw=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def log_axis(ax: Any) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def short(value: float) -> str:
    """4096 → 4k, 1500 → 1500: powers of two in k where they are round."""
    return f"{value / 1024:g}k" if value >= 1024 and value % 1024 == 0 else f"{value:g}"


def legend(figure: Any) -> None:
    """One legend below all panels."""
    entries: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries and not any(ax.get_legend() for ax in figure.axes):
        rows = -(-len(entries) // max(1, int(figure.get_figwidth() // 2.4)))
        columns = -(-len(entries) // rows)
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)
