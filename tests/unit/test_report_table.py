"""The terminal table: plain and unwrapped in a pipe, legible when narrow, names that cannot act."""

import io

import pytest

from analysis.numbers import (
    change,
    count,
    difference,
    milliseconds,
    number,
    p_value,
    percent,
    plus_minus,
    printable,
    ranged,
)
from analysis.report.blocks import Table
from analysis.report.headline import COLUMNS, headline, print_comparison

LONG = "x" * 300


def cell(size: str, arm: str, **values) -> dict:
    empty = {"tail_slope": None, "L_d": None, "t_d": None, "r_d": None, "cost": None, "step_seconds": None}
    interval = {"mean": 3.4, "low": 3.38, "high": 3.42, "n": 3}
    return empty | {
        "size": size, "arm": arm, "finished": 3, "heldout_loss": interval, "break_status": {"no_break": 3},
        "difference": None,
    } | values  # fmt: skip


def comparison(**values) -> dict:
    contrast = {"estimate": -0.01, "low": -0.02, "high": 0.001}
    cells = [
        cell(s, a, difference=contrast if a != "baseline" else None) for s in ("1M", "2M") for a in ("baseline", LONG)
    ]
    return {
        "cells": cells,
        "answers": [
            {
                "sentence": "arm: no effect found \x1b[31m",
                "exploratory": True,
                "verdict_command": "make sweep PRESET=verdict",
            }
        ],
        "trials": {"finished": 11, "failed": 1},
        "failures": [{"arm": "[bold]a[/]", "size": "1M", "seed": 0, "status": "failed", "error": "Trace\n\x1b[2JOops"}],
        "exploratory": True,
        "verdict_command": "make sweep PRESET=verdict",
        "protocol": {"curve": "training"},
        "looks": None,
        "contrasts": [],
        "sizes": [{"size": "1M"}, {"size": "2M"}],
    } | values


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(file, monkeypatch=None, width=None) -> list[str]:
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
    print_comparison(comparison(), file)
    return file.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()


def test_a_pipe_gets_one_unwrapped_line_a_row_without_escapes():
    lines = printed(io.StringIO())
    rows = [line for line in lines if line.startswith(("1M", "2M")) or "xxx" in line]
    assert len(rows) == 4 and len({line.index("3.4000 ± 0.0200") for line in rows}) == 1
    assert lines[0].split("  ")[0] == "size" and "\x1b" not in "".join(lines)
    answer = next(line for line in lines if line.startswith("→"))
    assert answer.endswith("For a verdict: make sweep PRESET=verdict")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_nothing_is_cut_or_wrapped_inside_a_number_at_any_width(width, monkeypatch):
    lines = printed(Terminal(), monkeypatch, width)
    text = "\n".join(lines)
    assert text.count("3.4000 ± 0.0200") == 4 and text.count("−1.00 % [−1.98, +0.10]") == 2
    assert max(map(len, lines)) <= width


def test_names_cannot_move_the_cursor_or_style_the_text(monkeypatch):
    for file in (io.StringIO(), Terminal()):
        text = "\n".join(printed(file, monkeypatch, 200))
        assert "\\x1b[31m" in text and "\x1b[31m" not in text and "\x1b[2J" not in text
        assert "[bold]a[/]" in text
    assert printable("a\u202eb\nc") == "a\\u202eb\\nc" and len(printable(LONG)) == 40


def test_rows_of_a_group_name_it_once():
    table = Table(columns=("a", "b", "c"), rows=(("1", "x", "1"), ("1", "y", "1"), ("2", "y", "1")), heads=2)
    assert table.grouped() == [(True, ("1", "x", "1")), (False, ("", "y", "1")), (True, ("2", "y", "1"))]


def test_the_headline_has_a_text_for_every_column():
    table = headline(comparison())
    assert table.columns == COLUMNS and all(len(row) == len(COLUMNS) for row in table.rows)


def test_numbers_as_text():
    mean = {"mean": 3.4123, "low": 3.4, "high": 3.4246}
    assert plus_minus(mean, 3) == "3.412 ± 0.012" and plus_minus(None, 3) == "–"
    assert plus_minus({"mean": -1.0, "low": None, "high": None}, 1) == "−1.0"
    assert ranged({"mean": 208.4, "low": 152.2, "high": 286.0}, 0) == "208 [152, 286]"
    assert ranged({"mean": 2.0, "low": 1e-9, "high": 1e12}, 0) == "2 [no bound]"
    assert difference({"estimate": 0.01, "low": -2000.0, "high": 2000.0}) == "+1.01 % [no bound]"
    assert difference({"estimate": -0.03, "low": -0.04, "high": 0.01}) == "−2.96 % [−3.92, +1.01]"
    assert difference({"estimate": 0.01, "low": -800.0, "high": 800.0}) == "+1.01 % [no bound]", "of two seeds"
    assert number({"estimate": 0.01365, "low": 0.01217, "high": 0.01515}) == "+0.0137 [+0.0122, +0.0152]"
    assert milliseconds({"mean": 0.0123}) == "12.3 ms"
    assert [percent(x) for x in (0.0041, 0.123, 0.0, 0.00001)] == ["0.41 %", "12 %", "0 %", "0.0010 %"]
    assert change(-0.03) == "3.0 % lower" and change(0.0) == "unchanged" and count(1, "seed") == "1 seed"
    assert [p_value(p) for p in (1e-6, 0.0042, 0.3, None)] == ["< 0.0001", "0.0042", "0.30", "–"]
