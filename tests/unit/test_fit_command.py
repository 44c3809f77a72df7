"""`zslx fit` on good files, bad files and both."""

import argparse
import json

import numpy as np
import pytest

from zslx.commands import fit
from zslx.commands.cli import main
from zslx.deceleration.break_status import STATUSES

KEYS = (
    *("file", "status", "b", "c0", "c1", "d1", "f1", "L_d", "t_d", "r_d", "L_T_hat", "L_T", "rsle"),
    *("breaks", "ci95", "ci_method", "sensitivity"),
)


def zslx_fit(*arguments):
    parser = argparse.ArgumentParser()
    fit.add_arguments(parser)
    return fit.run(parser.parse_args([str(a) for a in arguments]))


@pytest.fixture
def good(tmp_path):
    steps = np.arange(1, 1501)
    noise = np.random.default_rng(0).normal(0, 0.005, steps.size)
    losses = 12 * steps**-0.25 * (1 + (steps / 150) ** 4.0) ** (0.2 / 4) * np.exp(noise)
    path = tmp_path / "good.csv"
    path.write_text("step,loss\n" + "".join(f"{s},{float(y)}\n" for s, y in zip(steps, losses, strict=True)))
    return path


def strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_one_list_in_the_order_of_the_arguments(good, tmp_path, capsys):
    line = tmp_path / "line.csv"
    line.write_text("loss,extra,step\n" + "".join(f"{5 * s**-0.1},x,{s}\n" for s in range(1, 400)))
    assert zslx_fit(line, good, "--json", "--bootstrap", 200) == 0
    first, second = strict(capsys.readouterr().out)
    assert [first["file"], second["file"]] == [str(line), str(good)]
    assert first["status"] == "no_break" and first["L_d"] is None
    assert set(first["ci95"]) == {"L_d", "t_d", "r_d", "L_T_hat"} and first["ci95"]["t_d"] is None
    assert second["status"] == "break" and abs(second["t_d"] / 150 - 1) < 0.1
    low, high = second["ci95"]["t_d"]
    assert low < second["t_d"] < high
    for record in (first, second):
        assert set(KEYS) <= set(record)


def test_csv_json_lines_and_run_folder_are_the_same_curve(good, tmp_path, capsys):
    rows = [line.split(",") for line in good.read_text().split()[1:]]
    lines = "".join(json.dumps({"step": int(s), "loss": float(y), "lr": 1e-3}) + "\n" for s, y in rows)
    (tmp_path / "curve.jsonl").write_text(lines)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "steps.jsonl").write_text(lines)
    (folder / "config.json").write_text('{"optim": {"warmup": 7}}')
    assert zslx_fit(good, tmp_path / "curve.jsonl", folder, "--json", "--bootstrap", 0) == 0
    csv, jsonl, run = strict(capsys.readouterr().out)
    assert csv["t_d"] == jsonl["t_d"] and (csv["transient"], run["transient"]) == (7, 7)
    assert [r["of"] for r in run["sensitivity"]].count("warm-up") == 4


def test_duplicate_rows_and_blank_lines_are_dropped(good, tmp_path, capsys):
    lines = good.read_text().splitlines()
    doubled = tmp_path / "doubled.csv"
    doubled.write_text("\n".join([lines[0], *(f"{line}\n{line}\n" for line in lines[1:])]))
    assert zslx_fit(good, doubled, "--json", "--bootstrap", 0) == 0
    one, two = strict(capsys.readouterr().out)
    assert one.pop("file") != two.pop("file") and one == two
    doubled.write_text("\n".join([*lines, *lines[50:90]]))  # a log that was appended again
    assert zslx_fit(good, doubled, "--json", "--bootstrap", 0) == 0
    one, two = strict(capsys.readouterr().out)
    assert one.pop("file") != two.pop("file") and one == two


BAD = {
    "empty": (b"", ": the file is empty"),
    "blank": (b"\n\n", ": the file is empty"),
    "header": (b"step,loss\n", ": no row with a `step` and a `loss`"),
    "semicolons": (b"step;loss\n1;3\n", ":1: one column `step` is needed, and commas between columns; the header has"),
    "twice the column": (b"step,loss,loss\n1,3,3\n", ":1: one column `loss` is needed"),
    "before training": (b"step,loss\n0,7.6\n", ": no row with a step above 0"),
    "nan": (b"step,loss\n1,3\n2,nan\n", ":3: loss is 'nan'"),
    "infinite": (b"step,loss\n1,3\n2,-inf\n", ":3: loss is '-inf'"),
    "text": (b"step,loss\n1,3\n2,abc\n", ":3: loss is 'abc'"),
    "python": (b"step,loss\n1,3\n1_0,2\n", ":3: step is '1_0'"),
    "array": (b'[{"step": 1, "loss": 3}]', ": a JSON array; JSON lines are needed"),
    "missing value": (b"step,loss\n1,3\n2\n", ":3: the row has 1 of 2 columns"),
    "backwards": (b"step,loss\n2,3\n1,3\n", ":3: steps must increase, 1 comes after 2"),
    "same step": (b"step,loss\n2,3\n2,4\n", ":3: steps must increase"),
    "half step": (b"step,loss\n1.5,3\n", ":2: step is 1.5"),
    "zero": (b"step,loss\n1,3\n2,0\n", ":3: loss is 0"),
    "no column": (b"epoch,loss\n1,3\n", ":1: one column `step`"),
    "random": (bytes(np.random.default_rng(0).integers(0, 256, 999, dtype=np.uint8)), ": not a text file"),
    "zeros": (b"\0" * 500, ":1: one column `step`"),
    "quote": (b'step,loss\n1,"3\n' + b"2,3\n" * 70000, ":"),
    "json": (b'{"step": 1, "loss": 3}\n{"step": 2, "lo\n', ":2: not a line of JSON"),
    "json null": (b'{"step": 1, "loss": null}\n', ":1: loss is null"),
    "json keys": (b'{"step": 1}\n', ":1: an object with `step` and `loss`"),
    "json list": (b'{"step": 1, "loss": [3]}\n', ":1: loss is '[3]'"),
    "escape": (b"step,loss\n1,\x1b[31mred\n", ":2: loss is '\\x1b[31mred'"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("flags", [[], ["--json"], ["--protocol", "paper"]])
def test_a_bad_file_is_one_clear_line_and_an_exit_code(name, flags, tmp_path, capsys):
    content, message = BAD[name]
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    assert zslx_fit(path, *flags) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"{path}{message}" in err and err[:-1].isprintable()


def test_a_missing_file_and_a_folder_without_records(tmp_path, capsys):
    assert zslx_fit(tmp_path / "none.csv", tmp_path) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "none.csv: No such file" in first and "steps.jsonl: No such file" in second


def test_a_bad_warm_up_is_refused(tmp_path, capsys):
    (tmp_path / "steps.jsonl").write_text('{"step": 1, "loss": 3}\n')
    for config in ("{", '{"optim": {"warmup": "x"}}', '{"optim": 3}', "[]"):
        (tmp_path / "config.json").write_text(config)
        assert zslx_fit(tmp_path) == 1
        assert "config.json" in capsys.readouterr().err


def test_one_bad_file_does_not_spoil_the_others(good, tmp_path, capsys):
    assert zslx_fit(tmp_path / "none.csv", good, "--json", "--bootstrap", 0) == 1
    out, err = capsys.readouterr()
    bad, fine = strict(out)
    assert bad["status"] == "error" and bad["L_d"] is None and "No such file" in bad["error"]
    assert fine["status"] == "break" and err.count("\n") == 1


@pytest.mark.parametrize("flags", [[], ["--protocol", "paper"], ["--breaks", "2"], ["--robust"], ["--irreducible"]])
def test_short_curves_get_a_status(flags, tmp_path, capsys):
    for size in (1, 2, 3, 5, 9):
        path = tmp_path / f"{size}.csv"
        path.write_text("step,loss\n" + "".join(f"{s},{4 - 0.1 * s}\n" for s in range(1, size + 1)))
        assert zslx_fit(path, *flags) == 0
        out, err = capsys.readouterr()
        assert "status  " in out and err == ""


def test_the_terminal_gets_a_table_without_control_characters(good, tmp_path, capsys):
    odd = tmp_path / "a\x1b[31m.csv"
    odd.write_bytes(good.read_bytes())
    assert zslx_fit(odd, "--bootstrap", 100) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "t_d" in out and "with other choices" in out and "bootstrap" in out


@pytest.mark.parametrize(
    "flags", [["--transient", "-1"], ["--forecast", "1.5"], ["--smoothing", "box"], ["--bootstrap", "x"]]
)
def test_bad_flags_are_usage_errors(flags, good, capsys):
    with pytest.raises(SystemExit) as error:
        zslx_fit(good, *flags)
    assert error.value.code == 2 and flags[0] in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--protocol", "paper", "--robust"], ["--bootstrap", "7"]])
def test_flags_that_cannot_be_used_are_one_line_however_many_files(flags, good, capsys):
    assert main(["fit", str(good), str(good), *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and flags[0].strip("-") in err


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("flags", [["--irreducible"], ["--forecast", "0.5"], ["--smoothing", "none", "--warmup", "50"]])
def test_losses_near_the_ends_of_what_a_float_holds_are_fitted_in_silence(flags, tmp_path, capsys):
    path = tmp_path / "wild.csv"
    path.write_text("step,loss\n" + "".join(f"{s},{10.0 ** ((-1) ** s * 300)}\n" for s in range(1, 60)))
    assert zslx_fit(path, "--bootstrap", 0, "--json", *flags) == 0
    assert strict(capsys.readouterr().out)[0]["status"] in STATUSES
    assert zslx_fit(path, "--bootstrap", 0, *flags) == 0
    assert capsys.readouterr().err == ""


def test_forecast_stands_beside_a_power_law(good, capsys):
    assert zslx_fit(good, "--forecast", 0.5, "--bootstrap", 50, "--json") == 0
    (record,) = strict(capsys.readouterr().out)
    f = record["forecast"]
    assert f["seen"] == 750 and f["at"] == 1500 and abs(f["fit"]["error"]) < 0.05
    assert f["fit"]["interval"][0] < f["fit"]["L"] < f["fit"]["interval"][1] and "error" in f["power_law"]
    assert zslx_fit(good, "--forecast", 0.5, "--bootstrap", 50) == 0
    assert "forecast of L at step 1500 from the first 750 steps" in capsys.readouterr().out
    assert zslx_fit(good, "--forecast", 0.001, "--bootstrap", 0) == 0
    assert "a forecast needs 8" in capsys.readouterr().out


def test_cut_robust_measures_are_in_the_record(good, capsys):
    assert zslx_fit(good, "--bootstrap", 0, "--json") == 0
    (record,) = strict(capsys.readouterr().out)
    value, low, high = record["tail_slope"]
    assert low < value < high
    slope = record["local_slope"]
    assert len(slope["steps"]) == len(slope["value"]) > 10 and slope["value"][0] > slope["value"][-1]
    assert record["loss_at"]["steps"][-1] == 1500


def test_the_papers_protocol_says_when_it_smooths_a_second_time(tmp_path, capsys):
    path = tmp_path / "thinned.csv"
    path.write_text("step,loss\n" + "".join(f"{s},{9 * s**-0.1}\n" for s in range(100, 20_000, 100)))
    hint = "thinned.csv: its points are 100 steps apart, so it may be smoothed already"
    assert zslx_fit(path, "--json", "--protocol", "paper", "--bootstrap", 0) == 0
    assert hint in capsys.readouterr().err
    assert zslx_fit(path, "--json", "--protocol", "paper", "--smoothing", "none", "--bootstrap", 0) == 0
    assert not capsys.readouterr().err


def test_columns_of_other_names(good, tmp_path, capsys):
    """An export of a tracker: other names, and rows in which the metric was not logged."""
    rows = [line.split(",") for line in good.read_text().split()[1:]]
    export = tmp_path / "export.csv"
    export.write_text("_step,lr,probe/heldout_loss\n" + "".join(f"{s},1,{y}\n{s},2,\n" for s, y in rows))
    lines = tmp_path / "export.jsonl"
    lines.write_text("".join(json.dumps({"_step": int(s), "probe/heldout_loss": float(y)}) + "\n" for s, y in rows))
    columns = ("--columns", "_step,probe/heldout_loss", "--json", "--bootstrap", 0)
    assert zslx_fit(good, "--json", "--bootstrap", 0) == 0
    [plain] = strict(capsys.readouterr().out)
    assert zslx_fit(export, lines, *columns) == 0
    for found in strict(capsys.readouterr().out):
        assert {k: v for k, v in found.items() if k != "file"} == {k: v for k, v in plain.items() if k != "file"}


def test_a_file_with_other_columns_lists_them_and_says_how_to_name_them(tmp_path, capsys):
    names = ["_step", *(f"probe/instrument_{i}" for i in range(8)), "probe/heldout_loss"]
    csv, lines = tmp_path / "export.csv", tmp_path / "export.jsonl"
    csv.write_text(",".join(names) + "\n")
    lines.write_text(json.dumps(dict.fromkeys(names, 5)) + "\n")
    assert zslx_fit(csv) == zslx_fit(lines) == 1
    for error in capsys.readouterr().err.splitlines():
        assert f"'{', '.join(names)}' (--columns STEP,LOSS says which two to read)" in error


def test_columns_that_no_row_has(tmp_path, capsys):
    path = tmp_path / "export.jsonl"
    path.write_text('{"_step": 1, "loss": 3}\n{"_step": 2, "loss": 3}\n')
    assert zslx_fit(path, "--columns", "_step,heldout") == 1
    assert "no row with a `_step` and a `heldout`" in capsys.readouterr().err


def test_rows_of_json_lines_without_the_loss_are_skipped_where_columns_are_named(good, tmp_path, capsys):
    path = tmp_path / "sparse.jsonl"
    rows = [line.split(",") for line in good.read_text().split()[1:]]
    path.write_text("".join(f'{{"t": {s}}}\n{{"t": {s}, "y": {y}}}\n' for s, y in rows))
    assert zslx_fit(path, "--columns", "t,y", "--json", "--bootstrap", 0) == 0
    assert zslx_fit(good, "--json", "--bootstrap", 0) == 0
    sparse, plain = capsys.readouterr().out.split("]\n[")
    assert sparse.partition("status")[2] == plain.partition("status")[2].rstrip()[:-1]


def test_a_byte_order_mark_is_no_part_of_the_header(good, tmp_path, capsys):
    path = tmp_path / "bom.csv"
    path.write_bytes(b"\xef\xbb\xbf" + good.read_bytes())
    assert zslx_fit(path, "--bootstrap", 0) == 0


def test_help_states_the_format_of_the_files(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("header line", "commas", "`step`", "`loss`", "nats per token", "--columns"))


@pytest.mark.parametrize("text", ["step", "step,", ",loss", "a,b,c", "loss,loss"])
def test_bad_column_names_are_a_usage_error(text, good):
    with pytest.raises(SystemExit):
        zslx_fit(good, "--columns", text)
