"""A model of the noise in the residuals of a fit: its size at each bin, its correlation, and new draws of it.

The residual of bin k (binning.py), which holds n_k steps, is r_k = √v_k u_k with

    v_k ∝ 1/n_k + g              the noise of single steps, averaged over the bin, and the misfit g
    u_k = Σ_i φ_i u_{k−i} + ε_k  an autoregression; its order by AICc, its coefficients by Burg's method

Misfit is what remains of a residual however many steps are averaged: there the form of the fit is wrong. g ≥ 0 is
estimated by maximum likelihood. The long-run variance κ = var(ε)/(1 − Σφ)² takes the place of the variance of u,
because correlated residuals carry less information than as many independent ones.

New noise is made from moving blocks of ε, coloured by φ and scaled by √v. Noise that is correlated over steps needs no
special treatment. Where bins are longer than the correlation, their variance is the long-run variance of the steps
divided by n; where they are shorter, their variance is smaller and their neighbours are correlated to match.

Two things differ from a plain moving-block bootstrap. The residuals are prewhitened, since blocks alone lose
correlation and give intervals that are too short. And κ is corrected for what the fit absorbed, since a smooth curve
also follows slow noise.

Approximate: u is taken to be stationary in log t. Cost: milliseconds. tests/calibration/test_fit_calibration.py
measures the coverage of the intervals that rest on this model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

Array = NDArray[np.float64]

# The highest order of the autoregression: of bins, and of steps.
ORDER, STEP_ORDER = 6, 12
# The number of draws on which the estimate of κ is corrected.
CHECKS = 200


@dataclass(frozen=True, kw_only=True)
class Noise:
    """scale √v_k (K,), phi φ (p,), innovations ε (K − p,), long_run κ, and freedom, the degrees of freedom of κ."""

    scale: Array
    phi: Array
    innovations: Array
    long_run: float
    freedom: float

    @property
    def effective(self) -> float:
        """The number of independent values that are worth as much for a smooth trend as the K residuals."""
        u = self.scale.size
        variance = float(np.mean(self.innovations**2)) / max(_whiteness(self.phi), 1e-12)
        return float(np.clip(u * variance / max(self.long_run, 1e-300), 1.0, u))

    def draw(self, count: int, generator: np.random.Generator) -> Array:
        """`count` curves of new noise -> (count, K)."""
        size, burn = self.scale.size, 50
        block = max(1, round(self.innovations.size ** (1 / 3)))
        blocks = -(-(size + burn) // block)
        at = generator.integers(0, self.innovations.size - block + 1, size=(count, blocks))
        index = (at[:, :, None] + np.arange(block)).reshape(count, -1)[:, : size + burn]
        coloured = lfilter([1.0], np.concatenate([[1.0], -self.phi]), self.innovations[index], axis=1)
        # The variance of the sums of blocks is a noisy estimate of κ: scale the draws to κ itself.
        sums = np.lib.stride_tricks.sliding_window_view(self.innovations, block).sum(axis=1)
        scale = block * float(np.mean(self.innovations**2)) / max(float(np.mean(sums**2)), 1e-300)
        drawn: Array = coloured[:, burn:] * self.scale * np.sqrt(np.clip(scale, 0.5, 2))
        return drawn


def misfit(residuals: Array, n: Array) -> float:
    """g of v_k ∝ 1/n_k + g by maximum likelihood, from the residuals (K,) of bins of n (K,) steps."""
    base = 1 / n
    best, g_best = np.inf, 0.0
    for g in np.concatenate([[0.0], np.geomspace(base.min() / 30, base.max() * 30, 40)]):
        v = base + g
        cost = float(np.sum(np.log(v)) + n.size * np.log(np.mean(residuals**2 / v) + 1e-300))
        # g stays 0 unless a likelihood-ratio test at 5 % rejects it: by chance alone half of all curves have g > 0.
        if cost < (best if g_best else best - 3.84):
            best, g_best = cost, float(g)
    return g_best


def weights(n: Array, g: float) -> Array:
    """The weights 1/v_k (K,), scaled to a mean of 1."""
    w: Array = 1 / (1 / n + g)
    return w / float(w.mean())


def noise(residuals: Array, weight: Array, design: Array) -> Noise:
    """The model of the residuals (K,) of a fit with weights 1/v (K,) and derivatives `design` (P, K).

    κ is corrected for what the fit absorbed. Noise of the same correlation is drawn `CHECKS` times, the design is
    projected out of it, and κ is estimated again. The mean error of log κ is subtracted, and 2 over the variance of
    log κ is its degrees of freedom.
    """
    root = np.sqrt(weight)
    u = residuals * root
    u = u - u.mean()
    phi, innovations = autoregression(u, min(ORDER, u.size // 12))
    innovations = innovations - innovations.mean()
    long_run = float(np.mean(innovations**2)) / (1 - phi.sum()) ** 2
    bias, variance = _check(phi, np.linalg.qr((design * root).T)[0])
    # A correction by more than e² in variance, or fewer than 2 degrees of freedom, would mean that nothing is known.
    correction = float(np.exp(np.clip(-bias, -1, 2)))
    return Noise(
        scale=1 / root,
        phi=phi,
        innovations=innovations * np.sqrt(correction),
        long_run=long_run * correction,
        freedom=float(np.clip(2 / max(variance, 1e-9), 2, u.size)),
    )


def _check(phi: Array, basis: Array) -> tuple[float, float]:
    """Mean and variance of log(κ̂/κ) for noise with coefficients φ, when a basis (K, P) is projected out of it."""
    size, burn = len(basis), 50
    draws = np.random.default_rng(0).standard_normal((CHECKS, size + burn))
    u = lfilter([1.0], np.concatenate([[1.0], -phi]), draws, axis=1)[:, burn:]
    u -= (u @ basis) @ basis.T
    order = max(phi.size, 1) if size >= 12 else phi.size
    estimated, power = _burg(u - u.mean(axis=1, keepdims=True), order)[-1]
    total = np.clip(estimated.sum(axis=1), 0, 0.999)
    power = np.where(estimated.sum(axis=1) >= 0, power, np.mean(u**2, axis=1))
    errors = np.log(np.maximum(power, 1e-300) / (1 - total) ** 2 * (1 - phi.sum()) ** 2)
    return float(errors.mean()), float(errors.var())


def correlation_length(residuals: Array) -> float:
    """The number of steps worth one independent value: long-run variance over variance of the steps' residuals (N,)."""
    u = residuals - residuals.mean()
    phi, innovations = autoregression(u, min(STEP_ORDER, u.size // 12))
    variance = float(np.mean(u**2))
    if not variance > 0:
        return 1.0
    return max(1.0, float(np.mean(innovations**2)) / max(1 - float(phi.sum()), 1e-6) ** 2 / variance)


def autoregression(u: Array, longest: int) -> tuple[Array, Array]:
    """Burg's method at the order, up to `longest`, of the lowest AICc: φ (p,) and the innovations (K − p,)."""
    chosen, best = np.empty(0), u.size * np.log(max(float(np.mean(u**2)), 1e-300))
    for p, (phi, power) in enumerate(_burg(u[None], longest)):
        cost = u.size * float(np.log(power[0])) + 2 * p * u.size / max(u.size - p - 1, 1)
        # Σφ < 0 would mean that averaging helps more than it does with white noise. In a few hundred residuals that is
        # chance, and believing it costs coverage. So does an order of 0 where neighbours are correlated.
        if phi[0].sum() >= 0 and (cost < best or p == 1):
            best, chosen = cost, phi[0]
    innovations = lfilter(np.concatenate([[1.0], -chosen]), [1.0], u)[chosen.size :]
    return chosen, innovations


def _burg(u: Array, longest: int) -> list[tuple[Array, Array]]:
    """Autoregressions of order p = 0..longest of each row of u (S, K): φ (S, p) and the variance of ε (S,)."""
    forward, backward = u[:, 1:], u[:, :-1]
    phi, power = np.empty((len(u), 0)), np.maximum(np.mean(u**2, axis=1), 1e-300)
    found = [(phi, power)]
    for _ in range(longest):
        total = np.einsum("sk,sk->s", forward, forward) + np.einsum("sk,sk->s", backward, backward)
        k = 2 * np.einsum("sk,sk->s", forward, backward) / np.maximum(total, 1e-300)
        phi = np.concatenate([phi - k[:, None] * phi[:, ::-1], k[:, None]], axis=1)
        power = np.maximum(power * (1 - k * k), 1e-300)
        found.append((phi, power))
        forward, backward = (forward - k[:, None] * backward)[:, 1:], (backward - k[:, None] * forward)[:, :-1]
    return found


def _whiteness(phi: Array) -> float:
    """var(ε)/var(u) of an autoregression, from its reflection coefficients."""
    ratio, current = 1.0, phi
    while current.size:
        k = float(current[-1])
        ratio *= max(1 - k * k, 1e-12)
        current = (current[:-1] + k * current[:-1][::-1]) / max(1 - k * k, 1e-12)
    return ratio
