"""Whoever has only wandb can redo the comparison: from the offline files alone, every number of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.archive.verify import Tally
from analysis.commands.to_wandb import log_run_of_study
from analysis.inference.compare import compare_study
from analysis.inference.pooled_breaks import load
from analysis.simulation.study import ARMS, BASELINE, write_study
from analysis.study.declaration import Declaration
from sweeps import wandb_log
from sweeps.wandb_log import Labels
from zslx.runs.json_files import dumps, loads, write_json
from zslx.runs.records import RunRecords

pytestmark = pytest.mark.medium
RUN = ("identity", "versions", "hardware", "revision", "environment", "parameters", "study", "arm", "size", "seed")


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The wandb folder of a study whose trials and comparison are logged, and what `zslx compare --json` says of it.

    One trial diverged, and one never ran."""
    results = tmp_path_factory.mktemp("home-of-alice") / "results"
    faults = {("pcgrad", "0.1M", 2): "diverged", ("baseline", "0.1M", 3): "failed", ("pcgrad", "0.1M", 3): "missing"}
    write_study(
        results, np.random.default_rng(0), arms=(ARMS[0], ARMS[2]), sizes=("0.1M",), seeds=4, steps=100, faults=faults
    )
    breaks = load(results)
    study = breaks.study
    keys = {(t.size, t.seed): t.identity for t in study.trials if t.arm == BASELINE.name}
    for t in study.trials:
        partner = "" if t.arm == BASELINE.name else keys[t.size, t.seed]
        named = {"study": study.name, "arm": t.arm, "size": t.size, "seed": t.seed, "baseline": partner}
        if t.folder:
            assert wandb_log.log(t.folder, Labels(results=str(results), **named), "offline") is None
    comparison = compare_study(breaks)
    page = results / "report.html"
    page.write_text("<!DOCTYPE html><p>the report</p>")
    assert log_run_of_study(breaks, comparison, page, "offline") is None
    wandb_log.close()
    return results / "wandb", loads(dumps(comparison).encode())


@pytest.fixture(scope="module")
def runs(logged) -> list[dict[str, Any]]:
    """Name, configuration, history and summary of each run of an offline wandb folder."""
    reader, summaries = module("test_sweep"), module("test_tracking")
    paths = sorted(logged[0].glob("offline-run-*/*.wandb"))
    return [reader.read_wandb(path) | {"summary": summaries.summary_of(path)} for path in paths]


def study_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    [study] = [run for run in runs if run["job_type"] == "study"]
    return study


def rebuild(runs: list[dict[str, Any]], results: Path) -> None:
    """A results folder from what wandb has."""
    for run in runs:
        if run["job_type"] != "study":
            rebuild_trial(run, results)
    Declaration.from_dict(study_of(runs)["config"]["declaration"]).write(results / "studies" / "again")


def rebuild_trial(run: dict[str, Any], results: Path) -> None:
    config, summary = run["config"], run["summary"]
    folder = results / "trials" / config["identity"]
    with RunRecords(folder) as records:
        tokens = 0
        for row in run["history"]:
            step = int(row["step"])
            own = {k: v for k, v in row.items() if "/" not in k and not k.startswith("_")} | {"step": step}
            probe = nested({k.removeprefix("probe/"): v for k, v in row.items() if k.startswith("probe/")})
            for at in (
                inner["by_domain"] for inner in probe.values() if isinstance(inner, dict) and "by_domain" in inner
            ):
                at["names"] = sorted(at["shift"])
                at["between"] = [[at["between"][a][b] for b in at["names"]] for a in at["names"]]
                at |= {key: [at[key][name] for name in at["names"]] for key in ("within", "shift")}
            tokens = row.get("tokens", tokens)
            if own.keys() - {"step", "seconds"}:
                records.append_step(own | {k: v for k, v in row.items() if "/" in k and not k.startswith("probe/")})
            if probe:
                records.append_probe({"step": step, "tokens": tokens, **probe})
    totals = {k.removeprefix("totals/"): v for k, v in summary.items() if k.startswith("totals/")}
    manifest = {key: config[key] for key in ("identity", "versions", "hardware", "revision", "parameters")}
    manifest |= {"status": summary["status"], "totals": totals, "ingredients": config["environment"]}
    write_json(folder / "manifest.json", manifest)
    settings = {key: value for key, value in config.items() if key not in RUN}
    write_json(folder / "config.json", settings)


def nested(flat: dict[str, float]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, key = path.split("/")
        at = found
        for folder in folders:
            at = at.setdefault(folder, {})
        at[key] = value
    return found


def test_the_comparison_follows_from_the_offline_files_alone(logged, runs, tmp_path):
    rebuild(runs, tmp_path)
    again = load(tmp_path)
    assert [(t.label, t.status) for t in again.study.trials if not t.finished] == [
        ("baseline/0.1M/3", "failed"),
        ("pcgrad/0.1M/2", "diverged"),
    ]
    found = loads(dumps(compare_study(again)).encode())
    tally = Tally(1e-12)
    tally.compare(logged[1], found, "")
    assert tally.faults == [] and tally.numbers > 700
    for name in ("L_d", "t_d", "r_d"):
        assert found["cells"][0][name] and found["cells"][0][name] == logged[1]["cells"][0][name]
    primary = logged[1]["contrasts"][0]["primary"]
    assert primary == found["contrasts"][0]["primary"] and primary["estimate"] != 0


def test_the_studys_run_says_what_the_comparison_says(logged, runs):
    folder, comparison = logged
    run = study_of(runs)
    assert run["name"] == run["group"] == comparison["study"]
    [row] = [row for row in comparison["contrasts"] if row["arm"] == "pcgrad"]
    assert run["summary"]["pcgrad/word"] == row["word"]
    assert run["summary"]["pcgrad/log_difference/low"] == row["primary"]["low"]
    [cell] = [c for c in comparison["cells"] if (c["arm"], c["size"]) == ("pcgrad", "0.1M")]
    assert run["summary"]["pcgrad/0.1M/r_d/mean"] == cell["r_d"]["mean"]
    [files] = {path.parents[2] for path in folder.glob("offline-run-*/files/media/html/*.html")}
    assert json.loads((files / "comparison.json").read_text())["contrasts"] == comparison["contrasts"]
    [page] = files.rglob("*.html")
    assert "the report" in page.read_text()
    [table] = files.rglob("table-1_*.table.json")
    rows = json.loads(table.read_text())
    assert rows["columns"][:2] == ["size", "arm"] and len(rows["data"]) == len(comparison["cells"])


def test_nothing_of_the_machine_is_in_it(logged):
    raw = b"".join(path.read_bytes() for path in logged[0].rglob("*") if path.is_file())
    assert b"alice" not in raw and str(Path.home() / ".local").encode() not in raw
