"""SOAP against its algorithm, written out in float64, and against what its bases have to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interventions.optimization.soap import RIDGE, first_basis, improved
from zslx import RunView, load_intervention
from zslx.config.run_config import Config, override

SHAPES = [(3, 5), (5, 3), (9, 4), (6, 1), (7,), (9, 10)]
LR, DECAY, STEPS = 0.03, 0.1, 9


def updated(**settings) -> tuple[list[np.ndarray], list[np.ndarray], list[list[np.ndarray]]]:
    """The parameters after STEPS updates, those before, and each step's gradients."""
    draws = np.random.default_rng(0)
    start = [draws.normal(size=shape) for shape in SHAPES]
    gradients = [[draws.normal(size=shape) for shape in SHAPES] for _ in range(STEPS)]
    parameters = [torch.tensor(value, requires_grad=True) for value in start]
    pairs = {"optim.lr": LR, "optim.beta1": 0.8, "optim.beta2": 0.9, "optim.eps": 1e-6}
    view = RunView(config=override(Config(), list(pairs.items())))
    groups = [{"params": parameters[:3], "weight_decay": DECAY}, {"params": parameters[3:], "weight_decay": 0.0}]
    optimizer = load_intervention("soap", **settings).optimizer(view, groups, {})
    for step in gradients:
        for p, gradient in zip(parameters, step, strict=True):
            p.grad = torch.tensor(gradient)
        optimizer.step()
    return [p.detach().numpy() for p in parameters], start, gradients


def turn(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The Q of QR(P Q), P with its ridge."""
    return np.linalg.qr((p + RIDGE * np.trace(p) / len(p) * np.eye(len(p))) @ q)[0]


def soap_by_hand(theta: np.ndarray, gradients: list[np.ndarray], decay: float, every: int, width: int) -> np.ndarray:
    """Algorithms 3 and 4 of the paper with two bases always, I where a dimension is not rotated."""
    flat = theta.ndim == 1
    theta = theta[:, None] if flat else theta
    wide = [flat or n > width for n in theta.shape]
    rotates = not all(wide)
    q = [np.eye(n) for n in theta.shape]
    p = [np.zeros((n, n)) for n in theta.shape]
    m, v, t = np.zeros_like(theta), np.zeros_like(theta), 0
    for step, g in enumerate(gradients):
        g = g[:, None] if flat else g
        if step or not rotates:
            t += 1
            m = 0.8 * m + 0.2 * g
            v = 0.9 * v + 0.1 * (q[0].T @ g @ q[1]) ** 2
            n = (q[0].T @ m @ q[1]) / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6)
            theta = theta - LR * decay * theta - LR * q[0] @ n @ q[1].T
        p = [0.9 * p[0] + 0.1 * g @ g.T, 0.9 * p[1] + 0.1 * g.T @ g]
        for d in range(2):
            for _ in range(0 if wide[d] else 10 if step == 0 else t % every == 0):
                q[d] = turn(p[d], q[d])
    return theta[:, 0] if flat else theta


@pytest.mark.parametrize(("every", "width"), [(1, 100), (2, 100), (3, 8), (2, 4), (100, 100)])
def test_soap(every: int, width: int):
    found, start, gradients = updated(every=every, max_width=width)
    for i, value in enumerate(found):
        wanted = soap_by_hand(start[i], [g[i] for g in gradients], DECAY if i < 3 else 0.0, every, width)
        np.testing.assert_allclose(value, wanted, rtol=1e-7, atol=1e-9)


def test_without_rotation_it_is_adamw():
    found, start, gradients = updated(max_width=0)
    parameters = [torch.tensor(value, requires_grad=True) for value in start]
    groups = [{"params": parameters[:3], "weight_decay": DECAY}, {"params": parameters[3:], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=LR, betas=(0.8, 0.9), eps=1e-6)
    for step in gradients:
        for p, gradient in zip(parameters, step, strict=True):
            p.grad = torch.tensor(gradient)
        adamw.step()
    for a, b in zip(found, parameters, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_the_bases_become_the_eigenvectors():
    draws = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(6, 6, generator=draws, dtype=torch.float64))[0]
    values = torch.tensor([1.0, 9.0, 3.0, 0.1, 0.3, 27.0], dtype=torch.float64)
    symmetric = axes * values @ axes.T
    basis = first_basis(symmetric)
    for _ in range(20):
        basis = improved(symmetric, basis)
    diagonal = basis.T @ symmetric @ basis
    torch.testing.assert_close(diagonal.diagonal(), values.sort(descending=True).values, rtol=1e-6, atol=1e-9)
    assert float((diagonal - diagonal.diagonal().diag()).abs().max()) < 1e-4


def test_directions_without_a_gradient_have_a_basis_that_rounding_does_not_choose():
    draws = torch.Generator().manual_seed(0)
    g = torch.randn(12, 3, generator=draws, dtype=torch.float64)
    noise = 1e-15 * torch.randn(12, 12, generator=draws, dtype=torch.float64)
    one, other = first_basis(g @ g.T), first_basis(g @ g.T + noise + noise.T)
    assert float((one - other).abs().max()) < 1e-9
    torch.testing.assert_close(one.T @ one, torch.eye(12, dtype=torch.float64))
