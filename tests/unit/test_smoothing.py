"""Bins and running means of log loss over log steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zslx.deceleration.binning import AS_THEY_ARE, BINS, bins, paper_points, windows


@given(st.integers(1, 3000), st.integers(1, 50), st.floats(1, 40))
def test_bins_cover_every_step_once_and_keep_the_mean(size, first, least):
    steps = np.arange(first, first + size, dtype=float)
    y = np.sin(steps)
    b = bins(steps, y, least=least)
    assert b.n.sum() == size and (b.n >= 1).all() and b.first[0] == 0
    assert np.isclose(b.n @ b.y, y.sum()) and np.isclose(b.n @ b.x, np.log(steps).sum())
    assert b.x.size <= (size if size <= AS_THEY_ARE * BINS else BINS + 1) and (np.diff(b.x) > 0).all()
    assert np.allclose(b.averaged(y), b.y)


def test_bins_are_as_long_as_asked():
    b = bins(np.arange(1.0, 2001), np.zeros(2000), least=16)
    assert (b.n[:-1] >= 15).all()


def test_points_far_apart_stay_as_they_are():
    steps = np.array([1.0, 2, 4, 8, 16, 32])
    b = bins(steps, np.log(steps))
    assert np.allclose(b.x, np.log(steps)) and (b.n == 1).all()


@pytest.mark.parametrize("smoothing", ["centred", "none"])
def test_smoothing_keeps_a_power_law_exactly(smoothing):
    steps = np.arange(5.0, 4000)
    y = 2 - 0.3 * np.log(steps)
    b = bins(steps, y)
    x, matrix = windows(b, smoothing)
    assert np.allclose(matrix @ b.y, 2 - 0.3 * x, atol=1e-12)
    assert np.allclose(matrix.sum(axis=1), 1)


def test_trailing_window_is_late_by_half_its_width():
    steps = np.arange(5.0, 40000)
    y = 2 - 0.3 * np.log(steps)
    b = bins(steps, y)
    x, matrix = windows(b, "paper")
    late = ((matrix @ b.y)[50:] - (2 - 0.3 * x[50:])) / 0.3
    assert np.all((late > 0.07) & (late < 0.11))  # log √1.2 = 0.091


def test_unknown_smoothing_is_refused():
    with pytest.raises(ValueError, match="allowed: centred, paper, none"):
        windows(bins(np.arange(1.0, 9), np.zeros(8)), "gauss")


def test_paper_points_keep_the_last_step():
    steps = np.arange(1.0, 12_346)
    kept, y = paper_points(steps, np.zeros_like(steps))
    assert kept[-1] == 12_345 and set(kept[(kept > 1000) & (kept < 12_000)] % 100) == {0}
    assert (y == 0).all()
