"""Records: durable appends, cut and resume equals never stopped, damage is named."""

import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zslx.config.run_config import Config
from zslx.runs.json_files import dumps, read_json, read_lines, write_json
from zslx.runs.records import LINE_FILES, RunRecords, columns, read_run
from zslx.runs.timing import time_totals


def fill(records: RunRecords, steps: range) -> None:
    for step in steps:
        records.append_step({"step": step, "tokens": 64 * step, "loss": 8 / step, "clipped": step % 3 == 0})
        if step & (step - 1) == 0:
            records.append_probe({"step": step, "heldout_loss": 9 / step, "dt1_batch": {"D": 0.5, "n": 4}})
        if step % 5 == 0:
            records.append_timing({"step": step, "seconds": 0.1})


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.jsonl").read_bytes() for name in LINE_FILES}


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 40), extra=st.integers(0, 12), torn=st.binary(max_size=30))
def test_cut_and_resume_equals_never_stopped_byte_for_byte(tmp_path_factory, cut, extra, torn):
    whole, resumed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("resumed")
    with RunRecords(whole) as records:
        fill(records, range(1, 53))
    with RunRecords(resumed) as records:
        fill(records, range(1, cut + extra + 1))
    for name in LINE_FILES:
        with (resumed / f"{name}.jsonl").open("ab") as file:
            file.write(torn.replace(b"\n", b""))
    with RunRecords(resumed) as records:
        records.cut_to(cut)
        fill(records, range(cut + 1, 53))
    assert contents(resumed) == contents(whole)


def test_cut_refuses_records_that_end_before_the_checkpoint(tmp_path):
    with RunRecords(tmp_path) as records:
        fill(records, range(1, 11))
        with pytest.raises(ValueError, match=r"steps\.jsonl ends at step 10, before .* at step 12"):
            records.cut_to(12)
    assert len(read_lines(tmp_path / "steps.jsonl")) == 10


def test_numbers_that_are_not_finite_become_null_and_numpy_values_numbers():
    line = {"a": math.nan, "b": [np.float32(0.5), -math.inf], "c": {"d": np.int64(3)}, "e": np.arange(2)}
    assert json.loads(dumps(line)) == {"a": None, "b": [0.5, None], "c": {"d": 3}, "e": [0, 1]}


def test_columns_have_nan_where_a_line_lacks_the_number():
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None, "pcgrad/negative": 0.25, "note": "x"}]
    table = columns(lines)
    assert set(table) == {"step", "loss", "pcgrad/negative"}
    np.testing.assert_array_equal(table["loss"], [2.0, np.nan])
    np.testing.assert_array_equal(table["pcgrad/negative"], [np.nan, 0.25])


@given(st.lists(st.tuples(st.floats(0, 1e3), st.integers(0, 5)), max_size=8))
@settings(max_examples=50, deadline=None)
def test_the_median_of_a_step_counts_the_median_of_a_line_once_a_step(found):
    lines = [
        {"step_seconds": s if n else None, "steps": n, "seconds": s * n, "instrument_seconds": 1} for s, n in found
    ]
    every = [seconds for seconds, steps in found for _ in range(steps)]
    totals = time_totals(lines)
    assert totals["median_step_seconds"] == (statistics.median(every) if every else 0.0)
    assert totals["seconds"] == totals["train_seconds"] + len(found)


def test_a_torn_last_line_is_left_out_and_any_other_damage_is_named(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    assert read_lines(path) == [{"step": 1}]
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"steps\.jsonl:2: "):
        read_lines(path)
    for bad in (b'{"step": NaN}\n', b"[1]\n", b"\xff\xfe\n", b"\n{}\n", b"[" * 100_000 + b"\n"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"steps\.jsonl:1: "):
            read_lines(path)


def test_steps_that_do_not_increase_are_refused(tmp_path):
    write_json(tmp_path / "config.json", Config().to_dict())
    (tmp_path / "probes.jsonl").write_text('{"step": 2}\n{"step": 2}\n')
    run = read_run(tmp_path)
    assert run.status == "running"
    with pytest.raises(ValueError, match=r"probes\.jsonl:2: step 2 does not come after 2"):
        _ = run.probes


def test_a_folder_that_holds_no_run_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        read_run(tmp_path)
    write_json(tmp_path / "config.json", Config().to_dict())
    write_json(tmp_path / "manifest.json", {"status": "done"})
    with pytest.raises(ValueError, match=r"manifest\.json: status 'done' is none of running, finished"):
        read_run(tmp_path)


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    write_json(path, {"status": "running"})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"status": "finished"})
    assert read_json(path) == {"status": "running"}
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_lines_flushed_before_a_kill_are_there(tmp_path):
    code = """
import os, signal, sys
from zslx.runs.records import RunRecords
records = RunRecords(sys.argv[1])
for step in range(1, 1001):
    records.append_step({"step": step, "loss": 1.0})
    if step == 700:
        records.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    steps = [line["step"] for line in read_lines(tmp_path / "steps.jsonl")]
    assert len(steps) >= 700 and steps == list(range(1, len(steps) + 1))
