"""Trends, laws and the scale-equivalent gain on planted ones."""

import math

import numpy as np
import pytest

from analysis.inference.size_trends import equivalent_gain, laws, trend

N = np.array([1e4, 3e4, 1e5, 4e5])


def power_law(seeds: int = 8, beta: float = 0.07, noise: float = 0.0, seed: int = 0, sizes: int = 4) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return 2.0 - beta * np.log(N[:sizes, None]) + generator.normal(0, noise, (sizes, seeds))


def test_a_planted_slope_is_found_exactly_and_covered_with_noise():
    exact = trend(power_law(), N)
    assert exact["estimate"] == pytest.approx(-0.07) and exact["intercept"] == pytest.approx(2.0)
    assert exact["curvature"] == pytest.approx(0, abs=1e-12)
    covered = sum(
        found["low"] <= -0.07 <= found["high"]
        for seed in range(400)
        if (found := trend(power_law(noise=0.01, seed=seed), N))
    )
    assert 0.92 <= covered / 400 <= 0.98


def test_a_trend_needs_three_sizes():
    assert "needs 3" in trend(power_law(sizes=2), N[:2])["refused"]
    lost = power_law(sizes=3)
    lost[1, 1:] = np.nan
    assert "needs 3" in trend(lost, N[:3])["refused"]
    same = np.array([1e5, 1e5, 4e5])  # three names, two sizes
    base = power_law(sizes=3)
    refused = trend(base, same), equivalent_gain(base - base, base, same, 1), laws(base, same, same)["kaplan"]
    assert all("2 sizes" in found["refused"] for found in refused)


def test_gain_is_the_factor_by_which_the_baseline_would_have_to_grow():
    base = power_law(noise=0.002)
    gain = 1.5
    arm = base - 0.07 * math.log(gain)
    found = equivalent_gain(arm - base, base, N, at=0)
    assert found["gain"] == pytest.approx(gain, rel=0.02) and found["low"] < gain < found["high"]
    assert not found["extrapolated"]
    assert equivalent_gain(arm - base, base, N, at=3)["extrapolated"]
    # A harmful arm is a baseline that shrinks: below the smallest size that is extrapolated, too.
    assert equivalent_gain(base - arm, base, N, at=0)["extrapolated"]


def test_the_interval_of_the_gain_covers_with_noise_in_both_parts():
    covered = 0
    for seed in range(400):
        generator = np.random.default_rng(seed)
        base = power_law(noise=0.006, seed=seed)
        difference = -0.07 * math.log(1.3) + generator.normal(0, 0.006, base.shape)
        found = equivalent_gain(difference, base, N, at=1)
        covered += found["low"] <= 1.3 <= found["high"]
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize(
    ("base", "why"),
    [
        (power_law(sizes=2), "needs 3"),
        (power_law(beta=0.0005, noise=0.02), "does not clearly fall"),
        (power_law(beta=-0.05), "does not clearly fall"),
    ],
)
def test_gain_is_refused_with_the_reason(base, why):
    difference = np.full(base.shape, -0.01)
    assert why in equivalent_gain(difference, base, N[: len(base)], at=0)["refused"]


def test_gain_needs_pairs_at_its_size():
    base = power_law()
    difference = np.full(base.shape, -0.01)
    difference[0, 1:] = np.nan
    assert "pairs" in equivalent_gain(difference, base, N, at=0)["refused"]


def test_planted_scaling_laws_come_back():
    tokens = np.full(4, 1e6)
    kaplan = laws(power_law(), N, tokens)["kaplan"]
    assert kaplan["alpha"] == pytest.approx(0.07) and kaplan["log_N_c"] == pytest.approx(2.0 / 0.07)
    chinchilla = np.log(1.7 + 40 * N**-0.35)
    found = laws(np.repeat(chinchilla[:, None], 2, axis=1), N, tokens)["chinchilla"]
    assert (found["E"], found["alpha"], found["log_A"]) == pytest.approx((1.7, 0.35, math.log(40)), rel=1e-3)
    assert found["rmse_log"] < 1e-6


def test_a_law_in_parameters_and_tokens_comes_back_when_tokens_differ():
    n = np.array([1e4, 1e4, 3e4, 3e4, 1e5, 1e5, 4e5, 4e5])
    d = np.array([1e6, 8e6, 2e6, 1.6e7, 1e6, 8e6, 2e6, 1.6e7])
    y = np.log(1.7 + 40 * n**-0.35 + 300 * d**-0.4)
    found = laws(y[:, None], n, d)["chinchilla_tokens"]
    assert (found["E"], found["alpha"], found["beta"]) == pytest.approx((1.7, 0.35, 0.4), rel=1e-2)


def test_laws_are_refused_with_the_reason():
    found = laws(power_law(sizes=2), N[:2], np.full(2, 1e6))
    assert "needs 3" in found["kaplan"]["refused"] and "needs 4" in found["chinchilla"]["refused"]
    assert "does not fall" in laws(power_law(beta=-0.1), N, np.full(4, 1e6))["kaplan"]["refused"]
