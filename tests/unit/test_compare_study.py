"""Whole comparisons of simulated studies, read from record files: planted effects come back, faults are told."""

import json

import numpy as np
import pytest

from analysis.inference.compare import compare
from analysis.inference.matched_loss import mechanism
from analysis.inference.pooled_breaks import load
from analysis.report.curves import plane
from analysis.report.report import write_report
from analysis.report.tables import cost
from analysis.simulation.study import ARMS, BASELINE, RATES, SimulatedArm, write_study

PCGRAD = SimulatedArm(name="pcgrad", intervention="pcgrad", effect=-0.03, cost=1.3)
PLACEBO = SimulatedArm(name="placebo:pcgrad", intervention="placebo:pcgrad", role="placebo", of="pcgrad")


# Tuned for itself each, as TUNE_RATE=1 does.
TUNED = {"study": "rates", "seeds": [1000], "log_loss": {name: {} for name in ("baseline", "cosine", "pcgrad+cosine")}}


def study(results, seed=0, **options):
    options = {"arms": (BASELINE, PCGRAD), "sizes": ("0.1M",), "seeds": 2, "steps": 300, "step_lines": False} | options
    return compare(write_study(results, np.random.default_rng(seed), **options))


def row(comparison, arm="pcgrad"):
    return next(r for r in comparison["contrasts"] if r["arm"] == arm)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every control, three sizes, four seeds, one trial diverged, one failed."""
    results = tmp_path_factory.mktemp("results")
    faults = {("pcgrad", "0.1M", 2): "diverged", ("cosine", "0.4M", 1): "failed"}
    return study(results, arms=(*ARMS, *RATES), sizes=("0.1M", "0.2M", "0.4M"), seeds=4, faults=faults, tuning=TUNED)


@pytest.mark.medium
def test_the_planted_effects_come_back_with_the_word_they_allow(whole):
    found = row(whole)
    assert found["primary"]["low"] < -0.03 < found["primary"]["high"]
    assert found["placebo"]["low"] < -0.026 < found["placebo"]["high"]
    assert found["word"] in ("improves", "mitigates deceleration") and found["beyond_lr_decay"]
    [answer] = whole["answers"]
    assert answer["arm"] == "pcgrad" and "1 of its 12 trials diverged" in answer["sentence"]
    # Three pairs are left at 0.1M.
    assert found["exploratory"] and found["primary"]["seeds"] == 3 and found["primary"]["pairs"] == 11
    assert set(found["by_size"]) == {"0.1M", "0.2M", "0.4M"}


@pytest.mark.medium
def test_the_comparison_is_strict_json_and_tells_what_failed(whole):
    json.loads(json.dumps(whole, allow_nan=False))
    assert {(f["arm"], f["size"], f["seed"], f["status"]) for f in whole["failures"]} == {
        ("pcgrad", "0.1M", 2, "diverged"),
        ("cosine", "0.4M", 1, "failed"),
    }
    assert whole["trials"] == {"finished": 82, "diverged": 1, "failed": 1}
    assert len(whole["cells"]) == 21 and whole["rule"].startswith("The rule")


@pytest.mark.medium
def test_cost_equal_compute_gain_and_trend_are_those_planted(whole):
    found = row(whole)
    assert found["equal_compute"]["read_off"]
    assert found["equal_compute"]["estimate"] > found["primary"]["estimate"] + 0.005
    cell = next(c for c in whole["cells"] if c["arm"] == "pcgrad" and c["size"] == "0.2M")
    assert cell["cost"]["mean"] == pytest.approx(1.31, rel=0.05) and cell["cost"]["low"] < cell["cost"]["high"]
    trend = whole["trends"]["non_embedding"]["baseline"]["log_loss"]
    assert trend["estimate"] == pytest.approx(-0.06, abs=0.005)
    gain = found["scale_equivalent_gain"]["0.2M"]
    assert gain["gain"] == pytest.approx(np.exp(0.03 / 0.06), rel=0.15) and not gain["extrapolated"]
    assert found["scale_equivalent_gain"]["0.4M"]["extrapolated"]


@pytest.mark.medium
def test_nothing_hangs_on_the_order_of_the_trials(tmp_path):
    results = write_study(tmp_path, np.random.default_rng(3), arms=(BASELINE, PCGRAD), sizes=("0.1M",), seeds=2,
                          steps=300, step_lines=False)  # fmt: skip
    path = results / "studies/study-0/study.json"
    before = compare(results)
    declaration = json.loads(path.read_text())
    declaration["trials"].reverse()
    path.write_text(json.dumps(declaration))
    after = compare(results)
    for comparison in (before, after):
        comparison["provenance"].pop("identities")
    assert before == after


def test_without_a_placebo_the_strongest_word_says_so(tmp_path):
    comparison = study(tmp_path)
    assert row(comparison)["word"] == "below baseline, placebo not run"
    assert comparison["exploratory"] and comparison["answers"][0]["verdict_command"].endswith("PRESET=verdict")
    assert "Smallest effect this study could have seen" in comparison["answers"][0]["sentence"]


def test_one_size_has_no_gain_and_says_why(tmp_path):
    found = row(study(tmp_path, instruments=False))
    assert "needs 3" in found["scale_equivalent_gain"]["0.1M"]["refused"]
    assert found["mechanism"] == [] and not any(k.startswith("dt") for k in found["secondary"])


def test_one_seed_has_estimates_and_no_intervals(tmp_path):
    comparison = study(tmp_path, seeds=1)
    found = row(comparison)
    assert found["primary"]["low"] is None and found["word"] == "no effect found" and found["sign_flip"] is None
    assert "cannot be said from one seed" in comparison["answers"][0]["sentence"]


@pytest.mark.medium
def test_harm_is_called_harm(tmp_path):
    arms = (BASELINE, SimulatedArm(name="bad", intervention="bad", effect=0.03))
    assert study(tmp_path / "6", arms=arms, seeds=6)["answers"][0]["word"] == "hurts"
    found = study(tmp_path / "2", arms=arms)["answers"][0]
    assert found["word"] == "above baseline" and "itself uncertain with 2 seeds" in found["sentence"]


@pytest.mark.medium
def test_an_arm_of_which_no_placebo_exists_is_told_its_control(tmp_path):
    """Not the same as a placebo that was not run."""
    sentences = []
    for has_placebo, lacks in ((True, "placebo"), (False, "rates")):
        arms = (BASELINE, SimulatedArm(name="poly", intervention="poly", effect=-0.03, has_placebo=has_placebo))
        found = study(tmp_path / str(has_placebo), arms=arms)
        assert row(found, "poly")["word"] == f"below baseline, {lacks} not run"
        sentences.append(found["answers"][0]["sentence"])
    assert ["the baseline at other learning rates" in sentence for sentence in sentences] == [False, True]


@pytest.mark.medium
def test_a_placebo_that_does_the_same_leaves_no_effect(tmp_path):
    arms = (
        BASELINE,
        PCGRAD,
        SimulatedArm(name="p", intervention="placebo:pcgrad", role="placebo", of="pcgrad", effect=-0.03),
    )
    found = row(study(tmp_path, arms=arms))
    assert found["word"] == "no effect found" and "not below its placebo" in found["reasons"][0]


@pytest.mark.medium
def test_arms_of_different_length_are_compared_where_both_have_been(tmp_path):
    longer = SimulatedArm(name="pcgrad", intervention="pcgrad", steps=1.5)
    comparison = study(tmp_path, arms=(BASELINE, longer))
    assert comparison["sizes"][0]["T"] == 300


def test_an_arm_of_which_nothing_finished_has_no_difference(tmp_path):
    faults = {("pcgrad", "0.1M", i): "failed" for i in range(2)}
    comparison = study(tmp_path, faults=faults)
    assert row(comparison)["primary"] is None and "no pair of trials finished" in comparison["answers"][0]["sentence"]
    assert len(comparison["failures"]) == 2


@pytest.mark.medium
def test_a_study_whose_baseline_failed_still_reads(tmp_path):
    comparison = study(tmp_path, faults={("baseline", "0.1M", i): "failed" for i in range(2)})
    assert comparison["sizes"][0]["T"] == 300 and row(comparison)["primary"] is None
    assert [cell["finished"] for cell in comparison["cells"]] == [0, 2]


@pytest.mark.medium
def test_an_arm_with_cosine_is_no_question_of_its_own(tmp_path):
    arms = (BASELINE, PCGRAD, SimulatedArm(name="c", intervention="cosine", role="control"),
            SimulatedArm(name="pc", intervention="pcgrad+cosine", role="arm"))  # fmt: skip
    comparison = study(tmp_path, arms=arms, seeds=2)
    assert [a["arm"] for a in comparison["answers"]] == ["pcgrad"]
    assert row(comparison)["beyond_cosine"]["arm"] == "pc" and row(comparison)["beyond_cosine"]["against"] == "c"


def test_cosine_at_a_rate_that_was_not_tuned_or_of_fewer_pairs_says_nothing_of_lr_decay(tmp_path):
    arms = (BASELINE, PCGRAD, *(arm for arm in ARMS if "cosine" in arm.name))

    def beyond(name, **options):
        found = row(study(tmp_path / name, arms=arms, seeds=3, **options))
        return found["beyond_lr_decay"], found["beyond_cosine"]["unasked"]

    assert beyond("tuned", tuning=TUNED) == (True, None)
    assert beyond("untuned") == (None, "the rate of pcgrad+cosine and of cosine was not tuned")
    few = {("cosine", "0.1M", 1): "failed"}
    assert beyond("few", tuning=TUNED, faults=few) == (
        None, "pcgrad+cosine and cosine have fewer pairs than the arm and the baseline"
    )  # fmt: skip


def rewrite(results, intervention, change):
    """Apply `change` to every probe line and manifest of an intervention's trials."""
    for folder in (results / "trials").iterdir():
        if json.loads((folder / "config.json").read_text())["intervention"] == intervention:
            lines = [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]
            manifest = json.loads((folder / "manifest.json").read_text())
            change(lines, manifest["totals"])
            (folder / "probes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (folder / "manifest.json").write_text(json.dumps(manifest))


def test_equal_compute_is_in_time_per_token_and_charges_a_reference_model(tmp_path):
    """Steps of half the tokens in half the time cost as much: nothing changes at equal compute."""
    same = SimulatedArm(name="pcgrad", intervention="pcgrad", effect=-0.03, cost=1.0)
    results = write_study(tmp_path, np.random.default_rng(1), arms=(BASELINE, same), sizes=("0.1M",), seeds=2,
                          steps=300, step_lines=False)  # fmt: skip

    def halve(lines, totals):
        for line in lines:
            line["tokens"] //= 2
        totals["tokens"] //= 2
        totals |= {key: totals[key] / 2 for key in ("train_seconds", "median_step_seconds")}

    rewrite(results, "pcgrad", halve)
    found = row(compare(results))
    assert found["equal_compute"]["cost"] == [pytest.approx(1, abs=0.05)]
    assert found["equal_compute"]["estimate"] == pytest.approx(found["primary"]["estimate"], abs=0.006)
    rewrite(results, "pcgrad", lambda lines, totals: totals.update(reference_seconds=totals["train_seconds"] / 2))
    found = row(compare(results))["equal_compute"]
    assert found["cost"] == [pytest.approx(1.5, abs=0.1)] and not found["unaffordable"]
    # The reference is paid before the first step: half of the budget is left, not the share 1/1.5.
    measures = load(results).measures
    half = np.mean([measures.log_loss(t, 75) for t in measures.study.of("pcgrad")])
    whole = np.mean([measures.log_loss(t) for t in measures.study.of("baseline")])
    assert measures.horizon["0.1M"] == 150 and found["estimate"] == pytest.approx(half - whole, abs=0.01)
    rewrite(results, "pcgrad", lambda lines, totals: totals.update(reference_seconds=1.1 * totals["train_seconds"]))
    found = compare(results)
    assert row(found)["equal_compute"]["estimate"] is None and row(found)["equal_compute"]["unaffordable"] == ["0.1M"]
    assert cost(found).rows[0][-1] == "its reference model takes it all"
    write_report(load(results), tmp_path / "report.html")


def test_a_size_with_too_few_pairs_is_named_and_makes_the_answer_exploratory(tmp_path):
    faults = {("pcgrad", "0.2M", seed): "failed" for seed in range(5)}
    comparison = study(tmp_path, sizes=("0.1M", "0.2M"), seeds=6, faults=faults)
    found, [answer] = row(comparison), comparison["answers"]
    assert found["sizes_left_out"] == {"pcgrad": ["0.2M"]} and found["exploratory"]
    assert "over 6 seeds at 1 size." in answer["sentence"] and "left out: size 0.2M" in answer["sentence"]
    faults = {("placebo:pcgrad", "0.2M", seed): "failed" for seed in range(2)}
    comparison = study(tmp_path / "placebo", arms=(BASELINE, PCGRAD, PLACEBO), sizes=("0.1M", "0.2M"), faults=faults)
    assert "against placebo:pcgrad, so left out: size 0.2M" in comparison["answers"][0]["sentence"]
    faults = {("rate:2", "0.2M", seed): "diverged" for seed in range(6)}
    comparison = study(tmp_path / "rates", arms=(BASELINE, PCGRAD, *RATES), sizes=("0.1M", "0.2M"), seeds=6,
                       faults=faults)  # fmt: skip
    found = row(comparison)
    assert found["sizes_left_out"]["rate:2"] == ["0.2M"] and found["exploratory"]


def test_an_update_that_moved_nothing_is_drawn_and_averaged_without_its_d(tmp_path):
    """A rate of 0 at T (cosine to 0): M = 0, and D is not defined."""
    arms = (BASELINE, SimulatedArm(name="cosine", intervention="cosine", role="control"))
    results = write_study(tmp_path, np.random.default_rng(0), arms=arms, sizes=("0.1M",), seeds=3, steps=192,
                          step_lines=False)  # fmt: skip

    def still(lines, totals):
        for key in ("dt1_heldout", "dt1_batch"):
            lines[-1][key] = {"D": None, "M": 0.0, "dL": 0.0, "n": 6144}

    rewrite(results, "cosine", still)
    breaks = load(results)
    measures = breaks.measures
    drawn = plane(measures, "cosine", "0.1M", "dt1_heldout")
    assert len(drawn.x) == len(plane(measures, "baseline", "0.1M", "dt1_heldout").x) - 1 and (drawn.y > 0).all()
    write_report(breaks, tmp_path / "report.html")
    [found] = [r for r in mechanism(measures, "cosine", "baseline") if r["instrument"] == "dt1_heldout.D"]
    assert abs(found["matched_step"]["estimate"]) < 0.05
