"""The equation G w = w^(−p), w > 0, of Nash-MTL (p = 1) and FairGrad (p = 1/α).

With w = e^z it is the stationary point of a function that is convex in w; Newton's method on G w − w^(−p) = 0 is
kept inside w > 0 and made to lower that function at every step. The Gramian is first scaled to a unit diagonal
(w_k ∝ ‖g_k‖^(−2/(1+p)) is the solution for orthogonal gradients) and given the ridge RIDGE, without which
opposite gradients have no solution.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from interventions.gradient_surgery.complementarity import regular

RIDGE = 1e-10  # beside a unit diagonal
ITERATIONS = 100
PRECISION = 1e-9


def bargain(gramians: np.ndarray, power: float) -> np.ndarray:
    """w (R, K) > 0 with G w = w^(−power) for each of R Gramians (R, K, K)."""
    diagonal = gramians.diagonal(axis1=1, axis2=2)
    # With w = u·x and u_k = G_kk^(−1/(1+p)): (u_i G_ij u_j / u_i^(1−p)) x = x^(−p), of unit diagonal but not
    # symmetric; multiplied by u_i^(1−p) it is the gradient of ½ xᵀHx − Σ v ψ(x), H = uGu, v = u^(1−p).
    unit = np.where(diagonal > 0, diagonal, 1.0) ** (-1 / (1 + power))
    share = unit ** (1 - power)
    root = np.sqrt(share)
    scale = root[:, :, None] * root[:, None]
    matrix = gramians * unit[:, :, None] * unit[:, None] / scale
    matrix = np.stack([regular(one, RIDGE) for one in matrix]) * scale
    found, left = np.ones_like(unit), np.arange(len(unit))  # `left`: the runs whose solution is still moving
    for _ in range(ITERATIONS):
        h, v, x = matrix[left], share[left], found[left]
        gradient = times(h, x) - v * x**-power
        hessian = h + np.eye(h.shape[1]) * (power * v * x ** (-power - 1))[:, None]
        step = -np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        found[left] = x = x + step * inside(x, step, h, v, power)
        left = left[np.abs(step / x).max(1) > PRECISION]  # it converges quadratically: the error is the square of this
        if not len(left):
            break
    return unit * found


def frobenius(gramians: Tensor) -> Tensor:
    """‖G‖ (R, 1) of Gramians (R, K, K) that are not zero, whose squares may underflow."""
    largest = gramians.abs().amax((1, 2), keepdim=True)
    return largest[:, 0] * (gramians / largest).square().sum(2).sum(1).sqrt()[:, None]


def inside(x: np.ndarray, step: np.ndarray, matrix: np.ndarray, share: np.ndarray, power: float) -> np.ndarray:
    """The largest of 1, ½, ¼ … (R, 1) that stays well inside x > 0 and does not leave the slope steeper uphill."""

    def slope(at: np.ndarray) -> np.ndarray:
        return np.abs((step * (times(matrix, at) - share * at**-power)).sum(1, keepdims=True))

    size = np.ones((len(x), 1))
    while (outside := (x + size * step <= 0.1 * x).any(1, keepdims=True)).any():
        size = np.where(outside, size / 2, size)
    start = slope(x)
    for _ in range(40):
        steep = (slope(x + size * step) > 0.9 * start) & (start > 0)
        if not steep.any():
            break
        size = np.where(steep, size / 2, size)
    return size


def times(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A x (R, K), the sums of each run in the same order however many there are."""
    product: np.ndarray = (matrix * x[:, None]).sum(2)
    return product
