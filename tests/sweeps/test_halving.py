"""Successive halving cuts by the rule, the same points in whatever order trials end, and costs a trial that goes on
nothing. Where trials train, they are real ones, in this process."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.report.tuning_blocks import points as points_of
from analysis.report.tuning_blocks import value as told
from analysis.study.load import Trial, load_study
from sweeps.arm_search import ArmSearch, Value
from sweeps.halving import _up_to, measured_before, rungs
from sweeps.ledger import Ledger
from sweeps.outcome import Failure
from sweeps.planned import PlannedTrial
from sweeps.search import Search, value_of
from sweeps.study import build, with_arms
from sweeps.trial import trial
from sweeps.tune_rate import SEEDS
from zslx.config.presets import preset
from zslx.config.run_config import override
from zslx.runs.records import read_run

STEPS, POINTS = 16, 6


@pytest.fixture(scope="module")
def short(tiny: str) -> str:
    """Settings of a trial that takes no second and measures enough early losses."""
    return tiny.replace("heldout_points=6", "heldout_points=14") + f" train.steps={STEPS}"


def complete(*values: float) -> list[Value]:
    return [Value(state="complete", value=value, se=0.001) for value in values]


def test_a_rung_by_hand(tiny):
    """With a factor of 2, the n-th point at a rung goes on if it is among the best n // 2 there, or the best of all."""
    [arm] = build(("none",), "smoke", sizes=["0.1M"], overrides=tiny.split()).arms
    search = ArmSearch(arm, 8, rungs=(256, 512))
    first = search.ask()
    left = search.tell(first, complete(0.0, 0.01, -0.02, -0.01), 256)
    assert [t.number for t in left] == [0, 2, 3], "1 of 1; not the best of 2; the best of 3; among 2 of 4"
    left = search.tell(left, complete(0.0, -0.03, -0.005), 512)
    assert [t.number for t in left] == [0, 2], "1 of 1; the best of 2; not the best of 3"
    assert search.tell(left, complete(0.0, -0.04)) == [] and not search.done
    second = search.ask()
    values = [*complete(0.02, -0.015), Value(state="diverged", why="seed 1000 diverged"), *complete(-0.008)]
    left = search.tell(second, values, 256)
    assert [t.number for t in left] == [5], "not among 2 of 5; among 3 of 6; diverged, not counted; not among 3 of 7"
    assert search.tell(left, complete(-0.05), 512) == left
    search.tell(left, complete(-0.03))
    states = {n: v.state for n, v in search.values.items()}
    assert search.done and states == {
        **{0: "complete", 1: "cut", 2: "complete", 3: "cut", 4: "cut", 5: "complete", 6: "diverged", 7: "cut"}
    }
    assert search.best().number == 2, "a value at a rung is no value, however low"

    points = json.loads(json.dumps(search.summary(), sort_keys=True))["points"]
    said = [told(point) for point in points]
    assert said[1:4] == ["cut at step 256: +0.0100", "−0.0400 ± 0.0010", "cut at step 512: −0.0050"]
    assert [search.values[n].cut for n in (1, 2, 3)] == ["at step 256: +0.0100", "", "at step 512: -0.0050"]
    assert points[3]["value"] is None and points[5]["rungs"] == {"256": -0.015, "512": -0.05}
    assert said[6] == "diverged: seed 1000 diverged" and points[6]["rungs"] == {}
    assert points_of(json.loads(json.dumps(search.summary()))).rows[0][0] == "2"
    kept = search.study.trials
    assert [t.state.name for t in kept] == [
        *("COMPLETE", "PRUNED", "COMPLETE", "PRUNED", "PRUNED", "COMPLETE", "PRUNED", "PRUNED")
    ]
    assert kept[3].intermediate_values == {256: -0.01, 512: -0.005}
    assert kept[3].user_attrs["cut"] == "at step 512: -0.0050"
    assert "cut" not in kept[6].user_attrs and kept[6].user_attrs["why"] == "seed 1000 diverged"


def test_rungs_are_a_quarter_and_a_half_and_need_a_measured_loss():
    config = preset("laptop").config
    found = rungs(config)
    assert found == (config.train.steps // 4, 2 * (config.train.steps // 4))
    few = override(config, [("instruments.probes", "false"), ("instruments.heldout_points", "2")])
    with pytest.raises(ValueError, match=r"HALVING: no held-out loss is measured after step .*heldout_points"):
        rungs(few)
    enough = override(config, [("instruments.probes", "false")])
    assert all(rung / 2 < at <= rung for rung, at in zip(found, measured_before(enough, rungs(enough)), strict=True))
    with pytest.raises(ValueError, match=r"more than 3 train\.steps"):
        rungs(override(config, [("train.steps", "3")]))


def test_a_trial_at_a_rung_is_what_its_records_up_to_there_say():
    steps = np.array([0.0, 1, 2, 4, 8])
    losses = {"heldout_loss": (np.arange(5, dtype=np.int32), np.array([6.0, 5, 4, 3, 2]))}
    known = {"manifest": {"totals": {"steps": 10}}, "probe_steps": steps, "probe_tokens": 64 * steps, "values": losses}
    over = Trial(arm="baseline", size="0.1M", seed=0, status="diverged", error="the loss is nan", **known)
    at = _up_to(over, 7)
    assert at.status == "finished" and at.error == "" and list(at.probe_steps) == [0, 1, 2, 4]
    assert list(at.series("heldout_loss")[2]) == [6, 5, 4, 3], "that it diverged later is not known there"
    assert _up_to(over, 10).status == "diverged" and _up_to(over, 9).status == "finished"
    assert _up_to(replace(over, status="paused"), 11).status == "paused"
    assert _up_to(replace(over, status="waiting", manifest={}), 4).status == "waiting"


# Searches of real trials.

Order = Callable[[Sequence], Sequence]


def searched(
    short: str,
    results: Path,
    order: Order = list,
    stages: int = -1,
    asked: str = "none",
    points: int = POINTS,
    halving: bool = True,
    lost: Sequence[PlannedTrial] = (),
) -> Search:
    """A search whose trials train in an order, but for those that are lost: their workers die. It is killed after so
    many stages: rungs, and ends of rounds."""
    options = {"sizes": ["0.1M"], "overrides": short.split(), "results": results, "halving": halving}
    search, ledger = Search((asked,), "smoke", points, **options), Ledger(results)
    while study := search.ask():
        ledger.record(study)
        for t in order(ledger.split(study.in_order)[1]):
            trial(t.config.to_dict(), ledger.folder(t.key), expected=t.identity)
        ledger.record(study, {t.key: Failure("its process died 3 times") for t in lost if t in study.trials})
        search.tell(load_study(results, study.name))
        stages -= 1
        if stages == 0:
            break
    return search


@pytest.mark.medium
@pytest.mark.parametrize("halving", [False, True])
def test_a_point_that_failed_stays_failed_so_that_the_same_points_are_asked_for(halving: bool, short, tmp_path):
    """A worker dies three times in the first round, on the way to the second rung or to the end. When the command is
    given again, none would; it trains nothing, and the next point is the same."""
    at, stages, lost = (8, 3, []) if halving else (STEPS, 1, [])

    def dies(pending: Sequence) -> Sequence:
        if not lost:
            lost.extend([t for t in pending if t.steps == at and "#" in t.arm][:1])
        return [t for t in pending if t not in lost]

    options = {"stages": stages, "points": 5, "halving": halving}
    first = searched(short, tmp_path, dies, lost=lost, **options)
    again = searched(short, tmp_path, lambda pending: pytest.fail("trained") if pending else [], **options)
    points = [[t.params for t in search.arms[0].study.trials] for search in (first, again) if search.ask()]
    assert points[0] == points[1] and len(points[0]) == 5
    [number] = (int(t.arm.partition("#")[2]) for t in lost)
    value = again.arms[0].values[number]
    assert value == first.arms[0].values[number] and value.state == "failed"
    assert value.why.startswith(f"seed {lost[0].seed} ") and value.why.endswith(": its process died 3 times")
    told = f"  1 failed before and stay so ({lost[0].arm}); {tmp_path}/studies/{again.name}/failed.json keeps that"
    assert told in again.announce()


def outcome(search: Search) -> dict:
    return {key: value for key, value in search.summary().items() if key != "train_seconds"}


@pytest.fixture(scope="module")
def whole(short: str, environment: dict[str, str], tmp_path_factory) -> tuple[Path, Search]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSLX_CACHE", environment["ZSLX_CACHE"])
        results = tmp_path_factory.mktemp("whole")
        return results, searched(short, results)


def folders(results: Path) -> dict[str, dict]:
    """The manifest of every trial."""
    return {p.parent.name: json.loads(p.read_text()) for p in results.glob("trials/*/manifest.json")}


def steps_taken(folder: Path) -> int:
    return sum(line["steps"] for line in read_run(folder).timing)


@pytest.mark.medium
def test_points_are_cut_marked_and_paid_for_to_their_rung_alone(whole):
    results, search = whole
    [arm] = search.summary()["arms"]
    states = [point["state"] for point in arm["points"]]
    assert states[0] == "complete" and "cut" in states and set(states) == {"complete", "cut"}
    measured = load_study(results, search.name)
    for point in arm["points"]:
        name = "baseline" if point["point"] == 0 else f"baseline #{point['point']}"
        own = [t for t in measured.trials if t.arm == name]
        end = max(map(int, point["rungs"])) if point["state"] == "cut" else STEPS
        assert [t.manifest["totals"]["steps"] for t in own] == [end] * len(SEEDS)
        said = ("paused", f"at step {end} of {STEPS}") if point["state"] == "cut" else ("finished", "")
        assert {(t.status, t.error) for t in own} == {said}
        assert all(steps_taken(t.folder) == end for t in own)
        assert point["value"] is None or value_of(measured, name).value == point["value"]
    halving = search.summary()["halving"]
    assert halving["rungs"] == [4, 8] and halving["cut"] == states.count("cut")
    assert halving["steps_trained"] == sum(m["totals"]["steps"] for m in folders(results).values())
    assert halving["steps_in_all"] == POINTS * len(SEEDS) * STEPS


@pytest.mark.medium
def test_what_is_cut_does_not_depend_on_the_order_in_which_trials_end(short, whole, tmp_path):
    results, search = whole
    other = searched(short, tmp_path / "other", order=lambda trials: list(trials)[::-1])
    assert outcome(other) == outcome(search)
    for key in folders(results):
        for name in ("config.json", "steps.jsonl", "probes.jsonl"):
            assert (results / "trials" / key / name).read_bytes() == (
                tmp_path / "other/trials" / key / name
            ).read_bytes()


@pytest.mark.medium
def test_a_search_that_is_killed_after_every_rung_comes_to_the_same_and_trains_no_step_twice(short, whole, tmp_path):
    for stages in range(1, 6):
        searched(short, tmp_path, stages=stages)
    again = searched(short, tmp_path)
    assert outcome(again) == outcome(whole[1]) and folders(tmp_path).keys() == folders(whole[0]).keys()
    for key, manifest in folders(tmp_path).items():
        assert steps_taken(tmp_path / "trials" / key) == manifest["totals"]["steps"]


@pytest.mark.medium
def test_a_trial_that_went_on_is_the_trial_in_one_go(whole, tmp_path):
    results, search = whole
    for t in search.study.trials:  # the baseline as it is came through both rungs
        trial(t.config.to_dict(), tmp_path / "trials" / t.key, expected=t.identity)
        for name in ("config.json", "steps.jsonl", "probes.jsonl", f"checkpoints/{STEPS:09d}/tensors.safetensors"):
            one, paused = (folder / "trials" / t.key / name for folder in (tmp_path, results))
            assert one.read_bytes() == paused.read_bytes(), name


@pytest.mark.medium
def test_the_same_points_are_cut_where_all_trials_are_finished_before(short, whole, tmp_path):
    results, search = tmp_path / "results", whole[1]
    shutil.copytree(whole[0], results)
    for t in with_arms(search.study, search.planned, results).trials:
        trial(t.config.to_dict(), results / "trials" / t.key, expected=t.identity)
    assert {m["status"] for m in folders(results).values()} == {"finished"}
    again = searched(short, results, order=lambda pending: pytest.fail("trained again") if pending else [])
    assert outcome(again)["arms"] == outcome(search)["arms"]
    assert outcome(again)["halving"]["steps_trained"] == POINTS * len(SEEDS) * STEPS


@pytest.mark.medium
def test_a_paused_trial_whose_records_were_changed_is_trained_again(short, whole, tmp_path):
    """Set aside, since nobody could tell a changed loss from a true one."""
    results = tmp_path / "results"
    shutil.copytree(whole[0], results)
    cut = next(key for key, m in folders(results).items() if m["status"] == "paused")
    path = results / "trials" / cut / "steps.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"loss":', b'"loss":1', 1))
    again = searched(short, results)
    assert outcome(again) == outcome(whole[1])
    assert [p.name.partition("-")[0] for p in results.glob("trials/.damaged/*")] == [cut]


@pytest.mark.slow
def test_a_halved_search_that_is_killed_in_the_middle_of_a_rung_comes_to_the_same(sweep, processes, tmp_path):
    """The real command, killed while it trains for the second rung, beside a search in this process without Ray."""
    sweep.tiny = sweep.tiny.replace("heldout_points=6", "heldout_points=24")
    options = ("--steps", "200", "--seeds", "2", "--search", "4", "--halving", "--wandb", "off")
    running = sweep.start("focal", *options)
    files = "trials/*/steps.jsonl"
    processes.wait_for(
        lambda: any(p.read_bytes().count(b"\n") > 50 for p in sweep.results.glob(files)), running, seconds=400
    )
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    going_on = sweep.start("focal", *options)
    said, wrong = going_on.communicate(timeout=900)  # it starts Ray four times
    assert going_on.returncode == 0, wrong
    assert "to step 100 of 200" in said and ": #" in said
    calm = searched(f"{sweep.tiny} train.steps=200", tmp_path / "calm", asked="focal", points=4)
    study = next(s for p in sweep.results.glob("studies/*/study.json") if (s := json.loads(p.read_text()))["tuning"])
    tuning = {key: value for key, value in study["tuning"].items() if key != "train_seconds"}
    assert tuning == json.loads(json.dumps(outcome(calm))) and tuning["halving"]["cut"]
    for name, lines in sweep.records().items():
        path = tmp_path / "calm/trials" / name
        assert not path.exists() or path.read_bytes() == lines, "the comparison's own trials are not there"
    with sqlite3.connect(sweep.results / "optuna.db") as database:
        [(count,)] = database.execute("select count(*) from trial_user_attributes where key = 'cut'").fetchall()
    assert count == tuning["halving"]["cut"]
    assert "SEARCH=4" in study["command"] and "HALVING=1" in study["command"]
    again = sweep("focal", *options)
    assert again.returncode == 0 and "starting Ray" not in again.stderr
    assert again.stdout.count("\n0 trained, ") == 4, "two rungs, the ends, the comparison"
    page = (sweep.folder / said.splitlines()[-1]).read_text()
    assert "cut at step" in page and "successive halving" in page
