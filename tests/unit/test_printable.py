"""Text of unknown origin reaches the terminal as text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zslx.commands import cli
from zslx.printable import one_line, printable


@given(st.text())
def test_nothing_that_is_printed_can_move_the_cursor(text: str):
    for shown in (printable(text), one_line(text)):
        assert shown.isprintable() or all(c.isprintable() or c.isspace() for c in shown)
        assert "\n" not in shown and "\x1b" not in shown and "\r" not in shown


def test_lines_are_joined_and_long_names_cut():
    assert one_line("one\n  two\n") == "one; two"
    assert printable("abcdef", 4) == "abc…" and printable("\x1b[31mred") == "\\x1b[31mred"


def test_an_error_of_the_command_line_is_one_harmless_line(capsys):
    assert cli.fail(ValueError("bad \x1b[2J name\nand more")) == 2
    assert capsys.readouterr().err == "zslx: error: bad \\x1b[2J name; and more\n"
