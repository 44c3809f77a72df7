"""Studies that share a baseline stand in one table; those that do not are refused with the reason."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.commands import compare, report
from analysis.inference.loss_contrasts import loss_contrasts
from analysis.simulation.study import BASELINE, SimulatedArm, write_study
from analysis.study.join import join
from analysis.study.load import load_study, place_of
from analysis.study.measures import Measures
from zslx.runs.json_files import write_json

SIZES = ("0.1M", "0.2M")


@pytest.fixture
def results(tmp_path) -> Path:
    """Studies a, b of six seeds whose baseline trials are the same, each with an arm called pcgrad of its own."""
    arms = (
        BASELINE,
        SimulatedArm(name="pcgrad", intervention="pcgrad", effect=-0.02),
        SimulatedArm(name="placebo:pcgrad", intervention="placebo:pcgrad", role="placebo", of="pcgrad"),
        SimulatedArm(name="cosine", intervention="cosine", effect=-0.01),
    )
    light = {"step_lines": False, "instruments": False}
    write_study(tmp_path, np.random.default_rng(0), name="whole", arms=arms, sizes=SIZES, seeds=6, steps=60, **light)
    part(tmp_path, "a", ["baseline", "pcgrad", "placebo:pcgrad"])
    part(tmp_path, "b", ["baseline", "cosine"], {"cosine": "pcgrad"})
    return tmp_path


def part(results: Path, name: str, arms: list[str], called: dict[str, str] | None = None, **changes) -> None:
    """A study of some arms of the whole one; `called`: other names for them there, with settings of their own;
    `identity`: of its baseline trials of seed 3."""
    called = called or {}
    found = json.loads((results / "studies/study-0/study.json").read_text())
    found["arms"] = [
        arm | {"name": called.get(arm["name"], arm["name"])} for arm in found["arms"] if arm["name"] in arms
    ]
    for arm in found["arms"]:
        if arm["name"] in called.values():
            arm["settings"] = {"cosine": {"final": "0.2"}}
    trials = [t | {"arm": called.get(t["arm"], t["arm"])} for t in found["trials"] if t["arm"] in arms]
    for trial in trials if "identity" in changes else ():
        if trial["arm"] == "baseline" and trial["seed"] == 3:
            trial["identity"] = changes["identity"]
    seeds = changes.get("seeds", found["seeds"])
    found |= {"name": name, "seeds": seeds, "trials": [t for t in trials if t["seed"] in seeds]}
    found |= {"looks": changes.get("looks", []), "command": f"make sweep STUDY={name}.toml"}
    (results / "studies" / name).mkdir(exist_ok=True)
    write_json(results / "studies" / name / "study.json", found)


def run(command, *words) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def test_arms_of_two_studies_are_compared_as_in_one(results):
    whole, both = load_study(results, "whole"), join([load_study(results, name) for name in ("a", "b")])
    assert both.name == "a + b" and both.command == "make sweep STUDY=a.toml && make sweep STUDY=b.toml"
    assert [arm.name for arm in both.arms] == ["baseline", "pcgrad", "placebo:pcgrad", "pcgrad cosine.final=0.2"]
    names = {"pcgrad": "pcgrad", "cosine": "pcgrad cosine.final=0.2"}
    for arm in whole.arms:
        if arm.name in names:
            own, joined = (primary(study, name) for study, name in ((whole, arm.name), (both, names[arm.name])))
            assert own.seeds == 6 and own == joined
    assert [t.status for t in both.trials] == ["finished"] * (4 * 2 * 6)


def primary(study, name: str):
    """The paired difference of an arm to the baseline."""
    arm = next(arm for arm in study.arms if arm.name == name)
    return loss_contrasts(Measures(study), arm, "baseline", 0.95).primary


def test_seeds_and_sizes_of_one_study_alone_are_kept(results):
    part(results, "few", ["baseline", "cosine"], seeds=[4, 5])
    both = join([load_study(results, name) for name in ("a", "few")])
    assert both.seeds == (0, 1, 2, 3, 4, 5)
    assert {name: primary(both, name).seeds for name in ("pcgrad", "cosine")} == {"pcgrad": 6, "cosine": 2}


def test_the_same_arm_in_both_is_one(results):
    part(results, "again", ["baseline", "pcgrad"])
    both = join([load_study(results, name) for name in ("a", "again", "b")])
    assert len(both.arms) == 4 and len(both.trials) == 4 * 2 * 6


def test_other_baselines_are_refused_with_what_differs(results):
    found = load_study(results, "whole")
    other = next(t for t in found.of("cosine", "0.1M") if t.seed == 3)
    config = json.loads((other.folder / "config.json").read_text())
    config["optim"]["lr"] = 0.5
    write_json(other.folder / "config.json", config)
    part(results, "else", ["baseline", "pcgrad"], identity=other.identity)
    studies = [load_study(results, name) for name in ("a", "else")]
    with pytest.raises(
        ValueError, match=r"a and else cannot be joined: .* size 0\.1M, seed 3: .*optim\.lr \S+ and 0\.5"
    ):
        join(studies)
    apart = replace(studies[1], seeds=(9,), trials=tuple(t for t in studies[1].trials if t.seed == 9))
    with pytest.raises(ValueError, match=r"no size and seed is in both; they have sizes 0.1M, 0.2M and seeds 0, 1.* 9"):
        join([studies[0], apart])


def test_studies_at_different_looks_are_refused(results):
    part(results, "looked", ["baseline", "cosine"], looks=[6, 8, 10])
    with pytest.raises(ValueError, match="stand at different looks"):
        join([load_study(results, name) for name in ("a", "looked")])


@pytest.mark.medium
def test_the_commands_take_names_and_folders(results, capsys):
    assert place_of(str(results / "studies" / "a"), Path("x")) == (results, "a")
    assert place_of("b", results) == (results, "b") and place_of(str(results), Path("x")) == (results, None)
    assert run(report, results / "studies" / "a", "b", "--results", results) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == str((results / "a-b.html").resolve())
    page = (results / "a-b.html").read_text()
    assert "pcgrad cosine.final=0.2" in page and "placebo:pcgrad" in page
    with pytest.raises(ValueError, match="--study a names a study of one results folder, and 2 are given"):
        run(compare, results, results, "--study", "a")
    with pytest.raises(ValueError, match=r"nothing: no folder, and .*: no study 'nothing'; there are: a, b, whole"):
        run(compare, "nothing", "--results", results)
