"""What is read off one trial, and matched-loss mechanism, on curves made in memory."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.inference.matched_loss import at_matched_loss, at_matched_step, mechanism
from analysis.study.arm import Arm
from analysis.study.load import Study, Trial
from analysis.study.measures import Measures, parameters
from zslx.config.groups import ModelConfig
from zslx.config.run_config import Config
from zslx.config.sizes import LAPTOP_SIZES, PAPER_SIZES, model_preset

STEPS = np.unique(np.geomspace(1, 1024, 60).astype(int))
UNIT = 512  # tokens of a step


def trial(arm: str, seed: int, loss, d=None, *, steps=STEPS, unit: float = UNIT) -> Trial:
    rows = np.arange(len(steps))
    values = {"heldout_loss": (rows, np.asarray(loss, dtype=float))}
    if d is not None:
        values["dt1_heldout.D"] = (rows, np.asarray(d, dtype=float))
    return Trial(
        arm=arm, size="s", seed=seed, identity="", status="finished", probe_steps=steps * 1.0,
        probe_tokens=steps * float(unit), values=values,
    )  # fmt: skip


def measures(*trials: Trial) -> Measures:
    arms = tuple(
        Arm(name=name, intervention=name, role="baseline" if name == "baseline" else "arm")
        for name in dict.fromkeys(t.arm for t in trials)
    )
    seeds = tuple(sorted({t.seed for t in trials}))
    study = Study(name="x", folder=Path(), arms=arms, sizes=("s",), seeds=seeds, trials=trials)
    return Measures(study)


def power(steps=STEPS, slope=0.1, level=8.0):
    return level * steps**-slope


def test_loss_is_read_at_t_and_between_points_on_a_log_log_line():
    base = trial("baseline", 0, power())
    m = measures(base)
    assert m.horizon["s"] == 1024 and m.unit["s"] == UNIT
    assert m.log_loss(base) == pytest.approx(math.log(8 * 1024**-0.1))
    assert m.log_loss(base, 300.5) == pytest.approx(math.log(8 * 300.5**-0.1), rel=1e-6)
    assert math.isnan(m.log_loss(base, 2000)) and math.isnan(m.log_loss(base, 0.5))


def test_arms_with_larger_steps_are_compared_at_equal_tokens():
    base = trial("baseline", 0, power())
    half = np.append(STEPS[STEPS < 512], 512)
    arm = trial("big", 0, power(half * 2.0), steps=half, unit=2 * UNIT)
    m = measures(base, arm)
    assert m.horizon["s"] == 1024
    assert m.log_loss(arm) == pytest.approx(m.log_loss(base))
    assert m.tail(arm) == pytest.approx(0.1, rel=1e-6)


def test_the_horizon_is_the_shortest_finished_run_and_longer_ones_are_read_there():
    long = np.unique(np.geomspace(1, 3000, 70).astype(int))
    m = measures(trial("baseline", 0, power()), trial("long", 0, power(long), steps=long))
    assert m.horizon["s"] == 1024
    assert m.log_loss(m.study.trials[1]) == pytest.approx(math.log(8 * 1024**-0.1), rel=1e-6)
    assert m.curve(m.study.trials[1])[0].max() <= 1024


def test_a_pure_power_law_has_its_slope_and_no_break():
    base = trial("baseline", 0, power() * np.exp(np.random.default_rng(0).normal(0, 1e-3, len(STEPS))))
    m = measures(base)
    assert m.tail(base) == pytest.approx(0.1, abs=0.01)
    assert m.fit(base).status == "no_break" and m.fit(base).L_d is None


def test_two_points_have_no_slope_and_no_break():
    few = np.array([1, 4])
    base = trial("baseline", 0, power(few), steps=few)
    m = measures(base)
    assert m.fit(base).status == "no_break" and m.fit(base).t_d is None
    assert math.isnan(m.tail(base))


MODELS = [
    *(model_preset(size) for size in LAPTOP_SIZES),
    ModelConfig(d_model=32, n_heads=2, n_layers=2, bias=True, norm="layernorm", norm_gain=True, tied=False),
    ModelConfig(d_model=48, n_heads=3, n_layers=1, gated_mlp=False, mlp_ratio=4.0, positions="learned", norm_gain=True),
    ModelConfig(d_model=30, n_heads=3, n_layers=2, mlp_ratio=1.7, bias=True, vocab_size=777),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: f"d{m.d_model}l{m.n_layers}")
def test_parameter_counts_are_those_of_the_model(model):
    from zslx.model.transformer import Transformer

    config = Config(model=model).to_dict()
    recorded = SimpleNamespace(config=config, manifest={})
    vocabulary = model.vocab_size or config["data"]["vocab_size"]
    network = Transformer(dataclasses.replace(model, vocab_size=vocabulary))
    total = sum(p.numel() for p in network.parameters())
    outside = {"embedding.weight", "unembedding.weight", "position_embedding.weight"}
    body = sum(p.numel() for name, p in network.named_parameters() if name not in outside)
    assert parameters(recorded) == {"non_embedding": body, "embedding": total - body, "total": total}


def test_counts_of_a_model_of_transformers_are_those_that_its_run_recorded():
    recorded = {"non_embedding": 7, "embedding": 5, "total": 12}
    config = Config(model=ModelConfig(hf="gpt2")).to_dict()
    assert parameters(SimpleNamespace(config=config, manifest={"parameters": recorded})) == recorded
    with pytest.raises(ValueError, match="its parameters are counted when it is built"):
        parameters(SimpleNamespace(config=config, manifest={}))


def test_the_papers_parameter_counts():
    configs = [Config(model=model_preset(size)).to_dict() for size in PAPER_SIZES]
    counts = [parameters(SimpleNamespace(config=config, manifest={}))["total"] for config in configs]
    assert counts == [14_319_616, 37_289_984, 77_561_856, 143_785_984, 284_884_992, 472_121_344]


# Mechanism: D as a function of the loss, or of the step.


def of_loss(loss):
    return 1 / (1 + loss / 5)


def test_an_arm_that_is_only_ahead_differs_at_matched_step_and_not_at_matched_loss():
    base, ahead = power(), power(slope=0.12)
    m = measures(trial("baseline", 0, base, of_loss(base)), trial("arm", 0, ahead, of_loss(ahead)))
    arm, baseline = m.study.trials[1], m.study.trials[0]
    assert at_matched_loss(m, arm, baseline, "dt1_heldout.D") == pytest.approx(0, abs=2e-4)
    assert at_matched_step(m, arm, baseline, "dt1_heldout.D") > 0.01


def test_less_interference_at_the_same_loss_is_found_as_such():
    base, ahead = power(), power(slope=0.12)
    m = measures(trial("baseline", 0, base, of_loss(base)), trial("arm", 0, ahead, of_loss(ahead) - 0.05))
    arm, baseline = m.study.trials[1], m.study.trials[0]
    assert at_matched_loss(m, arm, baseline, "dt1_heldout.D") == pytest.approx(-0.05, abs=2e-4)


def test_weights_that_are_shipped_have_no_part_in_the_mechanism_of_those_that_train():
    """The instruments are of the weights in training: an average of them, 1 % better at every step, changes nothing."""
    base = power()
    averaged = trial("arm", 0, 0.99 * base, of_loss(base))
    averaged.values["heldout_loss_trained"] = (np.arange(len(base)), base)
    m = measures(trial("baseline", 0, base, of_loss(base)), averaged)
    baseline, arm = m.study.trials
    assert at_matched_loss(m, arm, baseline, "dt1_heldout.D") == pytest.approx(0, abs=1e-9)


def test_runs_that_share_no_loss_or_no_instrument_give_nothing():
    far = power() / 10
    m = measures(
        trial("baseline", 0, power(), of_loss(power())), trial("arm", 0, far, of_loss(far)), trial("bare", 0, far)
    )
    baseline, arm, bare = m.study.trials
    assert math.isnan(at_matched_loss(m, arm, baseline, "dt1_heldout.D"))
    assert math.isnan(at_matched_loss(m, bare, baseline, "dt1_heldout.D"))
    assert math.isnan(at_matched_step(m, bare, baseline, "dt1_heldout.D"))
    assert mechanism(m, "bare", "baseline") == []


def test_mechanism_pairs_by_seed():
    base = power()
    trials = [trial("baseline", i, base, of_loss(base) + 0.1 * i) for i in range(4)]
    trials += [trial("arm", i, base, of_loss(base) + 0.1 * i - 0.02 + 0.001 * i) for i in range(4)]
    [found] = mechanism(measures(*trials), "arm", "baseline")
    assert found["instrument"] == "dt1_heldout.D"
    assert found["matched_step"]["estimate"] == pytest.approx(-0.0185)
    assert found["matched_loss"]["high"] < 0 and found["matched_loss"]["seeds"] == 4
