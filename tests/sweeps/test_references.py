"""Reference runs that a sweep trains itself: which, in what order, for whom, and at whose cost."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from analysis.study.declaration import Declaration
from analysis.study.load import Trial, load_study
from analysis.study.measures import Measures
from analysis.study.tuning import train_seconds
from sweeps import commands
from sweeps.estimate import Estimate
from sweeps.ledger import Ledger
from sweeps.outcome import Failure
from sweeps.planned import SEED
from sweeps.progress import Progress
from sweeps.rounds import lost, rounds
from sweeps.search import Search
from sweeps.study import build, with_arms
from sweeps.trial import trial
from sweeps.tune_rate import SEEDS, summary, tuning_study
from zslx.runs.identity import identity
from zslx.runs.load import reference_actions
from zslx.runs.records import read_manifest

OPTIONS = ("--seeds", "2", "--steps", "40")
LONG = ("--seeds", "1", "--steps", "600")
FRAGILE = """
from dataclasses import dataclass
from interventions.adaptive.adaptive_rate import AdaptiveRate

@dataclass(frozen=True)
class Fragile(AdaptiveRate):
    "A test's own."
    name = "fragile"

    def lr_factor(self, run, state):
        if run.config.train.seed == 2 and run.step == 7:
            raise RuntimeError("no more")
        return super().lr_factor(run, state)
"""


def study(tiny: str, *asked: str, extra: str = "", steps: int = 20, **options):
    overrides = [*f"{tiny} {extra}".split(), f"train.steps={steps}"]
    return build(asked, "smoke", sizes=["0.1M"], overrides=overrides, **options)


def carried_out(planned, results: Path) -> Ledger:
    """Train all of a study, without Ray."""
    ledger = Ledger(results)
    for t in planned.in_order:
        trial(t.config.to_dict(), ledger.folder(t.key), expected=t.identity)
    ledger.record(planned)
    return ledger


def needed(planned, arm: str) -> dict[int, tuple[str, int]]:
    """The method and the seed of each trial's reference run, by the trial's seed."""
    runs = {t.seed: t.reference.config for t in planned.trials if t.arm == arm and t.reference}
    return {seed: (config.intervention, config.train.seed) for seed, config in runs.items()}


def test_a_method_that_needs_losses_gets_a_baseline_of_a_seed_of_its_own(tiny):
    made = study(tiny, "rho1", seeds=(0, 3), extra="optim.lr=1e-3 rho1.keep=0.5")
    [reference] = made.references
    assert reference.label == f"reference/0.1M/{SEED}"
    assert needed(made, "rho1") == {0: ("none", SEED), 3: ("none", SEED)} and not needed(made, "baseline")
    plain = study(tiny, "none", seeds=(SEED,), extra="optim.lr=1e-3").trials[0]
    assert (reference.config, reference.key) == (plain.config, plain.key), "an ordinary trial of the ledger"
    assert made.in_order[0] == reference
    assert reference.arm not in {arm.name for arm in made.arms}


def test_the_reference_trains_at_the_presets_rate_whatever_was_tuned(tiny):
    rates = {"baseline": {"0.1M": 2.0}, "rho1": {"0.1M": 0.5}}
    plain, tuned = study(tiny, "rho1"), study(tiny, "rho1", rates=rates)
    assert plain.references == tuned.references
    factors = with_arms(tuned, tuned.arms)
    assert factors.references == plain.references and factors.trials == tuned.trials


def test_the_placebo_of_a_controller_gets_a_run_of_the_next_seed(tiny):
    asked = ("placebo:adaptive_rate", "adaptive_rate")
    made = study(tiny, *asked, extra="adaptive_rate.cadence=5", rates={"adaptive_rate": {"0.1M": 0.5}})
    assert needed(made, "placebo:adaptive_rate") == {0: ("adaptive_rate", 1), 1: ("adaptive_rate", 2)}
    assert [t.label for t in made.references] == ["reference adaptive_rate/0.1M/2"], "that of seed 1 is a trial"
    first, rest = rounds([*made.references, *made.trials])
    assert {t.label for t in first} == {"reference adaptive_rate/0.1M/2", "adaptive_rate/0.1M/1"}
    assert len(rest) == len(made.trials) - 1
    for placebo in rest:
        if placebo.reference:
            assert placebo.config.optim == placebo.reference.config.optim
            assert placebo.config.settings == placebo.reference.config.settings


def test_identities_are_known_before_and_the_same_after_and_elsewhere(tiny, tmp_path):
    asked = ("rho1", "adaptive_rate", "placebo:adaptive_rate")
    before = study(tiny, *asked, seeds=(0,), results=tmp_path / "a")
    carried_out(before, tmp_path / "a")
    assert study(tiny, *asked, seeds=(0,), results=tmp_path / "a") == before
    assert [identity(t.config) for t in before.in_order] == [t.identity for t in before.in_order]
    elsewhere = study(tiny, *asked, seeds=(0,), results="other")
    assert [t.key for t in elsewhere.in_order] == [t.key for t in before.in_order] and elsewhere.name == before.name
    other = study(tiny, "rho1", seeds=(0,), extra="optim.clip=0.5")
    assert other.references[0].identity != before.references[0].identity


def test_the_cost_is_charged_to_each_trial_that_used_it(tiny, tmp_path):
    made = study(tiny, "rho1", "placebo:adaptive_rate", results=tmp_path)
    ledger = carried_out(made, tmp_path)
    totals = {t.label: read_manifest(ledger.folder(t.key))["totals"] for t in made.in_order}
    measures = Measures(load_study(tmp_path, made.name))
    for own in made.trials:
        charged = totals[own.label].get("reference_seconds")
        assert charged == (totals[own.reference.label]["train_seconds"] if own.reference else None)
        kept = next(t for t in measures.study.trials if t.label == own.label)
        assert measures.train_seconds(kept) == pytest.approx(totals[own.label]["train_seconds"])
        assert measures.reference_seconds(kept) == (charged or 0)
    assert train_seconds(measures.study.trials) == pytest.approx(
        sum(totals[t.label]["train_seconds"] for t in made.in_order)
    ), "each once: the losses' reference, which two trials used, and that of actions, which is a trial as well"
    for own in made.trials:
        if own.arm == "placebo:adaptive_rate":
            actions = reference_actions(own.config.reference, "adaptive_rate")
            assert actions == reference_actions(str(ledger.folder(own.reference.key)), "adaptive_rate")


@pytest.mark.medium
def test_the_cost_of_a_tuning_counts_each_run_once_its_reference_included(tiny, tmp_path):
    """A search of two points an arm, then a tuning of the rate over point 0: its trials, and its reference, again."""
    settings = [*tiny.split(), "train.steps=20"]
    search = Search(("rho1",), "smoke", 2, sizes=["0.1M"], overrides=settings, results=tmp_path)
    planned = search.ask()
    carried_out(planned, tmp_path)
    search.tell(load_study(tmp_path, planned.name))
    [reference] = planned.references
    assert len(planned.trials) == 4 * len(SEEDS)
    assert search.summary()["train_seconds"] == pytest.approx(sum(spent(tmp_path, t) for t in planned.in_order))

    grids = {"baseline": (1.0,), "rho1": (1.0,)}
    rates = tuning_study(("rho1",), "smoke", sizes=["0.1M"], overrides=settings, grids=grids, results=tmp_path)
    carried_out(rates, tmp_path)
    found = summary(rates, Measures(load_study(tmp_path, rates.name)), {})
    once = spent(tmp_path, reference) + sum(spent(tmp_path, trial) for trial in rates.trials)
    assert rates.references == (reference,) and found["train_seconds"] == pytest.approx(once)


def spent(results: Path, own) -> float:
    """Seconds of training of a run."""
    return read_manifest(Ledger(results).folder(own.key))["totals"]["train_seconds"]


def test_a_run_of_two_arms_and_a_given_reference_cost_their_time_once():
    def made(identity: str, seconds: float | None, reference: str = "", took: float | None = None) -> Trial:
        totals = {"train_seconds": seconds, **({"reference_seconds": took} if reference else {})}
        return Trial(arm="a", size="s", seed=0, identity=identity, config={"reference": reference},
                     manifest={"totals": totals})  # fmt: skip

    nothing = Trial(arm="a", size="s", seed=1, identity="of which there are no records")
    assert train_seconds([]) == 0 == train_seconds([nothing])
    assert train_seconds([made("a1", 2.0), made("a1", 2.0), made("b2", 3.0), nothing]) == 5.0, "one run of two arms"
    given = [made("c3", 1.0, "/runs/reference", 10.0), made("d4", 1.0, "/runs/reference", 10.0)]
    assert train_seconds(given) == 12.0
    own = [made("e5", 4.0), made("f6", 1.0, "/results/trials/e5", 4.0)]
    assert train_seconds(own) == train_seconds(own[::-1]) == 5.0, "a reference that is a trial, too"
    assert train_seconds([made("g7", None, "/runs/old", None)]) == 0, "records that do not say it"


def test_study_json_says_which_reference_was_used(tiny, tmp_path):
    made = study(tiny, "rho1", seeds=(0,), results=tmp_path)
    path = Ledger(tmp_path).record(made, {made.references[0].key: Failure("it failed")})
    written = json.loads(path.read_text())
    [reference] = written["references"]
    assert reference["identity"] == made.references[0].key and reference["error"] == "it failed"
    assert {t["arm"]: t["reference"] for t in written["trials"]} == {"baseline": "", "rho1": reference["identity"]}
    assert json.loads(json.dumps(Declaration.read(path.parent).to_dict())) == written
    del written["references"]
    for entry in written["trials"]:
        del entry["reference"]
    path.write_text(json.dumps(written))
    old = Declaration.read(path.parent)
    assert old.references == () and {t.reference for t in old.trials} == {""}, "a file of an earlier version"


def test_what_a_sweep_cannot_give_is_refused(tiny):
    with pytest.raises(ValueError, match=f"SEEDS: {SEED} is the seed of the reference run of rho1"):
        study(tiny, "rho1", seeds=(0, SEED))
    both = "placebo:adaptive_rate+rho1"
    with pytest.raises(ValueError, match=r"rho1 needs the losses .* placebo:adaptive_rate the actions of another"):
        study(tiny, both)


def test_trials_whose_reference_came_to_nothing_are_lost(tiny):
    made = study(tiny, "rho1")
    [reference], own = made.references, [t for t in made.trials if t.arm == "rho1"]
    assert not lost(made.trials, lambda t: "finished", {})
    error = {reference.key: Failure("KeyError: 'x'")}
    for status, failures, said in (("partial", error, "failed: KeyError: 'x'"), ("diverged", {}, "is diverged, not")):
        found = lost(made.trials, lambda t, status=status: status, failures)
        assert set(found) == {t.key for t in own}
        assert {f.error for f in found.values()} == {next(iter(found.values())).error}, "one line for all"
        assert f"its reference run {reference.label} {said}" in found[own[0].key].error


def test_progress_and_estimate_count_references_and_their_round(tiny, tmp_path):
    made = study(tiny, "rho1", steps=100)
    rates = Estimate({(t.arm, t.size): 1.0 for t in made.in_order}, "")
    progress = Progress(made.in_order, len(made.in_order), Ledger(tmp_path), rates, slots=4)
    assert progress.headline().startswith("0 of 5 trials done") and progress.left() == 100 + 100


def test_a_reference_that_is_gone_is_trained_again_only_where_it_is_needed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "estimate", lambda trials, results: Estimate({}, ""))
    made = study(tiny, "rho1", seeds=(0,), results="results")
    ledger = carried_out(made, Path("results"))
    for reference in made.references:
        ledger.folder(reference.key).rename(tmp_path / "gone")
    words = commands.argparse.Namespace(results=Path("results"), slots=None, wandb="off", tensorboard=False)
    assert commands.sweep_of(made, words).pending == []
    rho1 = made.trials[-1]
    ledger.folder(rho1.key).rename(tmp_path / "gone too")
    assert commands.sweep_of(made, words).pending == [*made.references, rho1]


def test_a_half_trained_trial_goes_on_after_the_results_moved(tiny, tmp_path):
    made = study(tiny, "rho1", seeds=(0,), results=tmp_path / "a")
    ledger = carried_out(made, tmp_path / "a")
    manifest = ledger.folder(made.trials[-1].key) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"finished"', '"running"'))
    (tmp_path / "a").rename(tmp_path / "b")
    carried_out(study(tiny, "rho1", seeds=(0,), results=tmp_path / "b"), tmp_path / "b")
    assert not list((tmp_path / "b").glob("trials/.damaged"))


@pytest.mark.medium
def test_a_sweep_trains_the_reference_and_the_next_one_uses_it(sweep):
    planned = sweep("rho1", *OPTIONS, "--dry-run")
    assert f"reference/0.1M/{SEED}" in planned.stdout and "5 to train" in planned.stdout, planned.stderr
    done = sweep("rho1", *OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 trained, 0 finished before" in done.stdout
    assert f"first the reference runs that others of them need: reference/0.1M/{SEED}" in done.stdout
    first = sweep.study()
    [reference] = first["references"]
    assert reference["status"] == "finished"
    assert [t["status"] for t in first["trials"]] == ["finished"] * 4
    assert "reference" not in [arm["name"] for arm in first["arms"]]
    shown = sweep("rho1", *OPTIONS)
    assert "0 trained, 5 finished before" in shown.stdout and "Ray" not in shown.stderr
    before = sweep.records()
    again = sweep("doremi", *OPTIONS)
    assert "2 trained, 3 finished before" in again.stdout, again.stdout + again.stderr
    assert before.items() <= sweep.records().items()
    [other] = [json.loads(p.read_text()) for p in sweep.results.glob("studies/doremi-*/study.json")]
    assert other["references"] == first["references"]


@pytest.mark.slow
def test_the_placebo_of_a_controller_in_packs(sweep):
    done = sweep("adaptive_rate,placebo:adaptive_rate", *OPTIONS, "--pack", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 trained, 0 finished before" in done.stdout
    assert {t["status"] for t in sweep.study()["trials"]} == {"finished"}


@pytest.mark.slow
def test_killed_while_the_reference_trains_the_same_command_goes_on(sweep, processes, tmp_path):
    often = "run.resume_seconds=0.3"
    assert sweep("rho1", *LONG, extra=often).returncode == 0
    whole = sweep.records()
    sweep.results.rename(tmp_path / "whole")
    running = sweep.start("rho1", *LONG, extra=often)
    processes.wait_for(lambda: sweep.checkpoints(), running)
    assert len(list(sweep.results.glob("trials/[0-9a-f]*"))) == 1, "the reference trains alone"
    for pid in (*processes.workers(running.pid), running.pid):
        os.kill(pid, signal.SIGKILL)
    running.communicate(timeout=60)
    assert not list(sweep.results.glob("trials/*/checkpoints/*600")), "it was killed before its end"
    done = sweep("rho1", *LONG, extra=often)
    assert done.returncode == 0 and "3 trained" in done.stdout, done.stdout + done.stderr
    assert sweep.records() == whole


@pytest.mark.slow
def test_a_reference_that_fails_costs_the_trials_that_need_it(sweep, plugins):
    (plugins / "fragile.py").write_text(FRAGILE)
    done = sweep("placebo:fragile", *OPTIONS)
    assert done.returncode == 1, done.stdout + done.stderr
    statuses = {(t["arm"], t["seed"]): t["status"] for t in sweep.study()["trials"]}
    assert statuses.pop(("placebo:fragile", 1)) == "failed" and set(statuses.values()) == {"finished"}
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed:")]
    assert len(failed) == 2, "the reference, and the trial that needs it"
    assert "reference fragile/0.1M/2" in failed[0] and "no more" in failed[0]
    assert "(placebo:fragile/0.1M/1): its reference run reference fragile/0.1M/2 failed:" in failed[1]
