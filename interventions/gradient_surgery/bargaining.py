"""The equation G w = w^(−p), w > 0, of Nash-MTL (p = 1) and FairGrad (p = 1/α).

With w = e^z it is the stationary point of a function that is convex in w; Newton's method on G w − w^(−p) = 0 is
kept inside w > 0 and made to lower that function at every step. The Gramian is first scaled to a unit diagonal
(w_k ∝ ‖g_k‖^(−2/(1+p)) is the solution for orthogonal gradients) and given the ridge RIDGE, without which
opposite gradients have no solution.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from interventions.gradient_surgery.complementarity import regular

RIDGE = 1e-10  # beside a unit diagonal
ITERATIONS = 100
PRECISION = 1e-9


def bargain(gramian: np.ndarray, power: float) -> np.ndarray:
    """w (K,) > 0 with G w = w^(−power)."""
    diagonal = gramian.diagonal()
    # With w = u·x and u_k = G_kk^(−1/(1+p)): (u_i G_ij u_j / u_i^(1−p)) x = x^(−p), of unit diagonal but not
    # symmetric; multiplied by u_i^(1−p) it is the gradient of ½ xᵀHx − Σ v ψ(x), H = uGu, v = u^(1−p).
    unit = np.where(diagonal > 0, diagonal, 1.0) ** (-1 / (1 + power))
    matrix = gramian * np.outer(unit, unit)
    share = unit ** (1 - power)
    root = np.sqrt(share)
    matrix = regular(matrix / np.outer(root, root), RIDGE) * np.outer(root, root)
    x = np.ones(len(gramian))
    for _ in range(ITERATIONS):
        gradient = matrix @ x - share * x**-power
        hessian = matrix + np.diag(power * share * x ** (-power - 1))
        step = -cho_solve(cho_factor(hessian, check_finite=False), gradient, check_finite=False)
        x = x + step * inside(x, step, matrix, share, power)
        if np.abs(step / x).max() <= PRECISION:  # it converges quadratically: the error is the square of this
            break
    return unit * x


def inside(x: np.ndarray, step: np.ndarray, matrix: np.ndarray, share: np.ndarray, power: float) -> float:
    """The largest of 1, ½, ¼ … that stays well inside x > 0 and does not leave the slope steeper uphill."""
    size = 1.0
    while (x + size * step <= 0.1 * x).any():
        size /= 2
    for _ in range(40):
        trial = x + size * step
        slope = step @ (matrix @ trial - share * trial**-power)
        start = step @ (matrix @ x - share * x**-power)
        if abs(slope) <= 0.9 * abs(start) or abs(start) == 0:
            break
        size /= 2
    return size
