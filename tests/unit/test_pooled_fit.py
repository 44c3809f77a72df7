"""Fits of the mean of several seeds: what seeds share cancels, what they do not makes the interval."""

from dataclasses import replace

import numpy as np
import pytest

from zslx.deceleration.fit import fit
from zslx.deceleration.fit_options import FitOptions
from zslx.deceleration.planted_curves import Planted
from zslx.deceleration.pooled_fit import pool, pooled_fit, seed_weights, spread_over_seeds

PLANTED = Planted(last=2000, t_d=250.0, sigma=0.01, rho=0.0)


def runs(seeds: int, first: int = 0):
    return [PLANTED.draw(np.random.default_rng(first + i)) for i in range(seeds)]


def scaled(curves, factor):
    return [replace(c, losses=c.losses * factor) for c in curves]


def test_the_mean_curve_is_fitted_as_any_curve():
    curves = runs(3)
    found, whole = pooled_fit(curves, 10), fit(pool(curves), FitOptions(transient=10, bootstrap=0))
    assert found.identified and found.fit.t_d == whole.t_d
    assert found.ranges()["t_d"].mean == pytest.approx(whole.t_d) and found.ranges()["r_d"].mean == whole.r_d
    assert found.ranges()["t_d"].low < 250 < found.ranges()["t_d"].high


def test_seeds_that_are_alike_leave_no_doubt_and_one_seed_says_nothing_of_others():
    alike = pooled_fit([PLANTED.draw(np.random.default_rng(0))] * 4, 10).ranges()
    assert all(r.high - r.low < 1e-6 * abs(r.mean) for r in alike.values())
    single = pooled_fit(runs(1), 10)
    assert all(r.low is None and r.high is None for r in single.ranges().values()) and single.spread() is None


def test_what_shifts_both_arms_alike_is_not_in_their_difference():
    curves, shifts = runs(5), np.exp(np.random.default_rng(1).normal(0, 0.2, 5))
    moved = [replace(c, losses=c.losses * s) for c, s in zip(curves, shifts, strict=True)]
    a, b = pooled_fit(moved, 10), pooled_fit(scaled(moved, 0.98), 10)
    difference = b.estimate - a.estimate
    assert difference == pytest.approx([np.log(0.98), 0, 0, np.log(0.98)], abs=1e-6)
    spread = spread_over_seeds(b.draws - a.draws, 5)
    assert spread is not None and spread.max() < 1e-5 < a.spread()[0]


def test_the_spread_of_a_mean_is_its_standard_error():
    """Up to a tenth more with few seeds: half a 68 % range is a little wider than a standard deviation then."""
    for seeds in (3, 6, 10):
        errors = []
        for number in range(200):
            x = np.random.default_rng(number).normal(0, 1, seeds)
            spread = spread_over_seeds((seed_weights(seeds) @ x)[:, None], seeds)
            errors.append(spread[0] / (x.std(ddof=1) / np.sqrt(seeds)))
        assert 0.97 <= np.mean(errors) <= 1.12, seeds


def test_weights_depend_on_the_number_of_seeds_alone():
    one, two = seed_weights(4), seed_weights(4)
    assert (one == two).all() and one.shape[1] == 4 and np.allclose(one.sum(axis=1), 1) and (one > 0).all()


def test_curves_are_pooled_where_all_have_a_step():
    a, b = runs(2)
    assert (pool([a, b.after(5)]).steps == a.steps[5:]).all()
    with pytest.raises(ValueError, match="no step in common"):
        pool([a.until(5), b.after(5)])
    with pytest.raises(ValueError, match="no curve"):
        pool([])
    with pytest.raises(ValueError, match="too few"):
        pooled_fit([a.until(12), b.until(12)], 10)
