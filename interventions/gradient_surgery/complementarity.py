"""Quadratic programs with sign constraints, min ½ xᵀAx + qᵀx over x ≥ 0, that several methods come down to.

Solution: x ≥ 0, y = Ax + q ≥ 0, xᵀy = 0, found by block principal pivoting (Júdice & Pires 1994; Kim & Park
2011): guess which x are free, solve for them, exchange every variable of the wrong sign. Exchanges can cycle, and
do where A is singular; when the number of wrong signs stops falling, the active-set method of Lawson & Hanson
(1974), which always ends, takes over on the same problem as least squares, ‖Rx + R⁻ᵀq‖ with A = RᵀR.

Exact up to rounding for a positive definite A. A is first scaled to a unit diagonal, so that rows of very different
length do no harm, and given a small ridge, so that a singular A has a solution too; a Gramian computed in
float32 may even have negative eigenvalues, and then gets twice the most negative one. The conditions then hold up
to ridge times x.
Cost: a handful of Cholesky factorisations; singular, up to 40 ms a program at K=256. Oracle: quadprog through
TorchJD, and the conditions above (tests/oracles/test_weightings.py).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import nnls

RIDGE = 1e-12  # beside a unit diagonal
TOLERANCE = 1e-11  # a sign is wrong only beyond this share of the largest x, or of the terms of y
BLOCK_TRIES = 3  # full exchanges without progress before Lawson & Hanson
STEPS = 30  # of Lawson & Hanson, per variable; random problems take one


def solve(matrix: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """x (R, K) for A (K, K), symmetric and positive semi-definite up to rounding, and R vectors q (R, K)."""
    scale = lengths(matrix)
    unit = regular(matrix / np.outer(scale, scale), RIDGE)
    return np.array([pivot(unit, q) for q in linear / scale]) / scale


def lengths(matrix: np.ndarray) -> np.ndarray:
    """Roots of the diagonal, 1 where it is zero: dividing rows and columns by them gives a unit diagonal."""
    diagonal = matrix.diagonal()
    return np.sqrt(np.where(diagonal > 0, diagonal, 1.0))


def regular(unit: np.ndarray, ridge: float) -> np.ndarray:
    """A matrix of unit diagonal made positive definite: plus `ridge`, or what its rounding errors ask for."""
    identity = np.eye(len(unit))
    try:
        np.linalg.cholesky(unit + ridge * identity)
    except np.linalg.LinAlgError:
        ridge = ridge - 2 * min(np.linalg.eigvalsh(unit)[0], 0.0)
    return unit + ridge * identity


def pivot(matrix: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """`solve` for a matrix that is positive definite and of unit diagonal."""
    free, largest = linear < 0, np.abs(linear).max()
    fewest, tries = len(linear) + 1, BLOCK_TRIES
    while True:
        x, y = trial(matrix, linear, free)
        terms = np.minimum(np.abs(linear) + np.abs(x).sum(), largest)  # of y: a huge q elsewhere excuses nothing
        wrong = np.where(free, x < -TOLERANCE * np.abs(x).max(), y < -TOLERANCE * terms)
        count = int(wrong.sum())
        if count == 0:
            return np.maximum(x, 0.0)
        if count < fewest:
            fewest, tries = count, BLOCK_TRIES
        elif tries > 0:
            tries -= 1
        else:
            return active_set(matrix, linear)
        free = free ^ wrong


def active_set(matrix: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """`pivot` by Lawson & Hanson."""
    lower = np.linalg.cholesky(matrix)
    target = -solve_triangular(lower, linear, lower=True, check_finite=False)
    return nnls(lower.T, target, maxiter=STEPS * len(linear))[0]


def trial(matrix: np.ndarray, linear: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x solved on the free variables and zero elsewhere, and y = Ax + q."""
    x = np.zeros_like(linear)
    index = free.nonzero()[0]
    if len(index):
        factor = cho_factor(matrix[np.ix_(index, index)], lower=True, check_finite=False)
        x[index] = cho_solve(factor, -linear[index], check_finite=False)
    return x, matrix @ x + linear
