"""The headline of a comparison for other programs: numbers as CSV, the table as LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

from analysis.inference.rows import Comparison
from analysis.numbers import printable
from analysis.report.blocks import Table
from analysis.report.headline import headline

MEASURES = ("heldout_loss", "tail_slope", "L_d", "t_d", "r_d", "cost")
FORMULA = re.compile(r"[=+\-@\t\r]")  # what a spreadsheet would compute
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "–": "--",
}  # fmt: skip


def csv_text(comparison: Comparison) -> str:
    """One line an arm and size: means with the ends of their 95 % intervals, the paired difference of log loss."""
    text = io.StringIO()
    ends = ("", "_low", "_high")
    columns = [f"{name}{end}" for name in (*MEASURES, "log_difference") for end in ends]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["size", "arm", "finished", *columns, "break_identified"])
    for cell in comparison["cells"]:
        found: Mapping[str, Any] = cell
        numbers = [value for name in MEASURES for value in _ends(found[name], "mean")]
        broken = cell["L_d"]
        placed = "" if broken is None else str(broken.get("identified", False)).lower()
        difference = _ends(cell["difference"], "estimate")
        names = (spreadsheet_text(cell["size"]), spreadsheet_text(cell["arm"]))
        writer.writerow([*names, cell["finished"], *numbers, *difference, placed])
    return text.getvalue()


def _ends(found: Mapping[str, Any] | None, middle: str) -> list[Any]:
    """Estimate and interval; empty where there is none."""
    return ["", "", ""] if not found else ["" if found[k] is None else found[k] for k in (middle, "low", "high")]


def spreadsheet_text(text: str) -> str:
    """A name that a spreadsheet shows and does not compute."""
    return f"'{text}" if FORMULA.match(text) else text


def latex_text(comparison: Comparison) -> str:
    """The headline table as a tabular; it needs \\usepackage{booktabs}."""
    return tabular(headline(comparison))


def tabular(table: Table) -> str:
    lines = [rf"\begin{{tabular}}{{{'l' * table.heads}{'r' * (len(table.columns) - table.heads)}}}", r"\toprule"]
    lines += [" & ".join(map(latex_escaped, table.columns)) + r" \\", r"\midrule"]
    for number, (new, row) in enumerate(table.grouped()):
        lines += [r"\addlinespace"] if new and number else []
        lines.append(" & ".join(latex_escaped(printable(text)) for text in row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def latex_escaped(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in text)
