"""Renders blocks to one self-contained HTML page: inline CSS and SVG, no script, no request, every text escaped.

A content security policy in the page forbids scripts and anything from elsewhere, so that a hostile name could do
nothing even if it got past the escaping (Jinja2's autoescape; SVG text is escaped by matplotlib).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from analysis.report.blocks import Block, Heading
from analysis.report.drawing import style

FOLDER = Path(__file__).parent
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # no text of HTML, whatever a log or a name holds


def render(blocks: Sequence[Block], *, title: str) -> str:
    """The page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tight"] = lambda text: text.replace(" %", "\u00a0%")
    page = environment.get_template("report.html.j2").render(
        title=title,
        blocks=blocks,
        headings=[b for b in blocks if isinstance(b, Heading)],
        css=(FOLDER / "report.css").read_text(encoding="utf-8"),
        colour=lambda index: style(index)[1],
    )
    return CONTROL.sub("\ufffd", page)
