"""Studies from the ledger: what is missing or damaged becomes a named failure, never a crash or a silent gap."""

import json

import numpy as np
import pytest

from analysis.inference.compare import compare_study
from analysis.inference.pooled_breaks import PooledBreaks
from analysis.simulation.study import BASELINE, SimulatedArm, write_study
from analysis.study.load import find_study, load_study, numbers_of
from analysis.study.measures import Measures
from zslx.runs.json_files import write_json

ARM = {"name": "baseline", "intervention": "none", "role": "baseline"}
TWO = (BASELINE, SimulatedArm(name="pcgrad", intervention="pcgrad", effect=-0.02))


def small(results, seed=0, **options):
    options = {"arms": TWO, "sizes": ("0.1M",), "seeds": 2, "steps": 60, "step_lines": False} | options
    return write_study(results, np.random.default_rng(seed), **options)


def test_a_study_reads_back_with_its_trials_in_place(tmp_path):
    study = load_study(small(tmp_path, sizes=("0.1M", "0.2M"), seeds=3))
    grid = study.grid("pcgrad", lambda trial: 100 * study.sizes.index(trial.size) + trial.seed)
    np.testing.assert_array_equal(grid, [[0, 1, 2], [100, 101, 102]])
    trial = next(study.of("pcgrad", "0.1M"))
    steps, tokens, losses = trial.series("heldout_loss")
    assert steps[0] == 0 and steps[-1] == 60 and tokens[-1] == 60 * 16 * 32 and np.all(losses > 0)
    steps, _, d = trial.series("dt1_heldout.D")
    assert steps[0] == 1 and np.all((d >= 0) & (d <= 1))
    assert len(trial.series("no.such.instrument")[0]) == 0


def test_the_newest_study_is_the_default_and_others_go_by_name(tmp_path):
    small(tmp_path, name="new", created="2026-03-01T00:00:00Z")
    small(tmp_path, name="old", created="2026-02-01T00:00:00Z", seed=1)
    assert load_study(tmp_path).name == "new" and load_study(tmp_path, "old").name == "old"
    with pytest.raises(ValueError, match="no study 'other'; there are: new, old"):
        find_study(tmp_path, "other")
    with pytest.raises(ValueError, match="no study here"):
        find_study(tmp_path / "studies")


def test_each_fault_is_a_trial_with_a_status_and_a_reason(tmp_path):
    faults = {
        ("pcgrad", "0.1M", 0): "diverged",
        ("pcgrad", "0.1M", 1): "failed",
        ("pcgrad", "0.1M", 2): "damaged",
        ("pcgrad", "0.1M", 3): "torn",
        ("pcgrad", "0.1M", 4): "missing",
    }
    study = load_study(small(tmp_path, seeds=6, faults=faults))
    found = {t.seed: (t.status, t.error) for t in study.trials if t.arm == "pcgrad"}
    assert found[0] == ("diverged", "the loss is not finite at step 21")
    assert found[1] == ("failed", "RuntimeError: out of memory")
    assert found[2][0] == "failed" and "probes.jsonl:1:" in found[2][1]
    assert found[3] == found[5] == ("finished", "")
    assert 4 not in found
    assert sorted(t.seed for t in study.of("pcgrad")) == [3, 5]


def test_a_finished_trial_whose_records_are_gone_is_a_failure(tmp_path):
    small(tmp_path)
    path = tmp_path / "studies/study-0/study.json"
    declaration = json.loads(path.read_text())
    declaration["trials"][0]["identity"] = "../../../../etc"
    declaration["trials"][1]["identity"] = "0" * 16
    write_json(path, declaration)
    gone = [t for t in load_study(tmp_path).trials if not t.finished]
    assert [t.error for t in gone] == ["its records are gone from the ledger"] * 2


def test_a_finished_trial_that_measured_nothing_after_step_0_is_a_failure(tmp_path):
    small(tmp_path)
    folder = next(load_study(tmp_path).of("pcgrad")).folder
    (folder / "probes.jsonl").write_text('{"step": 0, "tokens": 0, "heldout_loss": 7.6}\n')
    [lost] = [t for t in load_study(tmp_path).trials if not t.finished]
    assert lost.status == "failed" and "no held-out loss of a trained model" in lost.error


@pytest.mark.parametrize("name", ["probes", "steps"])
def test_records_that_were_cut_short_are_a_failure(tmp_path, name):
    """One such trial would set the T at which all trials of its size are compared."""
    study = load_study(small(tmp_path, step_lines=True))
    path = next(study.of("pcgrad")).folder / f"{name}.jsonl"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    [cut] = [t for t in load_study(tmp_path).trials if not t.finished]
    assert cut.status == "failed" and f"{name}.jsonl: ends at step" in cut.error and "of 60" in cut.error


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("manifest", {"hardware": "x"}, "manifest.json: hardware must be an object, not 'x'"),
        ("manifest", {"ingredients": [1]}, "manifest.json: ingredients must be an object, not a list"),
        ("manifest", {"totals": {"steps": "60"}}, "manifest.json: totals.steps must be a whole number, not '60'"),
        ("manifest", {"totals": None}, "manifest.json: totals must be an object, not None"),
        ("manifest", {"status": 1}, "manifest.json: status must be a text, not 1"),
        ("config", {"train": {}}, "config.json: train.steps is missing"),
        ("config", {"model": {"width": 3}}, "config.json: unknown key 'model.width'"),
        ("config", {"optim": {"warmup": "x"}}, "config.json: optim.warmup='x': must be a whole number"),
    ],
)
def test_a_damaged_file_costs_only_its_own_trial(tmp_path, name, change, message):
    study = load_study(small(tmp_path, seeds=3))
    path = next(study.of("pcgrad")).folder / f"{name}.json"
    write_json(path, json.loads(path.read_text()) | change)
    study = load_study(tmp_path)
    [lost] = [t for t in study.trials if not t.finished]
    assert f"{path.parent}/{message}" in lost.error
    compare_study(PooledBreaks(Measures(study)))


def test_files_that_say_nothing_or_too_much_cost_only_their_own_trials(tmp_path):
    first, second = [trial.folder for trial in load_study(small(tmp_path, seeds=3)).of("pcgrad")][:2]
    (first / "config.json").write_text("{}")
    with (second / "probes.jsonl").open("a") as file:
        file.write('{"step": 61, "tokens": 1, "heldout_loss": 1' + "0" * 400 + "}\n")
    lost = [t.error for t in load_study(tmp_path).trials if not t.finished]
    assert lost[0] == f"{first}/config.json: model is missing"
    assert "probes.jsonl:" in lost[1] and "has 401 digits" in lost[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"step": True}, "probes.jsonl:2: step True does not come after 0"),
        ({"tokens": 0}, "probes.jsonl: tokens must increase with the steps"),
        ({"tokens": 1.5}, None),
    ],
)
def test_a_line_that_cannot_be_costs_only_its_own_trial(tmp_path, line, message):
    study = load_study(small(tmp_path, seeds=3, step_lines=True))
    folder = next(study.of("pcgrad")).folder
    for name in ("probes", "steps"):
        path = folder / f"{name}.jsonl"
        lines = path.read_text().splitlines()
        place = 1 if name == "probes" else 2
        lines[place] = json.dumps(json.loads(lines[place]) | line)
        path.write_text("\n".join([*lines, ""]))
    study = load_study(tmp_path)
    assert [message in t.error for t in study.trials if not t.finished] == ([True] if message else [])
    compare_study(PooledBreaks(Measures(study)))


def test_one_comparison_never_mixes_machines_or_versions(tmp_path):
    small(tmp_path, seeds=3)
    folder = next(load_study(tmp_path).of("pcgrad")).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["ingredients"]["torch"] = "9.9"
    write_json(folder / "manifest.json", manifest)
    study = load_study(tmp_path)
    [other] = [t for t in study.trials if not t.finished]
    assert other.status == "failed" and "torch 9.9 (others: 2.13.0)" in other.error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": []}, "exactly one arm with the role baseline, has 0"),
        ({"arms": None}, r"study\.json: arms must be a list, not None"),
        (
            {"arms": [ARM | {"settings": [1]}]},
            r"study\.json: arms\[0\]\.settings must be an object or null, not a list",
        ),
        ({"sizes": ["0.2M"]}, "none of its arms, sizes and seeds"),
        ({"seeds": ["x"]}, r"study\.json: seeds\[0\] must be a whole number, not 'x'"),
        ({"trials": [{"arm": "x"}]}, r"study\.json: trials\[0\]\.size is missing"),
    ],
)
def test_a_damaged_declaration_is_an_error_that_names_it(tmp_path, change, message):
    small(tmp_path)
    path = tmp_path / "studies/study-0/study.json"
    write_json(path, json.loads(path.read_text()) | change)
    with pytest.raises(ValueError, match=message):
        load_study(tmp_path)


def test_numbers_are_flattened_and_null_left_out():
    lines = [
        {"step": 1, "tokens": 8, "a": {"b": {"c": 2}}, "flag": True, "text": "x"},
        {"step": 2, "tokens": 16, "a": {"b": {"c": None}}, "new": 0.5},
    ]
    steps, tokens, values = numbers_of(lines)
    assert steps.tolist() == [1, 2] and tokens.tolist() == [8, 16]
    assert {k: (r.tolist(), v.tolist()) for k, (r, v) in values.items()} == {"a.b.c": ([0], [2.0]), "new": ([1], [0.5])}
    with pytest.raises(ValueError, match="no number of tokens"):
        numbers_of([{"step": 1}])


@pytest.mark.parametrize("loss", [0.0, -1.0, 1e308])
def test_a_trial_with_an_impossible_loss_is_named_and_the_others_are_compared(loss, tmp_path):
    arms = (BASELINE, SimulatedArm(name="pcgrad", intervention="pcgrad"))
    results = write_study(tmp_path, np.random.default_rng(0), arms=arms, sizes=("0.1M",), seeds=3, steps=60)
    path = next(p for p in sorted(results.glob("trials/*/probes.jsonl")))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-2]["heldout_loss"] = loss
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    study = load_study(results)
    failed = [t for t in study.trials if t.status == "failed"]
    assert len(failed) == 1 and "is no loss in nats per token" in failed[0].error
    assert compare_study(PooledBreaks(Measures(study)))["contrasts"]


def test_a_damaged_study_stops_nobody_who_asks_for_another(tmp_path):
    results = small(tmp_path, name="whole")
    broken = results / "studies" / "broken" / "study.json"
    broken.parent.mkdir()
    broken.write_text("{")
    assert find_study(results).name == find_study(results, "whole").name
    with pytest.raises(ValueError, match=r"broken/study\.json"):
        find_study(results, "broken")


@pytest.mark.parametrize("of", [("pcgrad",), ("pcgrad", "baseline")])
def test_a_trial_that_moved_between_machines_is_set_apart_and_says_so(tmp_path, of):
    """Its second machine is that of the others, or of all of them: no machine gives its numbers again."""
    for trial in small(tmp_path) and load_study(tmp_path).trials:
        if trial.arm in of and trial.seed == 0:
            path = trial.folder / "manifest.json"
            manifest = json.loads(path.read_text())
            elsewhere = {"hardware": manifest["hardware"] | {"processor": "another"}, "versions": manifest["versions"]}
            same = elsewhere | {"hardware": manifest["hardware"]}
            write_json(path, manifest | {"earlier": [elsewhere, same]})
        elif trial.arm == "pcgrad":  # of other versions alone
            path = trial.folder / "manifest.json"
            manifest = json.loads(path.read_text())
            older = {"hardware": manifest["hardware"], "versions": {"python": "3.10"}}
            write_json(path, manifest | {"earlier": [older]})
    left_out = {t.label: t.error for t in load_study(tmp_path).trials if not t.finished}
    assert set(left_out) == {f"{arm}/0.1M/0" for arm in of}
    for error in left_out.values():
        assert "not comparable, trained in part elsewhere: processor another and simulated; move trials/" in error


def test_a_study_all_of_whose_trials_moved_has_none_left(tmp_path):
    for trial in small(tmp_path) and load_study(tmp_path).trials:
        path = trial.folder / "manifest.json"
        write_json(path, json.loads(path.read_text()) | {"earlier": [{"hardware": {"processor": "another"}}]})
    study = load_study(tmp_path)
    assert not any(t.finished for t in study.trials)
    compare_study(PooledBreaks(Measures(study)))
