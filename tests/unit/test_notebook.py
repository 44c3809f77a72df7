"""A study as pandas frames and figures; docs/notebook.py runs as it is written."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import zslx
from analysis.simulation.study import BASELINE, SimulatedArm, write_study
from zslx.places import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.py"
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `results`: four seeds; of the last, one trial failed and one diverged."""
    arms = (BASELINE, SimulatedArm(name="pcgrad", intervention="pcgrad", effect=-0.02))
    faults = {("pcgrad", "0.1M", 3): "failed", ("baseline", "0.1M", 3): "diverged"}
    folder = tmp_path_factory.mktemp("notebook")
    options = {"arms": arms, "sizes": ("0.1M",), "seeds": 4, "steps": 120, "faults": faults}
    write_study(folder / "results", np.random.default_rng(0), **options)
    return folder


@pytest.fixture(scope="module")
def study(folder: Path):
    return zslx.load_study(folder / "results")


def test_a_row_a_trial(study):
    trials = study.trials
    assert list(trials["arm"]) == ["baseline"] * 4 + ["pcgrad"] * 4 and list(trials["seed"]) == [0, 1, 2, 3] * 2
    done = trials[trials["status"] == "finished"]
    assert len(done) == 6 and done[["heldout_loss", "tail_slope", "parameters", "seconds"]].notna().all(axis=None)
    lost = trials[trials["status"] != "finished"].set_index("arm")
    assert lost["heldout_loss"].isna().all() and lost.loc["pcgrad", "error"] == "RuntimeError: out of memory"
    assert math.isnan(lost.loc["pcgrad", "parameters"]) and lost.loc["baseline", "parameters"] > 0


def test_the_first_contrast_is_the_paired_difference_of_the_trials(study):
    primary = study.comparison.iloc[0]
    done = study.trials[study.trials["status"] == "finished"].pivot(index="seed", columns="arm", values="heldout_loss")
    by_hand = np.log(done["pcgrad"]) - np.log(done["baseline"])
    assert tuple(primary[["arm", "against", "measure", "size"]]) == ("pcgrad", "baseline", "log_heldout_loss", "all")
    assert primary["estimate"] == pytest.approx(by_hand.mean(), abs=1e-12) and primary["seeds"] == 3
    assert primary["low"] < primary["estimate"] < primary["high"] < 0
    assert primary["word"] == study.results["contrasts"][0]["word"] and study.comparison["word"].notna().sum() == 1
    secondary = study.comparison.set_index("measure").loc["tail_slope"]
    assert secondary["p_holm"] >= secondary["p"] and secondary["estimate"] != primary["estimate"]


def test_records_are_those_of_the_run_folder(study):
    row = study.trials.iloc[1]
    run = zslx.load_run(row["folder"])
    steps = study.steps("baseline", "0.1M", 1)
    np.testing.assert_array_equal(steps["loss"], run.steps["loss"])
    assert steps["step"].dtype == "int64" and set(steps["seed"]) == {1}
    probes = study.probes("baseline", "0.1M", 1)
    assert list(probes["step"]) == [line["step"] for line in run.probes]
    assert list(probes["heldout_loss"]) == [line["heldout_loss"] for line in run.probes]
    by_hand = [line["dt1_heldout"]["D"] if "dt1_heldout" in line else math.nan for line in run.probes]
    np.testing.assert_array_equal(probes["dt1_heldout.D"], by_hand)
    assert np.isfinite(by_hand).any()
    assert set(zip(study.probes()["arm"], study.probes()["seed"], strict=True)) == {
        *(("baseline", seed) for seed in range(4)), *(("pcgrad", seed) for seed in range(3)),
    }  # fmt: skip


def test_fits_are_those_of_the_comparison(study):
    found = study.fit("pcgrad").set_index("measure")
    [cell] = [cell for cell in study.results["cells"] if cell["arm"] == "pcgrad"]
    assert found.loc["t_d", "estimate"] == cell["t_d"]["mean"] and found.loc["t_d", "seeds"] == 3
    assert bool(found.loc["t_d", "identified"]) == cell["t_d"]["identified"]
    assert len(study.fit()) == 8 and len(study.fit(curve="training")) == 8


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda s: s.steps("pcgrd"), "study simulated has no arm 'pcgrd'; there are: baseline, pcgrad"),
        (lambda s: s.probes(size="9M"), "no size '9M'; there are: 0.1M"),
        (lambda s: s.probes(seed=7), "no seed 7; there are: 0, 1, 2, 3"),
        (lambda s: s.steps("pcgrad", seed=3), "pcgrad/0.1M/3 failed: RuntimeError: out of memory"),
        (lambda s: s.fit(curve="test"), "no curve 'test'; there are: heldout, training"),
        (lambda s: s.plot("no such"), "no figure has 'no such' in the title; there are: Held-out loss"),
        (lambda s: s.plot("held-out"), "several figures have 'held-out'"),
        (lambda s: s.plot(width=math.nan), "width nan inches: allowed is 1 to 40"),
    ],
)
def test_what_there_is_not_is_named(study, call, told: str):
    with pytest.raises(ValueError) as error:
        call(study)
    assert told in str(error.value)


def test_no_study_and_a_damaged_file_are_named(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"nothing: no folder, and .*no study here"):
        zslx.load_study("nothing", results=tmp_path)
    arms = (BASELINE, SimulatedArm(name="pcgrad", intervention="pcgrad"))
    results = write_study(tmp_path / "r", np.random.default_rng(1), arms=arms, sizes=("0.1M",), seeds=2, steps=40)
    found = zslx.load_study("simulated", results=results)
    path = next(found.study.of("pcgrad")).folder / "steps.jsonl"
    path.write_text("{]\n")
    with pytest.raises(ValueError, match=r"steps\.jsonl: "):
        found.steps("pcgrad")


def test_names_are_text_in_a_notebook(tmp_path: Path):
    arms = (BASELINE, SimulatedArm(name=HOSTILE, intervention="pcgrad"))
    results = write_study(tmp_path, np.random.default_rng(1), arms=arms, sizes=("0.1M",), seeds=2, steps=40)
    [path] = results.glob("studies/*/study.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": HOSTILE}))
    shown = zslx.load_study(results)._repr_html_()
    assert "<script" not in shown and "&lt;script&gt;" in shown and shown.count("<table") == 1
    assert "exploratory: " in shown


def cells() -> list[str]:
    parts = NOTEBOOK.read_text(encoding="utf-8").split("# %%")[1:]
    return [part for part in parts if not part.startswith(" [markdown]")]


def test_the_notebook_shows_frames_and_figures(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Each cell as a notebook runs it: what its last expression is, and how it shows itself."""
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    shown: list[str] = []
    for cell in cells():
        *before, last = ast.parse(cell).body
        assert isinstance(last, ast.Expr), cell
        exec(compile(ast.Module(before, []), str(NOTEBOOK), "exec"), names)
        value = eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)
        if hasattr(value, "_repr_png_"):
            assert value._repr_png_().startswith(b"\x89PNG") and len(value.axes) >= 1
            assert value.axes[0].lines
            shown.append("figure")
        elif hasattr(value, "_repr_html_"):
            assert "<table" in value._repr_html_()
            shown.append("table")
        else:
            shown.append(type(value).__name__)
    assert shown.count("table") >= 4 and shown.count("figure") == 2, shown


@pytest.mark.slow
def test_the_notebook_runs_from_nothing(cache: Path, tmp_path: Path):
    done = subprocess.run([sys.executable, NOTEBOOK], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trials finished" in repr(zslx.load_study(tmp_path / "results"))
