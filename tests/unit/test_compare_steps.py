"""Step records by columns: equal to reading line by line, whatever lines a run may have left."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.study.step_records import BINS, binned, edges, read_columns, summarise
from zslx.runs.json_files import read_lines
from zslx.runs.records import RunRecords, columns

pytest.importorskip("pyarrow")

values = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False)
)
lines = st.lists(st.dictionaries(st.sampled_from(["loss", "lr", "pcgrad/x", "ключ"]), values, max_size=4), max_size=20)


@settings(max_examples=100, deadline=None)
@given(rows=lines, torn=st.booleans())
def test_columns_equal_those_read_line_by_line(tmp_path_factory, rows, torn):
    folder = tmp_path_factory.mktemp("run")
    # A column is of one kind in a run: booleans do not turn into numbers.
    kinds = {k: isinstance(v, bool) for row in rows for k, v in row.items() if v is not None}
    rows = [{k: v for k, v in row.items() if v is None or isinstance(v, bool) == kinds[k]} for row in rows]
    with RunRecords(folder) as records:
        for step, row in enumerate(rows, 1):
            records.append_step({"step": step, **row})
    path = folder / "steps.jsonl"
    if torn:
        with path.open("ab") as file:
            file.write(b'{"step": 99, "loss": 1')
    if not path.exists():
        return
    expected = columns(read_lines(path))
    found = read_columns(path)
    assert set(found) == set(expected)
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-15)


def test_a_column_may_turn_fractional_after_megabytes_of_whole_numbers(tmp_path):
    with RunRecords(tmp_path) as records:
        for step in range(1, 60_001):
            records.append_step({"step": step, "m/x": 0 if step < 60_000 else 0.5, "note": "text is left out"})
    found = read_columns(tmp_path / "steps.jsonl")
    assert set(found) == {"step", "m/x"} and found["m/x"][-1] == 0.5 and len(found["step"]) == 60_000


def test_damage_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\xff\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"steps\.jsonl: "):
        read_columns(path)
    path.write_bytes(b'{"step": 1')
    assert read_columns(path) == {}


def test_the_summary_has_shares_medians_and_binned_metrics(tmp_path):
    with RunRecords(tmp_path) as records:
        for step in range(1, 101):
            line = {
                "step": step,
                "tokens": 10 * step,
                "loss": 3.0,
                "clipped": step <= 25,
                "grad_norm": step,
                "pcgrad/x": step,
            }
            records.append_step(line | ({"skipped": True} if step == 7 else {}))
    found = summarise(tmp_path / "steps.jsonl", unit=10, horizon=100)
    assert (found.clipped, found.skipped, found.grad_norm) == (0.25, 0.01, 50.5)
    x = found.metrics["pcgrad/x"]
    inside = np.isfinite(x)
    assert x.shape == (BINS,) and np.all(np.diff(x[inside]) > 0)
    assert np.all((x >= edges(100)[:-1] - 1e-6)[inside]) and np.all((x <= edges(100)[1:] + 1e-6)[inside])


def test_bins_leave_out_what_is_not_finite_or_after_the_horizon():
    found = binned(np.array([1.0, 1.0, 50.0]), np.array([2.0, np.nan, 9.0]), 10)
    assert found[0] == 2.0 and np.isnan(found[1:]).all()
