"""`zslx compare` and `zslx report` rebuild everything from the records, without torch."""

import argparse
import csv
import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from analysis.commands import compare, figures, report
from analysis.report.blocks import Table
from analysis.report.print_figures import inches
from analysis.report.table_formats import csv_text, tabular
from analysis.simulation.study import BASELINE, SimulatedArm, write_study

ROOT = Path(__file__).parents[2]


def run(command, *argv) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(a) for a in argv]))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    arms = (BASELINE, SimulatedArm(name="pcgrad", intervention="pcgrad", effect=-0.02))
    return write_study(
        tmp_path_factory.mktemp("r"), np.random.default_rng(0), arms=arms, sizes=("0.1M",), seeds=1, steps=60
    )


def test_compare_prints_the_table_or_strict_json(results, capsys):
    assert run(compare, results) == 0
    assert "held-out loss at T" in capsys.readouterr().out
    assert run(compare, results, "--json") == 0

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["study"] == "simulated" and len(found["cells"]) == 2


def test_compare_writes_numbers_as_csv_and_the_table_as_latex(results, capsys):
    assert run(compare, results, "--csv") == 0
    baseline, arm = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (baseline["size"], baseline["arm"], arm["arm"]) == ("0.1M", "baseline", "pcgrad")
    assert 1 < float(arm["heldout_loss"]) < float(baseline["heldout_loss"]) < 20
    assert float(arm["log_difference"]) < 0 and baseline["log_difference"] == arm["heldout_loss_low"] == ""
    assert run(compare, results, "--latex") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == r"\begin{tabular}{llrrrrrrr}" and r"L\_d" in lines[2] and lines[-1] == r"\end{tabular}"
    assert sum(line.endswith(r"\\") for line in lines) == 3


def test_names_compute_nothing_in_a_spreadsheet_and_mean_nothing_to_latex():
    empty = dict.fromkeys(("heldout_loss", "tail_slope", "L_d", "t_d", "r_d", "cost", "difference"))
    cells = [{"size": "1M", "arm": name, "finished": 0} | empty for name in ("=1+1", "@x", 'a,"b"')]
    rows = list(csv.reader(io.StringIO(csv_text({"cells": cells}))))
    assert [row[1] for row in rows[1:]] == ["'=1+1", "'@x", 'a,"b"'] and len({len(row) for row in rows}) == 1
    table = Table(columns=("a_b", "c"), rows=((r"\input{x} & 50 %", "−1 ± 2 ×"),))
    assert tabular(table).splitlines()[4] == (r"\textbackslash{}input\{x\} \& 50 \% & $-$1 $\pm$ 2 $\times$ \\")


@pytest.mark.medium
def test_figures_are_written_for_print_as_wide_as_asked(results, capsys, tmp_path):
    assert run(figures, results, "--format", "svg", "--width", "84mm", "--out", tmp_path / "new") == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert paths[0].name == "01-held-out-loss.svg" and len(paths) > 12
    assert sorted(paths) == sorted((tmp_path / "new").resolve().iterdir())
    for path in paths:
        width = ElementTree.parse(path).getroot().get("width", "")
        assert float(width.removesuffix("pt")) == pytest.approx(84 / 25.4 * 72, abs=0.1)


@pytest.mark.parametrize("width", ["3.3", "wide", "0.1in", "50in", "-3in", "nanin"])
def test_a_width_that_is_none_is_refused_with_what_is_allowed(width, results):
    assert inches("8.4cm") == pytest.approx(inches("84 mm")) and inches("72.27pt") == pytest.approx(1)
    with pytest.raises(ValueError, match=r"--width '.*allowed is a number with in, cm, mm or pt"):
        run(figures, results, f"--width={width}")


@pytest.mark.medium
def test_report_prints_its_path_last_and_alone(results, capsys, tmp_path):
    assert run(report, results) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str((results / "simulated.html").resolve())
    made = tmp_path / "a" / "b.html"
    assert run(report, results, "--study", "simulated", "--out", made, "--wandb", "offline") == 0
    assert made.stat().st_size > 10_000 and made.with_suffix(".wandb.json").exists()
    *_, why, place, last = capsys.readouterr().out.splitlines()
    assert "not saved: offline, as asked" in why and "with an account" in place and last == str(made.resolve())
    assert list(results.glob("wandb/offline-run-*/files/media/html/*.html"))


def test_an_unknown_study_is_an_error_that_lists_what_there_is(results):
    with pytest.raises(ValueError, match="there are: simulated"):
        run(compare, results, "--study", "x")


def test_analysis_imports_no_torch_and_no_ray():
    files = [p.relative_to(ROOT) for p in (ROOT / "analysis").rglob("*.py") if p.stem != "__init__"]
    modules = [".".join(f.with_suffix("").parts) for f in files]
    heavy = ("torch", "ray", "wandb", "matplotlib")
    code = f"import sys, {', '.join(modules)}; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
