"""Looks: after how many seeds a study is judged, and the levels of the spending rule."""

import numpy as np
import pytest
from scipy.stats import norm, t

from analysis.inference.contrasts import CONFIDENCE, POWER, Contrast, contrast
from analysis.inference.looks import (
    FUTILE,
    TOTAL,
    conditional_power,
    confidence_at,
    futile,
    looks_of,
    nominal_levels,
    spent,
)


@pytest.mark.parametrize(
    ("seeds", "looks"), [(7, (6, 7)), (8, (6, 8)), (10, (6, 8, 10)), (12, (6, 9, 12)), (20, (10, 15, 20))]
)
def test_looks_come_after_a_half_three_quarters_and_all_seeds_none_before_six(seeds, looks):
    assert looks_of(seeds) == looks


@pytest.mark.parametrize("seeds", [1, 6])
def test_too_few_seeds_for_a_second_look_are_refused(seeds):
    with pytest.raises(ValueError, match=f"{seeds} seeds are judged once: looks begin at 6"):
        looks_of(seeds)


def test_bounds_are_the_published_ones_of_obrien_fleming_spending():
    """Five equal looks, two-sided 5 %: Lan and DeMets' spending, as published and in R's ldbounds."""
    bounds = norm.isf(np.array(nominal_levels((1, 2, 3, 4, 5), 0.05)) / 2)
    np.testing.assert_allclose(bounds, [4.8769, 3.3570, 2.6803, 2.2898, 2.0310], atol=1e-4)


def test_one_look_is_a_plain_test():
    assert nominal_levels((10,), 0.05) == pytest.approx((0.05,))
    assert confidence_at((), 10) == CONFIDENCE


def test_all_of_the_error_is_spent_at_the_end_and_little_before():
    assert spent(1.0) == pytest.approx(TOTAL) and spent(0.5) < 0.07 * TOTAL and spent(0.0) == 0
    levels = nominal_levels(looks_of(10))
    assert list(levels) == sorted(levels) and levels[0] < 0.01 and 0.035 < levels[-1] < TOTAL


def test_levels_are_those_of_a_brownian_motion():
    """The share of 200,000 paths that first leave the bounds at each look is what the rule spends there."""
    looks, paths = (6, 8, 10), 200_000
    walk = np.random.default_rng(0).normal(0, 1, (paths, 10)).cumsum(axis=1)
    out = np.stack([np.abs(walk[:, n - 1]) / n**0.5 > norm.isf(p / 2)
                    for n, p in zip(looks, nominal_levels(looks), strict=True)], axis=1)  # fmt: skip
    first = np.where(out.any(axis=1), out.argmax(axis=1), 3)
    shares = np.bincount(first, minlength=4)[:3] / paths
    np.testing.assert_allclose(shares, np.diff([spent(n / 10) for n in (0, *looks)]), atol=4 * 0.0004)


def test_an_interval_of_a_look_is_wider_by_its_level():
    d = np.random.default_rng(1).normal(-0.01, 0.004, (2, 8))
    plain, look = contrast(d), contrast(d, confidence=confidence_at((6, 8, 10), 8))
    assert (plain.estimate, plain.se, plain.p) == (look.estimate, look.se, look.p)
    assert look.low < plain.low and plain.high < look.high and look.smallest_effect > plain.smallest_effect
    assert (look.p < 1 - look.confidence) == (look.high < 0)


def at(statistic: float, seeds: int) -> Contrast:
    return Contrast.of(0.001 * statistic, 0.001, seeds, seeds)


@pytest.mark.parametrize(("seeds", "statistic"), [(6, 0.0), (6, -2.0), (8, 1.5), (15, -1.0)])
def test_conditional_power_is_the_share_of_paths_that_end_beyond_the_last_bound(seeds, statistic):
    """400,000 studies that go on from the look with a known spread and the smallest effect that all seeds could see."""
    looks = (10, 15, 20) if seeds == 15 else (6, 8, 10)
    n = looks[-1]
    bound = t.ppf(0.5 + confidence_at(looks, n) / 2, n - 1)
    effect = -(bound + t.ppf(POWER, n - 1)) / n**0.5  # of one seed, in units of its spread
    rest = np.random.default_rng(2).normal(effect, 1, (400_000, n - seeds)).sum(axis=1)
    ends = (statistic * seeds**0.5 + rest) / n**0.5
    below, above = conditional_power(at(statistic, seeds), looks, seeds)
    assert below == pytest.approx((ends < -bound).mean(), abs=0.003)
    assert conditional_power(at(-statistic, seeds), looks, seeds) == pytest.approx((above, below))


def test_an_arm_is_futile_where_neither_a_gain_nor_harm_can_be_hoped_for():
    looks = (6, 8, 10)
    assert futile(at(0.0, 6), [], looks, 6) and futile(at(0.3, 8), [], looks, 8)
    assert not futile(at(-2.0, 6), [], looks, 6), "it may still be found to help"
    assert not futile(at(2.0, 6), [], looks, 6), "it may still be found to hurt"
    assert futile(at(-8.0, 8), [at(0.2, 8)], looks, 8), "below the baseline, and never below its placebo"
    assert not futile(at(-8.0, 8), [at(-2.0, 8)], looks, 8)
    assert not futile(at(2.0, 8), [at(0.2, 8)], looks, 8), "what it may still be found to do is to hurt"
    assert not futile(at(0.0, 10), [], looks, 10), "at the last look there is nothing to stop"
    same = Contrast.of(0.0, 0.0, 6, 6)
    assert futile(same, [], looks, 6) and max(conditional_power(same, looks, 6)) < FUTILE
