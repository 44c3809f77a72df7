"""Rates are tuned on seeds of their own, arm by arm and size by size; the comparison then uses them."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.simulation.study import write_study
from sweeps.search import Search
from sweeps.study import build
from sweeps.tune_rate import FACTORS, SEEDS, arms_of, best_rates, has_own_rate, load, name, tuning_study, wider
from zslx.commands import cli


def made(tiny: str, *asked: str, **grids):
    return tuning_study(asked, "smoke", sizes=["0.1M"], overrides=tiny.split(), grids=grids)


def test_the_grid_is_of_the_baseline_and_of_arms_that_can_shift_their_rate(tiny):
    study = made(tiny, "focal", "pcgrad", "placebo:focal")
    base, focal = ({name(arm, f) for f in FACTORS if f != 1} | {arm} for arm in ("baseline", "focal"))
    assert {arm.name for arm in study.arms} == base | focal
    assert study.seeds == SEEDS and len(study.trials) == 2 * len(FACTORS) * len(SEEDS)
    plain = build(("focal",), "smoke", sizes=["0.1M"], overrides=tiny.split()).trials[0].config.optim.lr
    rates = sorted({t.config.optim.lr for t in study.trials})
    assert rates == pytest.approx([plain * f for f in FACTORS], rel=1e-2)
    assert not any(t.config.instruments.probes for t in study.trials)  # a choice of rates reads losses alone
    given = tuning_study(["focal"], "smoke", sizes=["0.1M"], overrides=[*tiny.split(), "instruments.probes=true"])
    assert not any(t.config.instruments.probes for t in given.trials)


def test_cosine_and_each_arm_with_it_have_rates_of_their_own_and_rate_controls_none(tiny):
    """Cosine is best at several times the rate that is best without it: at one rate for all, an arm that acts like a
    higher rate would seem to add to it."""
    study = tuning_study(["focal"], "verdict", sizes=["0.1M"], overrides=tiny.split())
    assert arms_of(study) == ["baseline", "cosine", "focal", "focal+cosine"]
    search = Search(["focal"], "verdict", 4, sizes=["0.1M"], overrides=tiny.split())
    assert [one.arm.name for one in search.arms] == ["baseline", "cosine", "focal", "focal+cosine"]
    found = {name: {"0.1M": factor} for name, factor in (("focal", 1.4), ("cosine", 4.0), ("focal+cosine", 2.8))}
    plain = build(("focal",), "verdict", sizes=["0.1M"], overrides=tiny.split(), rates=found)
    factors = {arm.name: arm.rates.get("0.1M", 1.0) for arm in plain.arms}
    assert factors["placebo:focal"] == factors["focal"] == 1.4 and factors["rate:2"] == 2.0
    assert (factors["cosine"], factors["focal+cosine"]) == (4.0, 2.8)


@pytest.mark.parametrize("tuning", ["--tune-rate", "--search=4"])
def test_seeds_that_choose_the_rates_do_not_judge_them(tuning, capsys):
    assert cli.main(["sweep", "focal", "--preset", "smoke", "--seeds", "7 1001 1002", tuning, "--dry-run"]) == 2
    assert "SEEDS: 1001 1002 would choose rates and settings, and then judge them" in capsys.readouterr().err


def test_a_tuning_on_two_kinds_of_machine_chooses_nothing(tmp_path):
    results = write_study(tmp_path, np.random.default_rng(0), sizes=("0.1M",), seeds=2, steps=100, step_lines=False)
    folders = sorted((results / "trials").iterdir())
    for folder, processor in zip(folders, ["A"] * (len(folders) - 1) + ["B"], strict=True):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["hardware"] = manifest.get("hardware", {}) | {"processor": processor}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"two kinds of machine \(processor A and B\).*trains what is gone again"):
        load(results, SimpleNamespace(name="simulated"))
    manifest["earlier"] = [{"hardware": manifest["hardware"] | {"processor": "A"}}]
    (folders[-1] / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"was trained on two kinds of machine \(processor A and B\)"):
        load(results, SimpleNamespace(name="simulated"))


def test_gradient_surgery_has_a_rate_of_its_own_as_published_alone(tiny):
    arms = {
        scale: build(("pcgrad",), "smoke", overrides=[*tiny.split(), f"pcgrad.scale={scale}"]).arms[1]
        for scale in ("matched", "paper")
    }
    assert not has_own_rate(arms["matched"]) and has_own_rate(arms["paper"])


class Losses:
    """Stands for Measures: log losses of trials by the factor in the arm's name, lowest at `best`."""

    def __init__(self, study, best, diverged=""):
        finished = [t for t in study.trials if not (diverged and t.arm.endswith(diverged))]
        self.best, self.study = best, self
        self.seeds = study.seeds
        self.of = lambda arm, size: [t for t in finished if t.arm == arm and t.size == size]

    def log_loss(self, trial) -> float:
        factor = float(trial.arm.rpartition(" x ")[2]) if " x " in trial.arm else 1.0
        return math.log(factor / self.best) ** 2


def test_the_best_rate_is_that_of_the_lowest_mean_loss_and_a_diverged_one_is_never_best(tiny):
    study = made(tiny, "focal")
    rates, losses = best_rates(study, Losses(study, 2.0), {})
    assert rates == {"baseline": {"0.1M": 2.0}, "focal": {"0.1M": 2.0}} and losses["focal"]["0.1M"]["2"] == 0
    rates, losses = best_rates(study, Losses(study, 2.0, diverged="x 2"), {})
    assert rates["focal"]["0.1M"] == pytest.approx(math.sqrt(2)) and losses["focal"]["0.1M"]["2"] is None


def test_the_grid_of_an_arm_grows_where_its_best_rate_lies_at_an_end_and_not_for_ever(tiny):
    def ends(best: float, *more: float) -> tuple[float, float]:
        grid = wider({"focal": [*FACTORS, *more]}, {"focal": {"0.1M": best}, "baseline": {"0.1M": 1.0}})
        assert set(grid) == {"focal"}  # the baseline's best rate lies within
        return min(grid["focal"]), max(grid["focal"])

    assert ends(1.0) == (0.5, 2.0)
    assert ends(2.0) == (0.5, pytest.approx(2 * math.sqrt(2)))
    assert ends(0.5) == (pytest.approx(0.5 / math.sqrt(2)), 2.0)
    assert ends(8.0, 4.0, 8.0) == (0.5, 8.0)
    longer = wider({}, {"focal": {"0.1M": 2.0}, "baseline": {"0.1M": 1.0}})
    study = made(tiny, "focal", **longer)
    assert len(study.trials) == (2 * len(FACTORS) + 1) * len(SEEDS)
    assert {arm.name for arm in study.arms} - {arm.name for arm in made(tiny, "focal").arms} == {"focal rate x 2.83"}
    rates, _ = best_rates(study, Losses(study, 2 * math.sqrt(2)), longer)
    assert rates["focal"]["0.1M"] == pytest.approx(2 * math.sqrt(2)) and rates["baseline"]["0.1M"] == 2.0


@pytest.mark.slow
def test_a_tuned_sweep_tunes_then_compares_and_goes_on_for_nothing(sweep):
    options = ("--steps", "12", "--seeds", "2", "--tune-rate")
    first = sweep("focal,rate:untuned", *options, "--wandb", "off")
    assert first.returncode == 0, first.stderr
    assert "rate of baseline: 0.1M" in first.stdout and "rate of focal: 0.1M" in first.stdout
    studies = [json.loads(p.read_text()) for p in sweep.results.glob("studies/*/study.json")]
    [final] = [s for s in studies if s["tuning"]]
    assert final["tuning"]["study"] in {s["name"] for s in studies} and final["tuning"]["trials"] >= 30
    assert final["seeds"] == [0, 1] and "TUNE_RATE=1" in final["command"]
    again = sweep("focal,rate:untuned", *options, "--wandb", "off")
    assert again.returncode == 0 and again.stdout.count("0 trained") == first.stdout.count(" trained, ")
