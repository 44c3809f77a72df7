"""The fit against slow ways to the same thing, and against the published table."""

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.signal import lfilter

from zslx.deceleration.binning import paper_points, trailing_mean
from zslx.deceleration.broken_power_law import Form, log_loss, solve, value_and_jacobian
from zslx.deceleration.curve_file import read
from zslx.deceleration.fit import fit
from zslx.deceleration.fit_options import FitOptions
from zslx.deceleration.loss_curve import curve

PUBLISHED = Path(__file__).parents[3] / "shared" / "curves"
# Name: log b, c0, c1, log d1, f1; T; t_d, L_d, r_d, L̂_T (arXiv 2506.05447, its released notebook).
TABLE = {
    "14M": ((np.log(18.422), 0.17454, -0.16203, 8.6789, 0.2030), 262153, (5877, 4.0501, 0.012517, 3.8621)),
    "78M": ((np.log(20.660), 0.20836, -0.18862, 8.6875, 0.2925), 262153, (5928, 3.3807, 0.019740, 3.1370)),
    "285M": ((np.log(20.847), 0.22076, -0.19571, 8.5687, 0.4450), 262451, (5264, 3.1444, 0.025043, 2.8511)),
}


def reference(x, log_b, c0, c1, log_d, f):
    """One break, written down once more."""
    return log_b - c0 * x - c1 * f * np.logaddexp(0, (x - log_d) / f)


def theta(log_b, c0, c1, log_d, f):
    return np.array([log_b, c0, c1, log_d, np.log(f)])


@pytest.mark.parametrize("breaks", [0, 1, 2])
@pytest.mark.parametrize("irreducible", [False, True])
def test_jacobian_equals_central_differences(breaks, irreducible):
    rng = np.random.default_rng(breaks)
    form = Form(breaks=breaks, irreducible=irreducible)
    at = np.concatenate(
        [[2.5, 0.3], rng.normal(0, 0.2, breaks), 5 + rng.normal(0, 1, breaks), np.log([0.1, 0.7][:breaks]), [0.4]]
    )[: form.size]
    x = np.linspace(1, 9, 17)
    value, jacobian = value_and_jacobian(form, at[None], x)
    assert np.allclose(value[0], log_loss(form, at, x), atol=1e-13)
    for p in range(form.size):
        shift = np.zeros(form.size)
        shift[p] = 1e-6
        slow = (log_loss(form, at + shift, x) - log_loss(form, at - shift, x)) / 2e-6
        assert np.allclose(jacobian[0, p], slow, atol=1e-8), p


def test_form_equals_the_published_formula():
    x = np.linspace(0, 13, 50)
    p = TABLE["14M"][0]
    assert np.allclose(log_loss(Form(breaks=1), theta(*p), x), reference(x, *p), atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_multi_start_is_as_good_as_curve_fit_started_at_the_truth(seed):
    rng = np.random.default_rng(seed)
    p = (3.0, rng.uniform(0.1, 0.4), -rng.uniform(0.05, 0.09), rng.uniform(5, 9), rng.uniform(0.1, 0.8))
    x = np.linspace(3, 12, 250)
    y = reference(x, *p) + rng.normal(0, 0.003, x.size)
    ours = solve(Form(breaks=1), x, y, np.ones_like(x))
    found, _ = curve_fit(reference, x, y, p0=p, method="lm", maxfev=10000)
    slow = float(np.sum((reference(x, *found) - y) ** 2))
    assert ours.loss <= slow * (1 + 1e-7)
    if ours.loss >= slow * (1 - 1e-7):
        assert np.allclose(ours.theta, theta(*found), rtol=1e-3, atol=1e-4)


def test_multi_start_finds_the_minimum_of_a_brute_grid():
    rng = np.random.default_rng(3)
    x = np.linspace(2, 8, 120)
    y = reference(x, 2.0, 0.2, -0.15, 5.0, 0.3) + rng.normal(0, 0.05, x.size)
    best = np.inf
    for d in np.linspace(2.5, 7.5, 101):
        for f in np.geomspace(0.02, 2, 60):
            design = np.stack([np.ones_like(x), -x, -f * np.logaddexp(0, (x - d) / f)], axis=1)
            coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
            best = min(best, float(np.sum((design @ coefficients - y) ** 2)))
    assert solve(Form(breaks=1), x, y, np.ones_like(x)).loss <= best * (1 + 1e-9)


def test_trailing_mean_equals_the_loop():
    values = np.random.default_rng(0).normal(size=301)
    slow = [values[int(j // 1.2) : j + 1].mean() for j in range(values.size)]
    assert np.allclose(trailing_mean(values), slow, atol=1e-12)


def test_paper_points_are_the_published_433():
    steps = np.arange(1.0, 262_154)
    kept, _ = paper_points(steps, np.zeros_like(steps))
    assert (kept > 100).sum() == 433 and kept[-1] == 262_153
    assert list(kept[kept <= 130]) == [*range(1, 101), 110, 120, 130]


@pytest.mark.parametrize("name", TABLE)
def test_published_curves_give_the_published_table(name):
    file = PUBLISHED / f"{name}.csv"
    if not file.exists():
        pytest.skip(f"the published curves are not part of the repository ({file.name} is absent)")
    result = fit(read(file), FitOptions(protocol="paper", smoothing="none"))
    check_table(result, TABLE[name][2])


def check_table(result, expected):
    t_d, L_d, r_d, L_T_hat = expected
    assert abs(result.t_d / t_d - 1) < 0.005
    assert abs(result.L_d - L_d) < 0.005
    assert abs(result.r_d - r_d) < 0.0005
    assert abs(result.L_T_hat - L_T_hat) < 0.005
    assert result.status in ("break", "not_identifiable")


@pytest.mark.parametrize("name", TABLE)
def test_curves_rebuilt_from_the_published_parameters_give_the_published_table(name):
    """Smoothed points of the paper's steps, with noise of the size that averaging leaves."""
    parameters, last, expected = TABLE[name]
    rng = np.random.default_rng(11)
    steps = np.arange(1.0, last + 1)
    kept, _ = paper_points(steps, steps)
    y = reference(np.log(kept), *parameters) + rng.normal(0, 0.02, kept.size) / np.sqrt(np.maximum(kept / 6, 1))
    result = fit(curve(kept, np.exp(y)), FitOptions(protocol="paper", smoothing="none"))
    check_table(result, expected)


def test_paper_protocol_smooths_and_thins_a_curve_of_steps_itself():
    """The trailing window puts t_d late by about √1.2, the centred one in its place."""
    parameters, last, (t_d, L_d, r_d, _) = TABLE["285M"]
    steps = np.arange(1.0, last + 1)
    noise = lfilter([1.0], [1.0, -0.5], np.random.default_rng(5).normal(0, 0.02, steps.size))
    c = curve(steps, np.exp(reference(np.log(steps), *parameters) + noise))
    late, right = fit(c, FitOptions(protocol="paper")), fit(c)
    assert late.status == right.status == "break"
    assert 1.07 < late.t_d / t_d < 1.12
    assert abs(right.t_d / t_d - 1) < 0.05 and abs(right.L_d - L_d) < 0.02 and abs(right.r_d - r_d) < 0.001
