"""Renders blocks to one self-contained HTML page that opens offline: inline style, pictures and scripts.

Every figure is a still picture (SVG), which is what a printer and a browser without scripts show. Where scripts run,
plots.js puts an interactive one in its place: Plotly, whose script comes from its Python package and lies in the page
compressed. A content security policy in the page names the two scripts by their hashes and forbids every other one, and
all requests, so that a hostile name could do nothing even if it got past the escaping (Jinja2's autoescape; matplotlib
escapes SVG text; page_data.py the figures' JSON).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from itertools import count
from pathlib import Path

from analysis.report import drawing
from analysis.report.blocks import Block, Choices, Figure, Heading, Table
from analysis.report.page_data import PageData, embedded

FOLDER = Path(__file__).parent
SCRIPTS = ("plots.js", "saving.js", "report.js")  # one script, in this order
Row = tuple[str, ...]
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # no text of HTML, whatever a log or a name holds


def render(
    blocks: Sequence[Block], *, title: str, choices: Choices, made_from: str = "the records of the study alone"
) -> str:
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
    data, names = PageData(choices), (f"f{i}" for i in count(1))
    script = "".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    library, library_hash = plotly()

    def grouped(table: Table) -> list[tuple[tuple[bool, tuple[str, ...]], tuple[int | None, int | None, Row]]]:
        """Each row as `Table.grouped` has it, and (arm, size, texts) by which the reader's choices hide it."""
        at = {name: i for i, name in enumerate(table.columns[:2]) if name in ("arm", "size")}
        whose = [
            (
                data.arm(row[at["arm"]]) if "arm" in at else None,
                data.size(row[at["size"]]) if "size" in at else None,
                row,
            )
            for row in table.rows
        ]
        return list(zip(table.grouped(), whose, strict=True))

    page = environment.get_template("report.html.j2").render(
        title=title,
        made_from=made_from,
        blocks=blocks,
        choices=choices,
        data=embedded(data.choices),
        headings=[b for b in blocks if isinstance(b, Heading)],
        css=(FOLDER / "report.css").read_text(encoding="utf-8"),
        colour=lambda index: drawing.style(index)[1],
        grouped=grouped,
        arm=data.arm,
        still=lambda panel: drawing.svg(next(names), panel),
        figure_data=lambda figure: embedded(data.figure(figure)),
        script=script,
        hashes=f"'{sha256(script)}' '{library_hash}'",
        library=library if any(isinstance(b, Figure) for b in blocks) else "",
    )
    return CONTROL.sub("\ufffd", page)


@cache
def plotly() -> tuple[str, str]:
    """(Plotly's script, gzipped, in base64; its hash)."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode(), sha256(script)


def sha256(script: str) -> str:
    """As a content security policy names a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
