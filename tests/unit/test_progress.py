"""Progress on stderr: silent for short work, a line a stage, the time left from the rate since the start."""

from __future__ import annotations

import pytest

from zslx.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_short_work_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress("text")
    for share in (0.0, 0.5, 0.9):
        bar.at(share, "reading")
        clock[0] += 0.3
    bar.done("prepared")
    assert capsys.readouterr().err == ""


def test_the_time_left_counts_from_where_resumed_work_began(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Progress("training")
    bar.at(0.5, "step")
    clock[0] += 20
    bar.at(0.6, "step")  # a tenth in 20 s: the other four tenths take 80 s
    clock[0] += 5
    bar.at(0.61, "step")  # too soon for another line
    bar.at(0.61, "saving")
    bar.done("trained")
    assert capsys.readouterr().err.splitlines() == [
        "training: step (60%, 80 s left)",
        "training: saving (61%, 89 s left)",
        "training: trained (25 s)",
    ]


def test_a_terminal_gets_one_line_redrawn(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bar = Progress("text")
    bar.at(0, "a")
    clock[0] += 2
    bar.at(0.5, "a long stage")
    clock[0] += 2
    bar.at(0.8, "b")
    bar.say("waiting")
    assert capsys.readouterr().err == (
        "text: a long stage (50%, 2 s left)\rtext: b (80%, 1 s left)           \rtext: waiting          \n"
    )


def test_disabled_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress("text", enabled=False)
    clock[0] += 50
    bar.at(0.5, "reading")
    bar.say("waiting")
    bar.done("prepared")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 s"), (45, "45 s"), (89, "89 s"), (720, "12 min"), (5940, "99 min"), (12000, "3 h 20 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
