"""Optimizers and schedules against their formulas, written out in float64; lawa against a mean of weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zslx import RunView, load_intervention
from zslx.config.run_config import Config, override
from zslx.intervention.base import StepStats
from zslx.runs.records import read_run
from zslx.testing.subject import plain, trained

SHAPES = [(3, 5), (1,), (7,), (2, 1, 4)]
LR, DECAY, STEPS = 0.03, 0.1, 9


def run_view(**values) -> RunView:
    pairs = {"optim.lr": LR, "optim.beta1": 0.8, "optim.beta2": 0.9, "optim.eps": 1e-6, "optim.weight_decay": DECAY}
    config = override(Config(), list((pairs | values).items()))
    return RunView(step=0, steps=STEPS, config=config)


def updated(name: str, **settings) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """The parameters after STEPS updates of a method's optimizer; [the first ones, then each step's gradients]."""
    draws = np.random.default_rng(0)
    start = [draws.normal(size=shape) for shape in SHAPES]
    gradients = [[draws.normal(size=shape) for shape in SHAPES] for _ in range(STEPS)]
    parameters = [torch.tensor(value, requires_grad=True) for value in start]
    groups = [{"params": parameters[:2], "weight_decay": DECAY}, {"params": parameters[2:], "weight_decay": 0.0}]
    optimizer = load_intervention(name, **settings).optimizer(run_view(), groups, {})
    for step in gradients:
        for p, gradient in zip(parameters, step, strict=True):
            p.grad = torch.tensor(gradient)
        optimizer.step()
    return [p.detach().numpy() for p in parameters], [start, *gradients]


def by_hand(given: list[list[np.ndarray]], one) -> list[np.ndarray]:
    """`one(θ, gradients, λ)` for each parameter."""
    start, *gradients = given
    decays = [DECAY, DECAY, 0.0, 0.0]
    return [one(start[i].copy(), [g[i] for g in gradients], decays[i]) for i in range(len(start))]


def check(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_lion():
    found, given = updated("lion", rate=0.1, beta1=0.9, beta2=0.7)

    def one(theta, gradients, decay):
        m, lr = np.zeros_like(theta), 0.1 * LR
        for g in gradients:
            theta = theta - lr * (np.sign(0.9 * m + 0.1 * g) + decay / 0.1 * theta)
            m = 0.7 * m + 0.3 * g
        return theta

    check(found, by_hand(given, one))


@pytest.mark.parametrize("mask", [True, False])
def test_cautious(mask: bool):
    found, given = updated("cautious", mask=mask)

    def one(theta, gradients, decay):
        m = v = np.zeros_like(theta)
        for t, g in enumerate(gradients, 1):
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            u = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6)
            keep = u * g > 0
            theta = theta - LR * decay * theta - LR * u * (keep * keep.size / (keep.sum() + 1) if mask else 1)
        return theta

    check(found, by_hand(given, one))


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_ademamix(warmup: float):
    found, given = updated("ademamix", alpha=3.0, beta3=0.99, warmup=warmup)

    def one(theta, gradients, decay):
        fast = slow = v = np.zeros_like(theta)
        for t, g in enumerate(gradients, 1):
            share = min(1.0, t / (warmup * STEPS)) if warmup else 1.0
            half = (1 - share) / math.log(0.8) + share / math.log(0.99)  # of the half-lives, over −log 2
            beta3 = min(0.99, math.exp(1 / half))
            fast, slow = 0.8 * fast + 0.2 * g, beta3 * slow + (1 - beta3) * g
            v = 0.9 * v + 0.1 * g * g
            u = (fast / (1 - 0.8**t) + 3.0 * share * slow) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6)
            theta = theta - LR * decay * theta - LR * u
        return theta

    check(found, by_hand(given, one))


def test_cautious_without_its_mask_is_adamw():
    found, given = updated("cautious", mask=False)
    start, *gradients = given
    parameters = [torch.tensor(value, requires_grad=True) for value in start]
    groups = [{"params": parameters[:2], "weight_decay": DECAY}, {"params": parameters[2:], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=LR, betas=(0.8, 0.9), eps=1e-6)
    for step in gradients:
        for p, gradient in zip(parameters, step, strict=True):
            p.grad = torch.tensor(gradient)
        adamw.step()
    check(found, [p.detach().numpy() for p in parameters])


def test_gradpower():
    found, given = updated("gradpower", power=1.5)

    def one(theta, gradients, decay):
        m = v = np.zeros_like(theta)
        for t, g in enumerate(gradients, 1):
            g = np.sign(g) * np.abs(g) ** 1.5
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            u = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6)
            theta = theta - LR * decay * theta - LR * u
        return theta

    check(found, by_hand(given, one))


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd(nesterov: bool):
    found, given = updated("sgd", rate=2.0, momentum=0.6, nesterov=nesterov)

    def one(theta, gradients, decay):
        m = None
        for g in gradients:
            g = g + decay / 2 * theta
            m = g.copy() if m is None else 0.6 * m + g
            theta = theta - 2 * LR * (g + 0.6 * m if nesterov else m)
        return theta

    check(found, by_hand(given, one))


def test_linear_and_wsd_in_closed_form():
    view = run_view(**{"optim.warmup": 2})
    view.steps = 10
    factors: dict[str, list[float]] = {"linear": [], "wsd": [], "sqrt": []}
    methods = {
        "linear": load_intervention("linear", final=0.2),
        "wsd": load_intervention("wsd", cooldown=0.4, final=0.0, shape="linear"),
        "sqrt": load_intervention("wsd", cooldown=0.4, final=0.5, shape="sqrt"),
    }
    for view.step in range(1, 11):
        for name, method in methods.items():
            factors[name].append(method.lr_factor(view, {}))
    assert factors["linear"] == pytest.approx([1, 1] + [1 - 0.1 * i for i in range(1, 9)])
    assert factors["wsd"] == pytest.approx([1] * 6 + [0.75, 0.5, 0.25, 0.0])
    assert factors["sqrt"] == pytest.approx([1] * 6 + [1 - 0.5 * math.sqrt(i / 4) for i in range(1, 5)])
    assert load_intervention("wsd", cooldown=0.0).lr_factor(view, {}) == 1.0


def test_lawa_ships_the_mean_of_the_last_weights():
    method, state = load_intervention("lawa", every=3, kept=2), {}
    p = torch.zeros(2)
    view = RunView(parameters={"p": p})
    seen = []
    for view.step in range(1, 13):
        p += view.step
        seen.append(p.clone())
        method.observe(view, StepStats(view=None), state)
        shipped = method.average(view, state)["p"]
        marks = [seen[s - 1] for s in range(3, view.step + 1, 3)][-2:]
        torch.testing.assert_close(shipped, torch.stack(marks).mean(0) if marks else p)
    assert len(state["kept"]) == 2


@pytest.mark.usefixtures("cache")
def test_wsd_is_the_baseline_up_to_its_cooldown(tmp_path):
    values = {"train.steps": 12}
    base = read_run(trained(plain(values), tmp_path / "base").folder).steps
    wsd = read_run(
        trained(plain(values | {"intervention": "wsd", "wsd.cooldown": 0.25}), tmp_path / "wsd").folder
    ).steps
    assert (base["loss"][:10] == wsd["loss"][:10]).all() and (base["lr"][:9] == wsd["lr"][:9]).all()
    assert wsd["lr"][-1] == 0
