"""The view on a terminal shows what the records say, each line of them read once; no name can reach the terminal."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from sweeps.live import Row, View, sparkline
from sweeps.study import build
from zslx.runs.records import RunRecords
from zslx.tracking.follow import Follower


@pytest.fixture
def trials(tiny):
    return build(("ema",), "smoke", sizes=["0.1M"], seeds=(0, 1), overrides=tiny.split()).trials


def shown(view: View, *args) -> str:
    with view.console.capture() as captured:
        view.console.print(view.page(*args))
    return captured.get()


def view_of(trials, height: int = 30) -> View:
    console = Console(file=io.StringIO(), force_terminal=True, width=110, height=height)
    return View(trials, console)


def probes(folder, *losses, first: int = 1) -> RunRecords:
    records = RunRecords(folder)
    for step, loss in enumerate(losses, first):
        records.append_probe({"step": step, "tokens": step, "heldout_loss": loss, "dt1_heldout": {"D": 0.25, "M": 1.0}})
    records.flush()
    return records


def test_rows_have_step_curve_loss_interference_and_time(trials, tmp_path):
    view = view_of(trials)
    probes(tmp_path / "a", 7.0, 6.0, 5.5).close()
    row = Row(trial=trials[0], step=120, left=45.0)
    text = shown(view, "0 of 4 trials done", 0.1, [(row, tmp_path / "a")])
    assert "0 of 4 trials done" in text and "baseline/0.1M/0" in text and "120/200" in text
    assert "█▄▁" in text and "5.5000" in text and "0.250" in text and "45 s" in text
    view.finished(trials[0], tmp_path / "a", failed=False)
    view.finished(trials[1], tmp_path / "none", failed=True)
    text = shown(view, "2 of 4 trials done", 0.5, [])
    assert "2/2  5.5000" in text and "0/2" in text, "an arm's trials that are done, and their mean loss"


def test_more_trials_than_lines_are_counted(trials, tmp_path):
    view = view_of(trials, height=10)
    rows = [(Row(trial=t, step=1, left=1.0), tmp_path / t.key) for t in trials]
    text = shown(view, "", 0.0, rows)
    assert "and 2 more" in text and len(text.splitlines()) <= 10


def test_names_cannot_reach_the_terminal(trials, tmp_path):
    import dataclasses

    hostile = dataclasses.replace(trials[0], arm="a\x1b[2J[bold]b[/bold]\x07" + "x" * 300)
    view = view_of([hostile])
    for text in (
        shown(view, "\x1b[2J", 0.0, [(Row(trial=hostile, step=1, left=1.0), tmp_path / "a")]),
        (view.finished(hostile, tmp_path / "a", False), shown(view, "", 1.0, []))[1],
    ):
        assert "\x1b[2J" not in text and "\x07" not in text and "[bold]b" in text
        assert max(map(len, text.splitlines())) < 200


def test_a_follower_gives_each_line_once_whatever_is_cut_and_written_again(tmp_path):
    records = probes(tmp_path, 7.0, 6.0, 5.5)
    follower = Follower(tmp_path / "probes.jsonl")
    assert [line["step"] for line in follower.new()] == [1, 2, 3] and follower.new() == []
    with (tmp_path / "probes.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "tor')
    assert follower.new() == [], "a line is given when it is whole"
    records.append_step({"step": 2, "tokens": 2, "loss": 1.0})
    records.flush()
    records.cut_to(2)
    assert follower.new() == []
    probes(tmp_path, 5.5, 5.0, first=3).close()
    assert [line["step"] for line in follower.new()] == [4], "step 3 was given before"
    assert Follower(tmp_path / "none").new() == []


def test_a_follower_finds_its_place_where_other_bytes_stand_in_a_file_that_was_cut(tmp_path):
    path = tmp_path / "probes.jsonl"
    lines = [json.dumps({"step": step, "x": "y" * 7 * step}) for step in range(6)]
    path.write_text("\n".join(lines[:3]) + "\n")
    follower = Follower(path)
    assert len(follower.new()) == 3
    path.write_text("\n".join(line.replace(" ", "") for line in lines) + "\n")
    found = follower.new() + follower.new()
    assert [line["step"] for line in found] == [3, 4, 5]


@pytest.mark.parametrize(
    ("values", "text"),
    [([], ""), ([5.0], "▁"), ([5.0, 5.0], "▁▁"), ([8.0, 4.0, 2.0], "█▅▁"), (list(range(100, 0, -1)), None)],
)
def test_sparklines(values, text):
    found = sparkline(values)
    assert found == text if text is not None else (len(found) == 18 and found[0] == "█" and found[-1] == "▁")
