"""The blocks of a report, as plain data. page.py renders them to HTML."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    """`index` is the arm's place in the palette; `dash` its line style (SVG dash array, empty: solid)."""

    name: str
    index: int
    dash: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One drawing: SVG text, what it shows, and the same in words for those who cannot see it."""

    svg: str
    title: str
    alternative: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Panels that share a legend and a caption which says how to read them."""

    title: str
    panels: tuple[Panel, ...]
    caption: str
    legend: tuple[LegendEntry, ...] = field(default_factory=tuple)
    wide: bool = False
    kind: str = "figure"


Block = Heading | Text | Answer | Table | Figure
