"""The headline table as texts, and in a terminal: rich where there is one, plain and unwrapped otherwise.

One row an arm and size: held-out loss at T, its paired difference to baseline, the cut-robust tail slope,
L_d, t_d, r_d with the number of trials whose break is identified, and the cost of a step over the plain
one; all with 95 % t intervals over seeds. A terminal too narrow for the columns gets one short list an arm
instead.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any, TextIO

from analysis.blocks import Table

NAME_WIDTH = 40
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
MISSING = "–"


def headline(comparison: Mapping[str, Any]) -> Table:
    """The table as texts."""
    rows: list[tuple[str, ...]] = []
    breaks: set[int] = set()
    last = None
    for cell in comparison["cells"]:
        if cell["size"] != last:
            breaks.add(len(rows))
        rows.append(headline_row(cell, first=cell["size"] != last))
        last = cell["size"]
    return Table(
        columns=COLUMNS,
        rows=tuple(rows),
        heads=2,
        breaks=frozenset(breaks),
        caption="Means over seeds with 95 % t intervals; differences are paired by seed, in per cent of the loss "
        "(below 0: better). L_d, t_d and r_d over the trials whose break is identified (k/n); where none is, the "
        "tail slope (−d log L / d log t over the last factor of 4) stands. Step cost: over the baseline's, paired.",
    )


def headline_row(cell: Mapping[str, Any], first: bool) -> tuple[str, ...]:
    found = cell["break_status"].get("break", 0)
    known = f" ({found}/{cell['finished']})"
    breaks = [ranged(cell["L_d"], 3), ranged(cell["t_d"], 0), plus_minus(cell["r_d"], 4)]
    return (
        cell["size"] if first else "",
        cell["arm"],
        plus_minus(cell["heldout_loss"], 4),
        difference(cell["difference"]),
        plus_minus(cell["tail_slope"], 4),
        *(text + known if found else f"{MISSING}{known}" for text in breaks[:1]),
        *(text if found else MISSING for text in breaks[1:]),
        plus_minus(cell["cost"], 2, "×") if cell["difference"] else milliseconds(cell["step_seconds"]),
    )


def milliseconds(found: Mapping[str, Any] | None) -> str:
    return f"{1000 * found['mean']:.3g} ms" if found else MISSING


def plus_minus(found: Mapping[str, Any] | None, digits: int, unit: str = "") -> str:
    """`3.4120 ± 0.0140`; without interval the mean alone."""
    if not found:
        return MISSING
    half = "" if found["low"] is None else f" ± {(found['high'] - found['low']) / 2:.{digits}f}"
    return minus(f"{found['mean']:.{digits}f}{half}{unit and ' ' + unit}")


def ranged(found: Mapping[str, Any] | None, digits: int) -> str:
    """`506 [410, 624]`, for intervals that are not symmetric."""
    if not found:
        return MISSING
    low, high = found["low"], found["high"]
    if low is None:
        return f"{found['mean']:.{digits}f}"
    if high > 1e6 * max(found["mean"], 1e-12):  # two seeds far apart: the interval says nothing
        return f"{found['mean']:.{digits}f} [no bound]"
    return f"{found['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def difference(found: Mapping[str, Any] | None) -> str:
    """`−2.91 % [−3.33, −2.50]` of a contrast of log loss."""
    if not found:
        return MISSING
    low, high = found["low"], found["high"]
    bounds = "" if low is None else f" [{100 * math.expm1(low):+.2f}, {100 * math.expm1(high):+.2f}]"
    return minus(f"{100 * math.expm1(found['estimate']):+.2f} %{bounds}")


def minus(text: str) -> str:
    return text.replace("-", "−")


def printable(name: str, width: int = NAME_WIDTH) -> str:
    """A name that cannot move the cursor or change colours: control characters escaped, shortened to `width`."""
    shown = "".join(
        c if unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in name
    )
    return shown if len(shown) <= width else shown[: width - 1] + "…"


def print_comparison(comparison: Mapping[str, Any], file: TextIO) -> None:
    """Table, answers and what to do next, for a terminal or a pipe."""
    from rich.console import Console

    console = Console(file=file, highlight=False, soft_wrap=not file.isatty())
    table = headline(comparison)
    rows = [
        tuple(printable(text) if i < table.heads else text for i, text in enumerate(r)) for r in table.rows
    ]
    if not console.is_terminal:
        file.write(plain(table.columns, rows, table.breaks) + "\n")
    elif sum(widths(table.columns, rows)) + 2 * len(table.columns) <= console.width:
        console.print(_rich_table(table, rows))
    else:
        _print_cards(console, table, rows)
    for line in closing_lines(comparison):
        console.print(line, markup=False, style="bold" if line.startswith("→") else None)


def closing_lines(comparison: Mapping[str, Any]) -> list[str]:
    """Answers, failures and the command for a verdict."""
    lines = [f"→ {printable(a['sentence'], 600)}" for a in comparison["answers"]]
    finished, every = comparison["trials"].get("finished", 0), sum(comparison["trials"].values())
    if finished < every:
        others = ", ".join(
            f"{n} {status}" for status, n in comparison["trials"].items() if status != "finished"
        )
        lines.append(f"{finished} of {every} trials finished ({others}):")
        for f in comparison["failures"][:10]:
            what = f"{printable(f['arm'])} {printable(f['size'])} seed {f['seed']}: {f['status']}"
            lines.append(
                f"  {what} {printable(f['error'].strip().splitlines()[-1] if f['error'].strip() else '', 200)}"
            )
        if len(comparison["failures"]) > 10:
            lines.append(f"  and {len(comparison['failures']) - 10} more (in the report)")
    command = comparison["verdict_command"]
    if comparison["exploratory"] and command:
        lines.append(f"exploratory (below 6 seeds or undeclared); for a verdict: {printable(command, 600)}")
    return lines


def widths(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[int]:
    from rich.cells import cell_len

    return [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]


def plain(columns: tuple[str, ...], rows: list[tuple[str, ...]], breaks: frozenset[int]) -> str:
    """Padded columns, one line a row however long."""
    from rich.cells import cell_len

    wide = widths(columns, rows)
    lines = []
    for number, row in enumerate([columns, *rows], -1):
        if number in breaks:
            lines.append("")
        lines.append(
            "  ".join(text + " " * (w - cell_len(text)) for text, w in zip(row, wide, strict=True)).rstrip()
        )
    return "\n".join(lines)


def _rich_table(table: Table, rows: list[tuple[str, ...]]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(table.columns):
        shown.add_column(column, no_wrap=True, justify="left" if i < table.heads else "right")
    for number, row in enumerate(rows):
        if number in table.breaks and number:
            shown.add_section()
        shown.add_row(*map(escape, row))
    return shown


def _print_cards(console: Any, table: Table, rows: list[tuple[str, ...]]) -> None:
    """A short list for each arm: nothing wraps in 50 columns."""
    size = ""
    for row in rows:
        size = row[0] or size
        console.print(f"{size}  {row[1]}", markup=False, style="bold")
        for name, text in zip(table.columns[2:], row[2:], strict=True):
            if not text.startswith(MISSING):
                console.print(f"  {name:<22} {text}", markup=False)
        console.print()
