"""Forecasts from the first part of a run."""

import json

import numpy as np
import pytest

from zslx.deceleration.forecast import forecast
from zslx.deceleration.loss_curve import curve
from zslx.deceleration.planted_curves import Planted


def test_a_broken_power_law_is_foretold_after_its_break():
    planted = Planted(last=20_000, t_d=800, f=0.2, sigma=0.01)
    hits, better = 0, 0
    for seed in range(6):
        c = planted.draw(np.random.default_rng(seed))
        f = forecast(c, share=0.3, bootstrap=100)
        assert f.seen == 6000 and f.at == 20_000 and abs(f.fit.error) < 0.02
        low, high = f.fit.interval
        hits += low <= 20 * 800**-0.22 * (800 / 20_000) ** 0.04 <= high
        better += abs(f.fit.error) < 0.01
        json.dumps(f.as_dict(), allow_nan=False)
    assert hits >= 5 and better >= 4


def test_a_run_that_saturates_is_foretold_better_than_by_a_power_law():
    steps = np.arange(1.0, 20_001)
    noise = np.random.default_rng(0).normal(0, 0.005, steps.size)
    c = curve(steps, (2 + 30 * steps**-0.5) * np.exp(noise))
    f = forecast(c, share=0.2, bootstrap=100)
    assert abs(f.fit.error) < 0.01 < abs(f.power_law.error)
    assert f.fit.covered and f.fit.irreducible


def test_beyond_the_end_nothing_is_known_to_compare_with():
    c = Planted().draw(np.random.default_rng(0))
    f = forecast(c, share=0.5, at=4000, bootstrap=0)
    assert f.actual is None and f.fit.error is None and f.seen == 2000 and f.at == 4000


def test_too_little_is_refused():
    c = Planted(last=100).draw(np.random.default_rng(0))
    with pytest.raises(ValueError, match="a forecast needs 8"):
        forecast(c, share=0.05)
    with pytest.raises(ValueError, match="share is 0"):
        forecast(c, share=0)
