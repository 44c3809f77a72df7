"""Planted curves come back, and a curve without an identifiable break never gets an L_d."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import zslx
from zslx.deceleration import fit as fit_module
from zslx.deceleration.binning import bins, windows
from zslx.deceleration.break_status import STATUSES
from zslx.deceleration.broken_power_law import Form, log_loss, solve
from zslx.deceleration.fit_options import FitOptions
from zslx.deceleration.intervals import MEASURES
from zslx.deceleration.loss_curve import curve
from zslx.deceleration.planted_curves import Planted
from zslx.deceleration.slopes import local_slope, loss_at, tail_slope
from zslx.places import ROOT


def planted(*, seed=0, **settings):
    """A curve with one planted break (zslx/deceleration/planted_curves.py)."""
    return Planted(**settings).draw(np.random.default_rng(seed))


def fit(c, **options):
    return fit_module.fit(c, FitOptions(**options))


@pytest.mark.parametrize("f", [0.1, 0.5])
@pytest.mark.parametrize("smoothing", ["centred", "none"])
@pytest.mark.parametrize(("last", "t_d"), [(2000, 200), pytest.param(60_000, 3000, marks=pytest.mark.medium)])
def test_planted_parameters_come_back(f, smoothing, last, t_d):
    c = planted(last=last, t_d=t_d, f=f, sigma=1e-4)
    result = fit(c, smoothing=smoothing)
    assert result.status == "break" and result.breaks >= 1
    assert abs(result.t_d / t_d - 1) < 0.02 and abs(result.r_d - 0.04) < 0.001
    assert abs(result.L_d / (20 * t_d**-0.22) - 1) < 0.004
    assert abs(result.L_T_hat / (20 * t_d**-0.22 * (t_d / last) ** 0.04) - 1) < 0.004
    assert np.allclose(result.curve(c.steps[50:]), c.losses[50:], rtol=5e-3)


@pytest.mark.medium
def test_irreducible_loss_comes_back():
    steps = np.arange(1.0, 20_001)
    result = fit(curve(steps, 1.5 + 30 * steps**-0.5), irreducible=True)
    assert result.status == "no_break" and abs(result.a - 1.5) < 1e-3 and abs(result.c0 - 0.5) < 1e-3


@pytest.mark.medium
def test_robust_fit_shrugs_off_spikes():
    c = planted(sigma=0.005)
    spiked = c.losses.copy()
    spiked[np.random.default_rng(1).integers(0, 2000, 100)] *= 1.6
    spiked = curve(c.steps, spiked)
    plain, robust, clean = fit(spiked), fit(spiked, robust=True), fit(c)
    assert robust.status == "break"
    error = abs(np.log(robust.L_d / clean.L_d))
    assert error < 0.01
    assert plain.L_d is None or error < abs(np.log(plain.L_d / clean.L_d))


@pytest.mark.parametrize("seed", range(5))
def test_a_power_law_has_no_break(seed):
    c = planted(c0=0.1, r_d=0.1, sigma=0.02, rho=0.7, seed=seed)
    result = fit(c)
    assert result.status == "no_break" and result.breaks == 0 and result.reason
    assert all(getattr(result, name) is None and result.ci95[name] is None for name in MEASURES)
    assert result.c1 is None and abs(result.c0 - 0.1) < 0.02


def test_a_break_after_the_end_is_outside():
    c = planted(last=2000, t_d=3500, f=0.5, sigma=1e-4)
    result = fit(c)
    assert result.status == "break_outside" and result.t_d is None and "outside" in result.reason


def test_a_break_that_moves_with_the_cut_is_not_identifiable():
    """Smooth curvature everywhere: log L is a parabola in log t."""
    steps = np.arange(1.0, 20_001)
    x = np.log(steps)
    rng = np.random.default_rng(0)
    losses = np.exp(2.5 - 0.3 * x + 0.013 * x**2 + rng.normal(0, 0.002, x.size))
    result = fit(curve(steps, losses), transient=100)
    assert result.status == "not_identifiable"
    assert all(getattr(result, name) is None for name in MEASURES)
    at = {row.share: row.t_d for row in result.sensitivity if row.varied == "cut"}
    assert max(at[0.5], at[2.0]) > 1.25 * min(at[0.5], at[2.0])


def test_a_break_before_the_cut_is_not_reported():
    c = planted(t_d=50, sigma=0.005)
    assert fit(c, transient=400).status != "break"


def test_acceleration_is_no_deceleration():
    c = planted(c0=0.05, r_d=0.2, sigma=0.001)
    assert fit(c).L_d is None


@pytest.mark.medium
def test_paper_protocol_gives_numbers_whatever_the_status():
    c = planted(last=30_000, t_d=50_000, f=0.5, sigma=1e-4)
    result = fit(c, protocol="paper")
    assert result.status in STATUSES and result.status != "break" and result.t_d is not None


def test_sensitivity_is_part_of_every_result():
    c = planted()
    rows = fit(replace(c, warmup=20)).sensitivity
    assert [r.cut for r in rows if r.of == "early cut" and r.varied == "cut"] == [10, 20, 40, 200]
    assert [r.cut for r in rows if r.of == "warm-up"] == [1, 10, 20, 40]
    assert {r.smoothing for r in rows} == {"centred", "paper", "none"}


def test_same_seed_same_interval():
    c = planted()
    one, two = (fit(c, bootstrap=100, seed=3).as_dict() for _ in range(2))
    assert one == two and "bootstrap" in one["ci_method"]
    other = fit(c, bootstrap=100, seed=4)
    assert other.ci95 != one["ci95"]


def test_delta_method_and_bootstrap_agree_where_noise_is_small():
    c = planted(sigma=0.003, rho=0.3)
    delta, boot = fit(c).ci95, fit(c, bootstrap=1000).ci95
    for name in MEASURES:
        width, other = np.ptp(delta[name]), np.ptp(boot[name])
        assert 0.75 < other / width < 1.33, name


def test_profile_interval_of_t_d_agrees_where_noise_is_small():
    c = planted(sigma=0.003, rho=0.3)
    result = fit(c)
    assert np.allclose(result.profile_t_d, result.ci95["t_d"], rtol=0.03)


@example(33, 2, 1.0, True)  # b beyond what a float holds
@given(st.integers(1, 60), st.integers(0, 10), st.floats(0.2, 5), st.booleans())
@settings(max_examples=15, deadline=None)
def test_any_short_curve_gets_a_status_and_strict_json(size, seed, scale, paper):
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.integers(1, 9, size)).astype(float)
    losses = np.exp(rng.normal(0, scale, size))
    result = fit(curve(steps, losses), protocol="paper" if paper else None)
    assert result.status in STATUSES
    json.dumps(result.as_dict(), allow_nan=False)


def test_constant_and_extreme_losses():
    steps = np.arange(1.0, 200)
    for losses in (np.full(199, 3.0), np.geomspace(1e-300, 1e300, 199), np.full(199, 5e-324)):
        assert fit(curve(steps, losses)).status in STATUSES


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"breaks": 3}, "breaks is 3"),
        ({"smoothing": "box"}, "smoothing is 'box'"),
        ({"protocol": "mine"}, "protocol is 'mine'"),
        ({"transient": -1}, "transient is -1"),
        ({"bootstrap": 5}, "bootstrap is 5; allowed: 0"),
        ({"bootstrap": -1}, "bootstrap is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"protocol": "paper", "smoothing": "centred"}, "allowed: paper, none"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FitOptions(**kwargs)


@pytest.mark.parametrize(
    ("steps", "losses", "message"),
    [
        ([1, 2, 2], [3, 2, 1], "steps must increase"),
        ([1, 2, 3], [3, 2, np.nan], "losses must be finite"),
        ([1, 2, 3], [3, 2, 0], "losses must be finite and above 0"),
        ([1, 2], [3], "2 steps but 1 losses"),
        ([0], [3], "no step above 0"),
    ],
)
def test_bad_curves_are_refused(steps, losses, message):
    with pytest.raises(ValueError, match=message):
        fit(curve(steps, losses))


def test_the_public_fit_takes_a_curve_and_needs_no_options():
    c = planted(sigma=0.005)
    found = zslx.fit(zslx.curve(c.steps, c.losses, warmup=20))
    assert found.status == "break" and found.transient == 20 and found.ci95["t_d"]
    assert zslx.fit(c, zslx.FitOptions(bootstrap=0)).ci_method.startswith("delta method")


def test_the_example_of_the_guide_runs():
    text = (ROOT / "docs" / "deceleration.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    c = planted(sigma=0.005)
    names = {"steps": c.steps, "losses": c.losses}
    exec(example, names)
    assert names["found"].status == "break" and 0 < names["low"] < names["value"]


def test_the_papers_fit_of_too_many_points_is_refused():
    """It holds a matrix of all points by all points, 512 GiB for the paper's 262,144 steps."""
    c = planted(last=12_000)
    with pytest.raises(ValueError, match=r"11900 points are too many .* smoothing paper averages and thins them"):
        fit(c, protocol="paper", smoothing="none", bootstrap=0)
    assert fit(c, protocol="paper", bootstrap=0).t_d is not None


def test_slopes_of_a_power_law():
    c = planted(c0=0.12, r_d=0.12, sigma=0.01, rho=0.5, seed=4)
    _, low, high = tail_slope(c)
    assert low < 0.12 < high and high - low < 0.05
    at, slope, low, high = local_slope(c)
    assert ((low < 0.12) & (high > 0.12)).mean() > 0.8
    assert (np.diff(at) > 0).all() and (slope > low).all() and (slope < high).all()
    band = loss_at(c, [100, 1000, 9000])
    truth = 20 * band.steps**-0.12
    assert (band.low < truth)[:2].all() and (truth < band.high)[:2].all() and np.isnan(band.value[2])


def test_local_slope_falls_from_c0_to_r_d():
    c = planted(sigma=1e-4, f=0.1, t_d=200)
    at, slope, _, _ = local_slope(c)
    assert np.allclose(slope[at < 80], 0.22, atol=0.01) and np.allclose(slope[at > 500], 0.04, atol=0.01)


def test_slopes_of_a_thin_curve():
    """A held-out curve: a hundred points, a dozen of them in the last factor of 4."""
    steps = np.unique(np.geomspace(1, 2000, 100).astype(int)).astype(float)
    losses = 8 * steps**-0.1 * np.exp(np.random.default_rng(0).normal(0, 0.002, steps.size))
    c = curve(steps, losses)
    value, low, high = tail_slope(c)
    assert low < 0.1 < high and abs(value - 0.1) < 0.01
    with pytest.raises(ValueError, match="slope needs 3"):
        tail_slope(c.until(2))


@pytest.mark.medium
def test_paper_protocol_on_an_exact_power_law():
    steps = np.arange(1.0, 20_001)
    result = fit(curve(steps, 9 * steps**-0.1), protocol="paper")
    assert result.status == "no_break" and all(getattr(result, name) is not None for name in MEASURES)


def test_two_planted_breaks_are_seen():
    steps = np.arange(1.0, 20_001)
    theta = np.array([2.5, 0.05, 0.25, -0.26, np.log(60), np.log(900), np.log(0.15), np.log(0.15)])
    noise = np.random.default_rng(0).normal(0, 0.003, steps.size)
    c = curve(steps, np.exp(log_loss(Form(breaks=2), theta, np.log(steps)) + noise))
    result = fit(c, transient=5)
    assert result.breaks == 2
    assert abs(result.second["d1"] / 60 - 1) < 0.15 and abs(result.second["d2"] / 900 - 1) < 0.1
    forced = fit(c, transient=5, breaks=2)
    assert forced.status == "break" and abs(forced.t_d / 900 - 1) < 0.1 and abs(forced.r_d - 0.04) < 0.005


@pytest.mark.medium
def test_correlated_wiggles_are_no_evidence_of_a_break():
    """Smoothed noise looks like bends; a BIC for independent residuals takes most of it for breaks."""
    alarms = plain = 0
    for seed in range(6):
        c = planted(c0=0.1, r_d=0.1, sigma=0.02, rho=0.9, seed=seed)
        alarms += fit(c).breaks > 0
        b = bins(c.steps[10:], c.log_losses[10:])
        x, matrix = windows(b, "centred")
        x2 = [solve(Form(breaks=m), x, matrix @ b.y, np.ones_like(x)).loss for m in (0, 1)]
        plain += b.x.size * np.log(x2[0] / x2[1]) > 3 * np.log(b.x.size)
    assert alarms <= 1 and plain >= 4


def test_the_table_has_four_different_cuts_on_short_curves_and_without_a_cut():
    c = planted(last=150, t_d=40, sigma=0.005)
    for options in ({}, {"transient": 0}):
        rows = [row for row in fit(c, **options).sensitivity if row.varied == "cut"]
        assert [row.cut for row in rows] == [1, 2, 4, 20]


def test_the_papers_protocol_has_the_status_and_every_row_of_the_default():
    c = planted(last=20_000, t_d=1500, sigma=0.02)
    paper, usual = fit(c, protocol="paper", bootstrap=0), fit(c, bootstrap=0)
    assert (paper.status, paper.breaks, paper.profile_t_d) == (usual.status, usual.breaks, usual.profile_t_d)
    smoothings = [{row.smoothing for row in f.sensitivity} for f in (paper, usual)]
    assert smoothings == [{"paper", "centred", "none"}] * 2


def test_without_smoothing_the_misfit_is_that_of_the_points():
    c = planted(last=5000, t_d=600, sigma=0.02, rho=0.0)
    assert abs(fit(c, smoothing="none").rsle - 0.02) < 0.001
    assert fit(c).rsle < 0.01


def test_two_breaks_where_one_is_preferred_are_not_identifiable():
    c = planted(last=5000, t_d=800, sigma=0.01)
    assert fit(c).status == "break"
    forced = fit(c, breaks=2)
    assert forced.status == "not_identifiable" and forced.r_d is None and "two asked for" in forced.reason
    assert forced.breaks == 1 and forced.second["d1"] <= forced.second["d2"]


@pytest.mark.parametrize("asked", ["auto", 0, 1, 2])
def test_breaks_is_what_the_data_prefer_whatever_is_asked_for(asked):
    steps = np.arange(1.0, 5001)
    losses = 9 * steps**-0.1 * np.exp(np.random.default_rng(0).normal(0, 0.01, steps.size))
    result = fit(curve(steps, losses), breaks=asked)
    assert result.status == "no_break" and result.breaks == 0 and result.second is None


def test_intervals_reach_as_far_as_the_profile_of_t_d():
    """A smooth break near the end: far out on one side, which no symmetric interval shows."""
    c = planted(last=2000, t_d=1000, f=0.5, sigma=0.02, rho=0.0, seed=5)
    result = fit(c, bootstrap=0, widest=2.0)
    (low, high), t_d = result.ci95["t_d"], result.t_d
    assert result.status == "break" and high == pytest.approx(result.profile_t_d[1])
    assert high / t_d > 1.1 * t_d / low
