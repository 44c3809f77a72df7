"""The trend of the decomposition over model sizes, on planted laws."""

from __future__ import annotations

import numpy as np
import pytest

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
    assert found["ee"].slope_gap == pytest.approx(0.02)
    assert found["sa"].slope_gap == pytest.approx(0.07)
    assert "change sign" in str(found["conf"])
    other = record(2e6, 0.1) | {"n": 200}
    with pytest.raises(ValueError, match="different token counts"):
        decomposition_trends(sizes[:2], [record(1e5, 0.1), other])
