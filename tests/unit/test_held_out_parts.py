"""Held-out loss by domain and frequency, and the last doubling by domain: from the records to the page."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.inference.compare import compare_study
from analysis.inference.pooled_breaks import load
from analysis.inference.rows import Comparison
from analysis.report.blocks import Axes, Figure, Heading, HeatMap, Panel, Table
from analysis.report.drawing import STYLE, svg
from analysis.report.figures import Figures
from analysis.report.held_out_blocks import held_out
from analysis.report.report import blocks, write_report
from analysis.simulation.study import BASELINE, SimulatedArm, write_study
from analysis.study.doublings import doublings
from analysis.study.load import load_study
from zslx.runs.json_files import read_lines

ARM = SimulatedArm(name="focal", intervention="focal", expense=0.02)


def study(folder: Path, arms: tuple[SimulatedArm, ...] = (BASELINE, ARM), **options: Any) -> Path:
    options = {"sizes": ("0.1M",), "seeds": 3, "steps": 200, "step_lines": False} | options
    return write_study(folder, np.random.default_rng(0), arms=arms, **options)


def edit(results: Path, change: Callable[[dict[str, Any]], object], trials: int | None = None) -> None:
    """Every probe line of some of the trials, changed in place."""
    for folder in sorted((results / "trials").iterdir())[:trials]:
        lines = read_lines(folder / "probes.jsonl")
        for line in lines:
            change(line)
        (folder / "probes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def without_new_keys(line: dict[str, Any]) -> None:
    """As versions wrote it that had no parts but the domains' losses."""
    line.pop("heldout_by_frequency")
    for key in ("dtt", "dt1_heldout"):
        line.get(key, {}).pop("by_domain", None)


def compared(results: Path) -> Comparison:
    return compare_study(load(results))


def cell(comparison: Comparison, arm: str) -> Any:
    return next(c for c in comparison["cells"] if c["arm"] == arm)["held_out"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compared(study(tmp_path_factory.mktemp("results")))


def test_a_gain_at_the_expense_of_a_domain_comes_back(comparison: Comparison) -> None:
    base, arm = cell(comparison, "baseline"), cell(comparison, "focal")
    assert list(base["by_domain"]) == ["code", "prose"] and list(base["by_frequency"]) == ["0", "1", "2", "3"]
    whole = comparison["contrasts"][0]["primary"]
    assert whole is not None
    for name, planted in (("code", 0.02), ("prose", -0.02)):
        found = arm["by_domain"][name]["difference"]
        assert found["estimate"] == pytest.approx(whole["estimate"] + planted, abs=1e-9) and found["pairs"] == 3
        assert found["low"] - whole["low"] == pytest.approx(planted, abs=1e-9)
        assert base["by_domain"][name]["difference"] is None
    loss = next(c for c in comparison["cells"] if c["arm"] == "baseline")["heldout_loss"]
    assert loss is not None and base["by_frequency"]["2"]["loss"]["mean"] == pytest.approx(1.2 * loss["mean"])
    for part in arm["by_frequency"].values():
        assert part["difference"]["estimate"] == pytest.approx(whole["estimate"], abs=1e-9)


def test_the_last_doubling_is_the_mean_of_the_seeds(tmp_path: Path) -> None:
    results = study(tmp_path)
    lines = {
        t.seed: next(line for line in read_lines(t.folder / "probes.jsonl") if line["step"] == 192)
        for t in load_study(results).of("focal")
        if t.folder is not None
    }
    found = cell(compared(results), "focal")["last_doubling"]
    assert (found["start"], found["end"], found["seeds"], found["names"]) == (96, 192, 3, ["code", "prose"])
    changes = [line["dtt"]["by_domain"] for line in lines.values()]
    assert np.array(found["between"]) == pytest.approx(np.mean([c["between"] for c in changes], axis=0))
    assert found["shift"]["prose"]["mean"] == pytest.approx(np.mean([c["shift"][1] for c in changes]))
    assert found["between_share"]["mean"] == 0 and found["difference"]["estimate"] == 0


@pytest.mark.medium
def test_what_is_not_defined_stays_none(tmp_path: Path) -> None:
    """A run that stood still in its doublings: the other seeds' mean; a loss of 0 has no logarithm."""

    def still(line: dict[str, Any]) -> None:
        line["heldout_by_domain"]["code"] = 0.0
        if "dtt" in line:
            line["dtt"]["by_domain"] |= {"between": [[None, None], [None, 0.5]], "between_share": None}

    results = study(tmp_path)
    edit(results, still)
    comparison = compared(results)
    json.dumps(comparison, allow_nan=False)
    arm = cell(comparison, "focal")
    assert arm["by_domain"]["code"] == {"loss": None, "difference": None}
    assert arm["by_domain"]["prose"]["difference"] is not None
    assert arm["last_doubling"]["between"] == [[None, None], [None, 0.5]]
    assert arm["last_doubling"]["between_share"] is None is arm["last_doubling"]["difference"]
    assert [b for b in held_out(Figures(load(results)), comparison) if b is None] == []


@pytest.mark.medium
@pytest.mark.parametrize("trials", [None, 3])
def test_records_of_earlier_versions_are_compared_and_reported(trials: int | None, tmp_path: Path) -> None:
    """All trials without the new keys, or three of the six."""
    results = study(tmp_path / "results")
    edit(results, without_new_keys, trials)
    breaks = load(results)
    comparison = compare_study(breaks)
    assert comparison["trials"] == {"finished": 6}
    arm = cell(comparison, "focal")
    assert arm["by_domain"]["code"]["difference"]["pairs"] == 3
    html = write_report(breaks, tmp_path / "report.html", comparison).read_text(encoding="utf-8")
    assert 'id="heldout"' in html and "Which tokens gain, and which lose" in html
    if trials is None:
        assert arm["by_frequency"] == {} and arm["last_doubling"] is None
        assert "D between the domains" not in html and "rarest" not in html.split('id="heldout"')[1]


@pytest.mark.medium
def test_a_study_without_any_part_has_no_such_section(tmp_path: Path) -> None:
    results = study(tmp_path)
    edit(results, lambda line: (without_new_keys(line), line.pop("heldout_by_domain")))
    breaks = load(results)
    found = blocks(breaks, compare_study(breaks))
    assert "heldout" not in [b.anchor for b in found if isinstance(b, Heading)]


DAMAGES = {
    "no matrix": {"between": [[0.5, 0.5]]},
    "a row too short": {"between": [[0.5, 0.5], [0.5]]},
    "text for a number": {"shift": ["a", "b"]},
    "names that are none": {"names": [1, 2]},
    "too few names": {"names": ["code"]},
    "null": {"names": None},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_matrix_is_named_and_costs_its_trial_alone(damage: str, tmp_path: Path) -> None:
    results = study(tmp_path)
    edit(results, lambda line: line.get("dtt", {}).get("by_domain", {}).update(DAMAGES[damage]), trials=1)
    trials = load_study(results).trials
    [failed] = [t for t in trials if not t.finished]
    assert "dtt.by_domain" in failed.error and "probes.jsonl" in failed.error


def test_no_doubling_is_none() -> None:
    assert doublings([{"step": 1}, {"step": 2, "dtt": {"D": 0.5}}, {"step": 4, "dtt": None}], Path("x")) is None


def test_the_blocks_say_how_to_read_them(comparison: Comparison, tmp_path: Path) -> None:
    figures = Figures(load(study(tmp_path)))
    gains, domains, frequencies, matrices, doubling = held_out(figures, comparison)
    assert isinstance(gains, Figure) and "Left of the line" in gains.caption and "+" in gains.panels[0].alternative
    assert isinstance(matrices, Figure) and "0: all tokens went one way" in matrices.caption
    assert isinstance(domains, Table) and domains.columns[2:] == ("code", "prose")
    assert isinstance(frequencies, Table) and frequencies.columns[2:] == (
        "most frequent",
        "frequent",
        "rarer",
        "rarest",
    )
    assert isinstance(doubling, Table) and doubling.rows[1][:3] == ("0.1M", "focal", "96 to 192")
    assert [p.arm for p in matrices.panels] == ["baseline", "focal"]
    for panel in matrices.panels:
        drawn = svg("x", panel)
        assert panel.arm in drawn and drawn.count(">code<") == 2
    [arm] = [c for c in comparison["cells"] if c["arm"] == "focal"]
    expected = 100 * math.expm1(arm["held_out"]["by_domain"]["code"]["difference"]["estimate"])
    assert domains.rows[1][2].startswith(f"{expected:+.2f} %")


def test_the_baseline_alone_has_its_matrix(tmp_path: Path) -> None:
    results = study(tmp_path, arms=(BASELINE,))
    breaks = load(results)
    gains, *_, matrices, _ = held_out(Figures(breaks), compare_study(breaks))
    assert gains is None and isinstance(matrices, Figure) and len(matrices.panels) == 1


@pytest.mark.medium
def test_arms_of_longer_steps_are_read_at_the_end_of_the_common_stretch(tmp_path: Path) -> None:
    longer = dataclasses.replace(ARM, name="longer", steps=2.0)
    found = compared(study(tmp_path, arms=(BASELINE, ARM, longer)))
    ends = {arm: cell(found, arm)["last_doubling"]["end"] for arm in ("baseline", "focal", "longer")}
    assert ends == {"baseline": 192, "focal": 192, "longer": 192}


@pytest.mark.parametrize("n", [1, 4, 12])
def test_a_heat_map_has_a_cell_for_each_number(n: int) -> None:
    assert STYLE["svg.fonttype"] == "none"
    values = np.linspace(0.2, 0.9, n * n).reshape(n, n)
    values[0, 0] = np.nan
    names = [f"d{i}" for i in range(n)]
    heat = HeatMap(names=names, values=values, low=0.2, high=0.9)
    drawn = svg("x", Panel(title="t", alternative="", heat=heat, axes=Axes(time=False)))
    assert drawn.count("var(--s1") == n * n - 1 and (">.90<" in drawn) == (1 < n <= 8) and (">–<" in drawn) == (n <= 8)
