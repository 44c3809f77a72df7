"""Schedule-free AdamW against its algorithm, written out in float64 with x kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zslx import RunView, load_intervention
from zslx.config.run_config import Config, override

SHAPES = [(3, 5), (1,), (7,), (2, 1, 4)]
DECAY, STEPS = 0.1, 9


RATES = [(0.9, 2.0, [0.03] * 9), (0.6, 1.0, [0.01, 0.02, *[0.03] * 5, 0, 0.01])]


@pytest.mark.parametrize(("beta", "rate", "rates"), RATES)
def test_schedule_free(beta: float, rate: float, rates: list[float]):
    draws = np.random.default_rng(0)
    start = [draws.normal(size=shape) for shape in SHAPES]
    gradients = [[draws.normal(size=shape) for shape in SHAPES] for _ in range(STEPS)]
    parameters = {str(i): torch.tensor(value, requires_grad=True) for i, value in enumerate(start)}
    pairs = {"optim.lr": 0.03, "optim.beta2": 0.9, "optim.eps": 1e-6}
    run = RunView(parameters=parameters, config=override(Config(), list(pairs.items())))
    method = load_intervention("schedule_free", beta=beta, rate=rate)
    state = method.init_state(run, torch.Generator())
    both = list(parameters.values())
    groups = [{"params": both[:2], "weight_decay": DECAY}, {"params": both[2:], "weight_decay": 0.0}]
    optimizer = method.optimizer(run, groups, state)
    assert [group["lr"] for group in optimizer.param_groups] == [0.03 * rate] * 2
    x, z = [v.copy() for v in start], [v.copy() for v in start]
    v, total = [np.zeros_like(s) for s in start], 0.0
    for t, (lr, step) in enumerate(zip(rates, gradients, strict=True), 1):
        gamma = rate * lr * math.sqrt(1 - 0.9**t)
        total += gamma**2
        for group in optimizer.param_groups:
            group["lr"] = rate * lr
        for i, p in enumerate(both):
            p.grad = torch.tensor(step[i])
            y = (1 - beta) * z[i] + beta * x[i]
            np.testing.assert_allclose(p.detach().numpy(), y, rtol=1e-9, atol=1e-12)
            v[i] = 0.9 * v[i] + 0.1 * step[i] ** 2
            z[i] = z[i] - gamma * (step[i] / (np.sqrt(v[i]) + 1e-6) + (DECAY if i < 2 else 0) * y)
            x[i] = x[i] + gamma**2 / total * (z[i] - x[i])
        optimizer.step()
        shipped = method.average(run, state)
        for i in range(len(SHAPES)):
            np.testing.assert_allclose(shipped[str(i)].numpy(), x[i], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(state["z"][str(i)].numpy(), z[i], rtol=1e-9, atol=1e-12)


def test_a_rate_of_zero_stands_still():
    p = torch.ones(3, requires_grad=True)
    run = RunView(parameters={"p": p})
    method = load_intervention("schedule_free")
    state = method.init_state(run, torch.Generator())
    optimizer = method.optimizer(run, [{"params": [p], "weight_decay": 0.1}], state)
    optimizer.param_groups[0]["lr"] = 0.0
    p.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(p.detach(), torch.ones(3)) and torch.equal(state["z"]["p"], torch.ones(3))
