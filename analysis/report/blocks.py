"""The blocks of a report, as plain data: one list, which page.py renders to HTML and wandb_report.py to a report in
wandb. drawing.py draws a panel, to SVG or PDF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from analysis.report.curves import Line


@dataclass(frozen=True, kw_only=True)
class Heading:
    text: str
    anchor: str
    kind: str = "heading"


@dataclass(frozen=True, kw_only=True)
class Text:
    """Paragraphs. `mono` keeps lines as they are (commands, the rule)."""

    text: str
    mono: bool = False
    folded: str = ""  # a summary under which the text is folded away
    kind: str = "text"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The question and one arm's answer."""

    question: str
    sentence: str
    word: str
    exploratory: bool
    notes: tuple[str, ...] = ()
    kind: str = "answer"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Texts. The first `heads` columns name the row, and the first of them the group it belongs to."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    heads: int = 1
    folded: str = ""  # a summary under which the table is folded away
    prose: bool = False  # whether its cells are sentences, to be wrapped
    kind: str = "table"

    def grouped(self) -> list[tuple[bool, tuple[str, ...]]]:
        """(whether a group begins here, the row with what its heads repeat from the row above left empty)."""
        shown, above = [], ("",) * len(self.columns)
        for row in self.rows:
            same = 0
            while same < self.heads - 1 and row[same] == above[same]:
                same += 1
            shown.append((same == 0 and self.heads > 1, ("",) * same + row[same:]))
            above = row
        return shown


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """`index` is the place in the palette, `dash` the line style (SVG dash array, empty: solid); `arm`: an arm's."""

    name: str
    index: int
    dash: str = ""
    arm: bool = False


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """One line of a panel. `arm` and `size` say whose it is, empty where it is nobody's in particular."""

    line: Line
    index: int  # in the palette
    name: str = ""  # what a reader who points at it is told; empty: it is not pointed at
    arm: str = ""
    size: str = ""
    width: float = 1.6
    dash: str | None = None  # None: the arm's own
    band: bool = True
    opacity: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Points (x, y) with a bar each where `low` and `high` are given: along x, or along y where `upright`."""

    x: Sequence[float]
    y: Sequence[float]
    index: int
    name: str = ""
    arm: str = ""
    size: str = ""
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    upright: bool = False
    shape: str = "o"
    filled: bool = True
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """One matrix (n, n) with the names of its rows, nan where there is no number; colours go from low to high."""

    names: Sequence[str]
    values: np.ndarray
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Axes:
    """How a panel is drawn. `time`: x is t, which tokens or FLOPs may replace. `zero` draws a reference line, `rows`
    are y ticks from top to bottom. `extent` in inches."""

    x_label: str = "step"
    y_label: str = ""
    time: bool = True
    log_x: bool = True
    log_y: bool = False
    zero: float | None = None
    y_range: tuple[float, float] | None = None
    rows: Sequence[str] | None = None
    extent: tuple[float, float] = (4.3, 3.0)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One drawing, and the same in words for those who cannot see it. `arm`, `size`: whose it is as a whole, if any."""

    title: str
    alternative: str
    strokes: Sequence[Stroke] = ()
    marks: Sequence[Marks] = ()
    heat: HeatMap | None = None
    axes: Axes = field(default_factory=Axes)
    arm: str = ""
    size: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Panels that share a legend and a caption which says how to read them.

    `metric`: the number of the probe records that each panel shows over the steps of the runs of its size, if it does.
    """

    title: str
    panels: tuple[Panel, ...]
    caption: str
    metric: str = ""
    legend: tuple[LegendEntry, ...] = field(default_factory=tuple)
    wide: bool = False
    kind: str = "figure"


@dataclass(frozen=True, kw_only=True)
class SizeScale:
    """A size with the tokens and the floating-point operations of one step of the baseline."""

    name: str
    tokens: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a reader may choose from: the arms to show, each with its look, and the sizes."""

    arms: tuple[LegendEntry, ...] = ()
    sizes: tuple[SizeScale, ...] = ()


Block = Heading | Text | Answer | Table | Figure
