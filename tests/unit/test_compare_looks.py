"""What a comparison says at a look, and of a contrast that a study declares."""

import json

import numpy as np
import pytest
from scipy import stats

from analysis.inference.answers import look, looked_before
from analysis.inference.compare import compare
from analysis.inference.looks import confidence_at
from analysis.inference.stopping import decided
from analysis.report.headline import closing_lines
from analysis.report.report import answers
from analysis.simulation.study import BASELINE, RATES, SimulatedArm, write_study
from analysis.study.load import load_study
from analysis.study.measures import Measures
from zslx.runs.json_files import write_json

LOOKS = [6, 8, 10]
LEVEL = confidence_at(LOOKS, 6)
EARLIER = [
    {"name": "s3", "created": None, "seeds": [0, 1, 2], "looks": []},
    {"name": "s5", "created": None, "seeds": [0, 1, 2, 3, 4], "looks": [4, 5]},
]


def study(folder, effect: float, **declared):
    """A simulated study of an arm with every control; `declared`: more of its study.json."""
    arms = (
        BASELINE,
        SimulatedArm(name="pcgrad", intervention="pcgrad", effect=effect),
        SimulatedArm(name="placebo:pcgrad", intervention="placebo:pcgrad", role="placebo", of="pcgrad"),
        SimulatedArm(name="cosine", intervention="cosine", role="control", effect=-0.01),
        SimulatedArm(name="pcgrad+cosine", intervention="pcgrad+cosine", role="control", of="pcgrad", effect=effect),
        *RATES,
    )
    light = {"step_lines": False, "instruments": False}
    write_study(folder, np.random.default_rng(0), arms=arms, sizes=("0.1M",), seeds=6, steps=60, **light)
    path = folder / "studies/study-0/study.json"
    write_json(path, json.loads(path.read_text()) | declared)
    return folder


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    declared = {"looks": LOOKS, "contrasts": {"pcgrad+cosine": "cosine"}, "earlier": EARLIER}
    return compare(study(tmp_path_factory.mktemp("r"), -0.03, **declared))


@pytest.mark.medium
def test_a_clear_effect_is_decided_at_the_first_look_and_the_answer_says_so(comparison):
    assert comparison["looks"] == {"after": LOOKS, "seeds": 6, "confidence": LEVEL, "decided": True}
    [line] = [line for line in closing_lines(comparison) if line.startswith("→ pcgrad: ")]
    assert "Look 1 of 3, after 6 of 10 seeds: stopped early, decided; its intervals are of 99.3 %" in line


@pytest.mark.medium
def test_the_report_opens_with_it(comparison):
    about, marked = answers(comparison)[:2]
    assert "6 seeds" in about.text and marked.text.startswith(
        "Look 1 of 3, after 6 of 10 seeds: stopped early, decided"
    )


@pytest.mark.medium
def test_intervals_of_a_look_are_those_of_its_level(comparison):
    row = comparison["contrasts"][0]
    assert row["arm"] == "pcgrad"
    found = [row["primary"], row["by_size"]["0.1M"], row["placebo"], *row["rates"].values()]
    found += [row["beyond_cosine"], row["secondary"]["tail_slope"], comparison["cells"][1]["difference"]]
    for one in found:
        assert (one["high"] - one["low"]) / 2 == pytest.approx(stats.t.ppf(0.5 + LEVEL / 2, 5) * one["se"])


@pytest.mark.medium
def test_a_declared_contrast_has_an_answer_of_its_own(comparison):
    plain, declared = comparison["answers"]
    assert (plain["arm"], plain["against"]) == ("pcgrad", "baseline")
    assert (declared["arm"], declared["against"]) == ("pcgrad+cosine", "cosine")
    assert declared["word"] == "below cosine, placebo not run" and " against cosine, " in declared["sentence"]
    [row] = comparison["declared_contrasts"]
    assert row["primary"]["estimate"] == pytest.approx(-0.02, abs=0.005)
    [against_baseline] = [r for r in comparison["contrasts"] if r["arm"] == "pcgrad+cosine"]
    assert against_baseline["primary"]["estimate"] == pytest.approx(-0.03, abs=0.005)


def test_every_arm_that_is_asked_about_must_be_decided(tmp_path):
    results = study(tmp_path, -0.03, looks=LOOKS)
    assert decided(Measures(load_study(results))) == {"pcgrad": "improves"}
    path = results / "studies/study-0/study.json"
    write_json(path, json.loads(path.read_text()) | {"contrasts": {"placebo:pcgrad": "baseline"}})
    found = decided(Measures(load_study(results)))
    assert found["pcgrad"] == "improves" and found["placebo:pcgrad"] is None


def test_nothing_is_decided_without_an_effect(tmp_path):
    assert decided(Measures(load_study(study(tmp_path, 0.0, looks=LOOKS)))) == {"pcgrad": None}


def test_a_study_that_may_stop_for_futility_stops_without_an_effect_and_says_so(tmp_path):
    results = study(tmp_path, 0.0, looks=[6, 7], futility=True)
    assert decided(Measures(load_study(results))) == {"pcgrad": "no effect found, futile"}
    found, level = compare(results), confidence_at([6, 7], 6)
    assert found["looks"] == {"after": [6, 7], "seeds": 6, "confidence": level, "decided": True, "futile": ["pcgrad"]}
    [one] = found["answers"]
    assert one["word"] == "no effect found"
    assert "pcgrad: no effect found (smallest effect this study could have seen: " in one["sentence"]
    assert (
        "Look 1 of 2, after 6 of 7 seeds: stopped early, for futility (pcgrad: an effect that all 7 seeds find with "
        "probability 0.8 would now be found with less than 0.2); its intervals are of "
    ) in one["sentence"]


def test_a_clear_effect_is_no_futility(tmp_path):
    results = study(tmp_path, -0.03, looks=LOOKS, futility=True)
    assert decided(Measures(load_study(results))) == {"pcgrad": "improves"}


def test_an_answer_says_where_the_study_stands():
    def said(seeds: int, done: bool) -> str:
        return look({"after": LOOKS, "seeds": seeds, "confidence": confidence_at(LOOKS, seeds), "decided": done})

    end = "; its intervals are of {} %, which is 95 % over all looks"
    assert said(6, True) == "Look 1 of 3, after 6 of 10 seeds: stopped early, decided" + end.format("99.3")
    assert said(8, False) == "Look 2 of 3, after 8 of 10 seeds: not decided, goes on" + end.format("98.0")
    assert said(10, False) == said(10, True) == "Look 3 of 3, after 10 of 10 seeds" + end.format("96.1")


TRIAL = {"arm": "baseline", "size": "0.1M", "seed": 0}


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"contrasts": {"pcgrad": "ema"}}, "contrasts names 'ema', which is none of its arms"),
        ({"contrasts": {"pcgrad": 1}}, r"contrasts\.pcgrad must be a text, not 1"),
        ({"looks": [8, 6]}, r"looks \[8, 6\] must increase"),
        ({"looks": [7, 10]}, "one of them be at its 6 seeds"),
        ({"looks": ["x"]}, r"looks\[0\] must be a whole number"),
        ({"trials": [TRIAL] * 2}, "trial 'baseline' '0.1M' 0 stands in it 2 times"),
        ({"trials": [TRIAL | {"seed": 7}]}, "trial 'baseline' '0.1M' 7 is none of its arms, sizes and seeds"),
    ],
)
def test_a_damaged_declaration_is_named(tmp_path, declared, message):
    with pytest.raises(ValueError, match=message):
        load_study(study(tmp_path, 0.0, **declared))


@pytest.mark.medium
def test_looks_of_earlier_studies_are_said_in_one_line(comparison):
    told = "These arms were compared before, with 3 seeds (s3), 5 seeds at planned looks (s5); the intervals do not "
    told += "account for that."
    assert closing_lines(comparison).count(told) == 1
    assert [block.text for block in answers(comparison) if getattr(block, "text", "") == told] == [told]
    assert json.loads(json.dumps(comparison["earlier"])) == EARLIER
    more = looked_before({"earlier": EARLIER * 3})
    assert more == [told.replace("planned looks (s5);", "planned looks (s5), 3 seeds (s3) and 3 times more;")]


@pytest.mark.parametrize("earlier", [[{"name": "a"}], [{"name": "a", "seeds": ["x"]}], {"name": "a"}])
def test_damaged_earlier_looks_are_named(tmp_path, earlier):
    with pytest.raises(ValueError, match=r"study\.json: earlier"):
        load_study(study(tmp_path, 0.0, earlier=earlier))
