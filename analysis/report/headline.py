"""The headline table as texts, and in a terminal: rich where there is one, plain and unwrapped otherwise.

One row an arm and size: held-out loss at T, its paired difference to baseline, the cut-robust tail slope, L_d, t_d and
r_d from the fit of the seeds' mean, and the cost of a step over the plain one; all with 95 % intervals over seeds. A
terminal too narrow for the columns gets one short list an arm instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO

from analysis.inference.answers import look, looked_before
from analysis.inference.pooled_breaks import BREAK_MEASURES
from analysis.inference.rows import Cell, Comparison, Failure
from analysis.numbers import MISSING, difference, milliseconds, plus_minus, printable, ranged
from analysis.report.blocks import Table

Rows = list[tuple[bool, tuple[str, ...]]]  # whether a group begins, the texts
COLUMNS = (
    "size",
    "arm",
    "held-out loss at T",
    "difference to baseline",
    "tail slope",
    "L_d",
    "t_d",
    "r_d",
    "step cost",
)


CURVE_NAMES = {"training": "training loss", "heldout": "held-out loss"}
PARENTHESES = "In parentheses: the data do not place the break, and the number describes the fit but claims nothing."


def headline(comparison: Comparison) -> Table:
    """The table as texts."""
    curve = CURVE_NAMES[comparison["protocol"]["curve"]]
    return Table(
        columns=COLUMNS,
        rows=tuple(map(headline_row, comparison["cells"])),
        heads=2,
        caption="Means over seeds with 95 % t intervals; differences are paired by seed, in per cent of the loss "
        "(below 0: better). Tail slope: −d log L / d log t over the last factor of 4. L_d, t_d and r_d: loss, step and "
        f"slope of the deceleration, from one fit of the mean log {curve} of all seeds. {PARENTHESES} Step cost: over "
        "the baseline's, paired." + (f" {look(comparison['looks'])}." if comparison["looks"] else ""),
    )


def headline_row(cell: Cell) -> tuple[str, ...]:
    return (
        cell["size"],
        cell["arm"],
        plus_minus(cell["heldout_loss"], 4),
        difference(cell["difference"]),
        plus_minus(cell["tail_slope"], 4),
        *(measure(cell, name) for name in BREAK_MEASURES),
        plus_minus(cell["cost"], 2, "×") if cell["difference"] else milliseconds(cell["step_seconds"]),
    )


def measure(cell: Mapping[str, Any], name: str) -> str:
    """L_d, t_d or r_d of a cell with its interval, in parentheses where the break is not identified."""
    found = cell[name]
    if not found:
        return MISSING
    text = ranged(found, 0) if name == "t_d" else plus_minus(found, {"r_d": 4}.get(name, 3))
    return text if found["identified"] else f"({text})"


def print_comparison(comparison: Comparison, file: TextIO) -> None:
    """Table, answers and what to do next, for a terminal or a pipe."""
    from rich.console import Console

    console = Console(file=file, highlight=False, soft_wrap=not file.isatty())
    table = headline(comparison)
    rows = [(new, tuple(printable(t) if i < 2 else t for i, t in enumerate(row))) for new, row in table.grouped()]
    if not console.is_terminal:
        file.write(plain(table.columns, rows) + "\n")
    elif sum(widths(table.columns, rows)) + 3 * len(table.columns) <= console.width:
        console.print(_rich_table(table.columns, rows))
    else:
        _print_cards(console, table.columns, rows)
    for line in closing_lines(comparison):
        console.print(line, markup=False, style="bold" if line.startswith("→") else None)


def closing_lines(comparison: Comparison) -> list[str]:
    """Answers, failures and the command for a verdict."""
    lines = []
    for answer in comparison["answers"]:
        head, command = "exploratory: " if answer["exploratory"] else "", answer["verdict_command"]
        more = f" For a verdict: {printable(command, 600)}" if answer["exploratory"] and command else ""
        lines.append(f"→ {head}{printable(answer['sentence'], 600)}{more}")
    lines += [f"→ {printable(row['sentence'], 600)}" for row in comparison.get("imported") or []]
    lines += [printable(line, 600) for line in looked_before(comparison)]
    finished, every = comparison["trials"].get("finished", 0), sum(comparison["trials"].values())
    if finished < every:
        others = ", ".join(f"{n} {status}" for status, n in comparison["trials"].items() if status != "finished")
        lines.append(f"{finished} of {every} trials finished ({printable(others)}):")
        lines += [failure_line(f) for f in comparison["failures"][:10]]
        if len(comparison["failures"]) > 10:
            lines.append(f"  and {len(comparison['failures']) - 10} more (in the report)")
    return lines


def failure_line(failure: Failure) -> str:
    """What failed and the last line of why."""
    why = failure["error"].strip().splitlines()[-1:] or [""]
    what = f"{printable(failure['arm'])} {printable(failure['size'])} seed {failure['seed']}"
    return f"  {what}: {failure['status']} {printable(why[0], 200)}".rstrip()


def widths(columns: tuple[str, ...], rows: Rows) -> list[int]:
    """Cells that each column takes."""
    from rich.cells import cell_len

    return [max(map(cell_len, column)) for column in zip(columns, *(row for _, row in rows), strict=True)]


def plain(columns: tuple[str, ...], rows: Rows) -> str:
    """Padded columns, one line a row however long, an empty line before each group."""
    from rich.cells import cell_len

    wide = widths(columns, rows)
    lines = []
    for new, row in [(False, columns), *rows]:
        padded = (text + " " * (w - cell_len(text)) for text, w in zip(row, wide, strict=True))
        lines += [*([""] if new else []), "  ".join(padded).rstrip()]
    return "\n".join(lines)


def _rich_table(columns: tuple[str, ...], rows: Rows) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        shown.add_column(column, no_wrap=True, justify="left" if i < 2 else "right")
    for number, (new, row) in enumerate(rows):
        if new and number:
            shown.add_section()
        shown.add_row(*map(escape, row))
    return shown


def _print_cards(console: Any, columns: tuple[str, ...], rows: Rows) -> None:
    """A short list for each arm: nothing wraps in 50 columns."""
    size = ""
    for _, row in rows:
        size = row[0] or size
        console.print(f"{size}  {row[1]}", markup=False, style="bold")
        for name, text in zip(columns[2:], row[2:], strict=True):
            if text != MISSING:
                console.print(f"  {name:<22} {text}", markup=False)
        console.print()
