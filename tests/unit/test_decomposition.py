"""The trend of the decomposition over model sizes, on planted laws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import linregress
from scipy.stats import t as student_t

from zslx.deceleration.scaling_law import decomposition_trends, scaling_trend


def test_a_planted_power_law_is_found() -> None:
    sizes = [1e5, 3e5, 1e6, 1e7]
    trend = scaling_trend(sizes, [7.0 * n**-0.08 for n in sizes])
    assert trend.alpha == pytest.approx(-0.08) and trend.c == pytest.approx(np.log(7.0))
    assert trend.r2 == pytest.approx(1) and trend.n == 4
    assert scaling_trend(sizes, [-7.0 * n**0.3 for n in sizes]).alpha == pytest.approx(0.3)


def test_r2_is_the_squared_correlation() -> None:
    draws = np.random.default_rng(0)
    sizes, values = np.exp(draws.normal(size=20)), np.exp(draws.normal(size=20))
    correlation = np.corrcoef(np.log(sizes), np.log(values))[0, 1]
    assert scaling_trend(sizes, values).r2 == pytest.approx(correlation**2)
    assert scaling_trend([1, 2], [1, 3]).r2 is None
    assert scaling_trend([1, 2, 4], [3, 3, 3]).r2 is None


@pytest.mark.parametrize(
    ("sizes", "values", "message"),
    [
        ([1.0], [2.0], "1 different sizes"),
        ([1.0, 1.0], [2.0, 3.0], "1 different sizes"),
        ([1.0, 2.0], [2.0], "one value a size"),
        ([1.0, 2.0], [2.0, float("nan")], "finite and above 0"),
        ([1.0, 2.0], [2.0, 0.0], "finite and above 0"),
        ([0.0, 2.0], [2.0, 1.0], "finite and above 0"),
        ([1.0, 2.0], [-2.0, 1.0], "change sign"),
    ],
)
def test_refusals(sizes: list[float], values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scaling_trend(sizes, values)


def test_terms_and_their_slope_gaps() -> None:
    sizes = [1e5, 4e5, 2e6]

    def record(n: float, conf: float) -> dict:
        return {"ce": 9 * n**-0.05, "ee": 8 * n**-0.07, "sa": n**0.02, "conf": conf, "n": 100, "bins": "rank"}

    found = decomposition_trends(sizes, [record(n, c) for n, c in zip(sizes, (-0.1, 0.1, 0.2), strict=True)])
    assert found["ce"].slope_gap == 0
    assert found["ee"].slope_gap == pytest.approx(-0.02)
    assert found["sa"].slope_gap == pytest.approx(0.07)
    assert "change sign" in str(found["conf"])
    other = record(2e6, 0.1) | {"n": 200}
    with pytest.raises(ValueError, match="different token counts"):
        decomposition_trends(sizes[:2], [record(1e5, 0.1), other])


def test_intervals_are_those_of_a_regression_and_cover() -> None:
    """32 models over five orders of magnitude, as in the paper: intervals of slope and gap hold the planted ones."""
    draws = np.random.default_rng(0)
    sizes = np.geomspace(1e6, 1e11, 32)
    held = {"slope": 0, "gap": 0}
    for _ in range(400):
        shared, own = 0.05 * draws.normal(size=32), 0.02 * draws.normal(size=32)
        ce, ee = 20 * sizes**-0.08 * np.exp(shared), 18 * sizes**-0.1 * np.exp(shared + own)
        records = [
            {"ce": a, "ee": b, "sa": 1.0, "conf": 1.0, "n": 9, "bins": "rank"} for a, b in zip(ce, ee, strict=True)
        ]
        trend = decomposition_trends(sizes, records)["ee"]
        held["slope"] += trend.interval[0] < -0.1 < trend.interval[1]
        held["gap"] += trend.gap_interval[0] < -0.02 < trend.gap_interval[1]
    theirs = linregress(np.log(sizes), np.log(ee))
    assert (trend.alpha, trend.r2) == pytest.approx((theirs.slope, theirs.rvalue**2))
    assert trend.interval[1] - trend.alpha == pytest.approx(student_t.ppf(0.975, 30) * theirs.stderr)
    # What both terms have in common leaves the gap.
    assert np.diff(trend.gap_interval) < 0.6 * np.diff(trend.interval)
    assert all(0.92 < count / 400 < 0.98 for count in held.values()), held
    assert scaling_trend([1, 2], [1, 3]).interval is None
