"""Optimizer groups and the schedules' closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from zslx.config.groups import ModelConfig, OptimConfig, TrainConfig
from zslx.config.run_config import Config
from zslx.model.optimization import adamw, parameter_groups, schedule_factor
from zslx.model.transformer import Transformer


def config(steps: int = 100, **optim) -> Config:
    return Config(optim=OptimConfig(**optim), train=TrainConfig(steps=steps))


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_decay_and_tables_norms_biases_do_not(tied: bool):
    switches = {"bias": True, "norm_gain": True, "positions": "learned", "max_positions": 9}
    architecture = ModelConfig(vocab_size=50, tied=tied, **switches)
    model = Transformer(architecture, torch.Generator().manual_seed(0))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = parameter_groups(model, OptimConfig(weight_decay=0.3))
    assert decayed["weight_decay"] == 0.3 and plain["weight_decay"] == 0.0
    found = {names[id(p)] for p in decayed["params"]}
    expected = {n for n in names.values() if n.startswith("blocks") and n.endswith("weight") and "norm" not in n}
    assert found == expected | (set() if tied else {"unembedding.weight"})
    assert found | {names[id(p)] for p in plain["params"]} == set(names.values())


def test_adamw_takes_the_settings():
    weights = [torch.nn.Parameter(torch.ones(2, 2))]
    made = adamw([{"params": weights, "weight_decay": 0.2}], OptimConfig(lr=0.5, beta1=0.8, beta2=0.7, eps=1e-3))
    weights[0].grad = torch.full((2, 2), 4.0)
    made.step()
    # one step: m̂ = g, v̂ = g², θ − lr·λ·θ − lr·g/(|g| + ε)
    assert torch.allclose(weights[0], torch.tensor(1 - 0.5 * 0.2 - 0.5 * 4 / (4 + 1e-3)))


def test_warm_up_is_linear_from_its_start_to_one():
    factors = [schedule_factor(t, config(warmup=11, warmup_start=0.1)) for t in range(1, 15)]
    assert factors[0] == pytest.approx(0.1) and factors[10] == 1 and factors[5] == pytest.approx(0.55)
    assert factors[11:] == [1.0, 1.0, 1.0]
    assert schedule_factor(1, config(warmup=0)) == schedule_factor(1, config(warmup=1)) == 1


def test_cosine():
    c = config(warmup=20, schedule="cosine", final=0.2)
    assert schedule_factor(20, c) == 1
    for t in (21, 60, 77, 100):
        expected = 0.2 + 0.8 * (1 + math.cos(math.pi * (t - 20) / 80)) / 2
        assert schedule_factor(t, c) == pytest.approx(expected, rel=1e-12)
    assert schedule_factor(60, c) == pytest.approx(0.6) and schedule_factor(100, c) == pytest.approx(0.2)


def test_wsd_is_constant_then_linear():
    c = config(warmup=10, schedule="wsd", final=0.1, cooldown=0.25)
    factors = {t: schedule_factor(t, c) for t in range(1, 101)}
    assert {factors[t] for t in range(10, 76)} == {1.0}
    for t in range(76, 101):
        assert factors[t] == pytest.approx(1 - 0.9 * (t - 75) / 25)
    assert factors[100] == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
def test_a_run_shorter_than_its_warm_up_still_has_factors(schedule: str):
    factors = [schedule_factor(t, config(steps=5, warmup=100, schedule=schedule)) for t in range(1, 6)]
    assert all(0 < f <= 1 for f in factors) and factors == sorted(factors)
