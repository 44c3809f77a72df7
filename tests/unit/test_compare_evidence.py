"""The rule of evidence: intervals and tests against scipy and enumeration, and what each word needs."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.inference.answers import qualified
from analysis.inference.contrasts import Contrast, contrast, mean_interval, pooled, ratio_interval, seeds_needed
from analysis.inference.evidence import holm, judge
from analysis.inference.resampling import across_sizes, sign_flip


def draws(seed: int, shape: tuple[int, ...], mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, shape)


@settings(max_examples=50, deadline=None)
@given(sizes=st.integers(1, 4), seeds=st.integers(2, 12), seed=st.integers(0, 1000))
def test_with_all_pairs_it_is_the_t_test_over_seed_averages(sizes, seeds, seed):
    d = draws(seed, (sizes, seeds), 0.3)
    found = contrast(d)
    oracle = stats.ttest_1samp(d.mean(axis=0), 0.0)
    low, high = oracle.confidence_interval(0.95)
    assert (found.estimate, found.low, found.high) == pytest.approx((d.mean(), low, high), rel=1e-10)
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-10)
    assert (found.seeds, found.pairs) == (seeds, sizes * seeds)


def test_sizes_that_share_a_seed_are_not_independent():
    """Identical differences at three sizes carry no more than one size does."""
    one = draws(0, (1, 6))
    three = np.repeat(one, 3, axis=0)
    assert contrast(three).se == pytest.approx(contrast(one).se)


def test_missing_seeds_use_every_pair_and_count_the_fewest():
    d = draws(3, (3, 10), -1.0)
    d[1, 4] = d[2, 0] = d[2, 1] = np.nan
    found = contrast(d)
    assert found.estimate == pytest.approx(np.mean([np.nanmean(row) for row in d]))
    assert (found.seeds, found.pairs) == (8, 27)


def test_intervals_with_missing_seeds_cover():
    """95 % intervals cover 0 in 93.5 to 98.5 % of 2,000 studies with a fifth of the pairs missing."""
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(2000):
        d = generator.normal(0, 1, (3, 10)) + generator.normal(0, 1, (1, 10))
        d[generator.random((3, 10)) < 0.2] = np.nan
        found = pooled(d)
        covered += found.low <= 0 <= found.high
    assert 0.935 <= covered / 2000 <= 0.985


def test_one_seed_has_an_estimate_and_no_interval():
    found = contrast([[0.5], [0.7]])
    assert found.estimate == pytest.approx(0.6)
    assert found.low is None and found.p is None and found.smallest_effect is None
    assert contrast([[np.nan, np.nan]]) is None and contrast(np.empty((0, 3))) is None


def test_pooled_leaves_out_sizes_with_fewer_than_two_pairs():
    d = draws(1, (3, 5))
    d[2, 1:] = np.nan
    assert pooled(d) == contrast(d[:2])
    assert pooled(np.full((2, 3), np.nan)) is None


def test_identical_differences_have_no_spread_and_zero_is_no_effect():
    assert contrast(np.zeros((2, 4))).p == 1.0
    found = contrast(np.full((2, 4), -0.25))
    assert found.below and found.p == 0.0


@settings(max_examples=30, deadline=None)
@given(seeds=st.integers(6, 9), sizes=st.integers(1, 3), seed=st.integers(0, 500))
def test_sign_flip_equals_enumeration(seeds, sizes, seed):
    d = draws(seed, (sizes, seeds), 0.4)
    means = d.mean(axis=0)
    sums = [abs(np.dot(signs, means)) for signs in itertools.product((1, -1), repeat=seeds)]
    expected = np.mean([s >= abs(means.sum()) * (1 - 1e-12) for s in sums])
    assert sign_flip(d)["p"] == pytest.approx(expected)


def test_sign_flip_needs_six_seeds_and_says_when_it_samples():
    assert sign_flip(draws(0, (2, 5))) is None
    assert sign_flip(np.full((1, 6), -1.0)) == {"p": 2 / 64, "exact": True, "seeds": 6}
    many = sign_flip(draws(0, (1, 30), 1.0), np.random.default_rng(0))
    assert not many["exact"] and many["p"] < 0.001
    with pytest.raises(ValueError, match="needs a generator"):
        sign_flip(draws(0, (1, 30)))


def test_holm_steps_down_stays_monotone_and_ignores_what_was_not_measured():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": None}
    )
    assert holm({}) == {}


@pytest.mark.parametrize("seeds", [3, 6, 10, 30])
def test_the_smallest_effect_seen_is_found_with_the_stated_power(seeds):
    """The closed form against the noncentral t distribution: power within 0.05 of 0.8."""
    found = contrast(draws(2, (1, seeds)))
    shift = found.smallest_effect / found.se
    critical = stats.t.ppf(0.975, seeds - 1)
    power = stats.nct.sf(critical, seeds - 1, shift) + stats.nct.cdf(-critical, seeds - 1, shift)
    assert power == pytest.approx(0.8, abs=0.05)


def test_seeds_needed_is_the_inverse_of_the_smallest_effect():
    n = seeds_needed(0.5, 1.0)
    reach = [(stats.t.ppf(0.975, k - 1) + stats.t.ppf(0.8, k - 1)) / math.sqrt(k) for k in (n - 1, n)]
    assert reach[0] > 0.5 >= reach[1]
    assert seeds_needed(1e-9, 1.0) is None and seeds_needed(0.0, 1.0) is None


def test_across_sizes_gives_the_known_probability_and_is_deterministic():
    arm, base = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), np.array([[2.0, 3.0, 4.0], [1.0, 2.0, 3.0]])
    found = across_sizes(arm, base, np.random.default_rng(0))
    # Size 1: wins 3 + 2·(2 ties and 1) by hand = (3 + 2.5 + 1.5)/9; size 2: one half.
    assert found["probability_of_improvement"]["estimate"] == pytest.approx(((3 + 2.5 + 1.5) / 9 + 0.5) / 2)
    assert found["interquartile_mean"]["estimate"] == pytest.approx(stats.trim_mean((arm - base).ravel(), 0.25))
    assert found == across_sizes(arm, base, np.random.default_rng(0))
    assert across_sizes(arm[:, :1], base[:, :1], np.random.default_rng(0)) is None


def test_fieller_interval_covers_the_ratio():
    """Correlated numerator and denominator: coverage 93 to 97 % in 2,000 draws."""
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(2000):
        shared = generator.normal(0, 0.3, 8)
        top, bottom = 2.0 + shared + generator.normal(0, 0.5, 8), 4.0 + shared + generator.normal(0, 0.5, 8)
        a, b = contrast(top), contrast(bottom)
        low, high = ratio_interval(a, b, float(np.cov(top, bottom)[0, 1] / 8))
        covered += low <= 0.5 <= high
    assert 0.93 <= covered / 2000 <= 0.97


def test_geometric_mean_interval_is_the_interval_of_the_logs():
    found = mean_interval([1.0, 4.0, np.nan], log=True)
    assert found["mean"] == pytest.approx(2.0) and found["n"] == 2
    assert mean_interval([np.nan]) is None
    assert mean_interval([1e300, 1e-300], log=True)["high"] < np.inf


# The words.

BELOW, ABOVE, ACROSS = -1.0, 1.0, 0.0


def at(estimate: float, seeds: int = 10) -> Contrast:
    """A contrast whose interval lies below 0, above 0 or across it."""
    return Contrast(
        estimate=estimate,
        seeds=seeds,
        pairs=seeds,
        se=0.2,
        low=estimate - 0.5,
        high=estimate + 0.5,
        p=0.001 if estimate else 0.9,
    )


RATES = {"0.5×": at(BELOW), "2×": at(BELOW)}


def word(primary, placebo=None, secondary=None, signs=None, *, rates=RATES, **options) -> str:
    return judge(primary, placebo, secondary or {}, signs or {}, rates=rates, **options).word


def test_the_words_without_deceleration():
    assert word(at(ABOVE), at(BELOW)) == "hurts"
    assert word(at(ACROSS), at(BELOW)) == "no effect found"
    assert word(at(BELOW)) == "below baseline, placebo not run"
    assert word(at(BELOW), Contrast(estimate=-1.0, seeds=1, pairs=1)) == "below baseline, placebo not run"
    assert word(at(BELOW), at(ACROSS)) == "no effect found"
    assert word(at(BELOW), at(ABOVE)) == "no effect found"
    assert word(at(BELOW), at(BELOW)) == "improves"
    assert word(None, None) == "no effect found"
    assert word(at(ABOVE, 5)) == "above baseline"
    assert word(Contrast(estimate=-1.0, seeds=1, pairs=3), None) == "no effect found"


def test_a_gain_has_to_beat_the_baseline_at_other_rates_too():
    for lost in (at(ACROSS), at(ABOVE)):
        assert word(at(BELOW), at(BELOW), rates=RATES | {"2×": lost}) == "no effect found"
        assert word(at(BELOW), has_placebo=False, rates=RATES | {"0.5×": lost}) == "no effect found"
    for rates in ({}, {"2×": at(BELOW)}, {"2×": at(BELOW), "0.5×": None}):
        assert word(at(BELOW), at(BELOW), rates=rates) == "below baseline, rates not run"


def test_without_a_placebo_of_its_own_an_arm_reaches_every_word_by_the_rates():
    better, same = {"tail_slope": at(ABOVE)}, {"tail_slope": [0.1, 0.2, 0.1]}
    assert word(at(BELOW), has_placebo=False) == "improves"
    assert word(at(BELOW), None, better, same, has_placebo=False) == "mitigates deceleration"
    assert word(at(BELOW), has_placebo=False, rates={}) == "below baseline, rates not run"


def test_mitigates_needs_a_better_slope_or_lower_break_the_same_at_every_cut():
    better, same = {"tail_slope": at(ABOVE)}, {"tail_slope": [0.1, 0.2, 0.1]}
    assert word(at(BELOW), at(BELOW), better, same) == "mitigates deceleration"
    assert word(at(BELOW), at(BELOW), {"L_d": at(BELOW)}, {"L_d": [-1.0, -2.0]}) == "mitigates deceleration"
    assert word(at(BELOW), at(BELOW), better, {"tail_slope": [0.1, -0.2, 0.1]}) == "improves"
    assert word(at(BELOW), at(BELOW), better, {}) == "improves"
    assert word(at(BELOW), at(BELOW), better, {"tail_slope": [0.1, math.nan, 0.1]}) == "improves"
    assert word(at(BELOW), at(BELOW), {"tail_slope": at(BELOW)}, same) == "improves"
    # r_d takes the tail slope's place where breaks are identified; a worse one vetoes a lower L_d.
    veto = {"r_d": at(BELOW), "L_d": at(BELOW), "tail_slope": at(ABOVE)}
    assert word(at(BELOW), at(BELOW), veto, {"L_d": [-1.0], **same}) == "improves"
    # Without the placebo nothing more is said.
    assert word(at(BELOW), None, better, same) == "below baseline, placebo not run"


def test_mitigates_counts_what_holm_leaves():
    weak = Contrast(estimate=1.0, seeds=10, pairs=10, se=0.4, low=0.1, high=1.9, p=0.03)
    same = {"tail_slope": [1.0, 1.0]}
    assert word(at(BELOW), at(BELOW), {"tail_slope": weak}, same) == "mitigates deceleration"
    assert word(at(BELOW), at(BELOW), {"tail_slope": weak, "t_d": weak}, same) == "improves"


def test_below_six_seeds_and_undeclared_contrasts_are_exploratory():
    assert judge(at(BELOW, 5), at(BELOW, 10), {}, {}).exploratory
    assert judge(at(BELOW, 10), at(BELOW, 5), {}, {}).exploratory
    assert not judge(at(BELOW, 6), at(BELOW, 6), {}, {}).exploratory
    assert judge(at(BELOW, 6), None, {}, {}, declared=False).exploratory
    assert judge(at(BELOW, 6), None, {}, {}, complete=False).exploratory


def test_beyond_lr_decay_is_said_only_when_it_was_run():
    assert judge(at(BELOW), at(BELOW), {}, {}).beyond_lr_decay is None
    assert judge(at(BELOW), at(BELOW), {}, {}, beyond_cosine=at(BELOW)).beyond_lr_decay is True
    assert judge(at(BELOW), at(BELOW), {}, {}, beyond_cosine=at(ACROSS)).beyond_lr_decay is False
    assert qualified("improves", True) == "improves, beyond LR decay"
    assert qualified("hurts", True) == "hurts" and qualified("improves", False) == "improves"


def test_the_smallest_effect_is_that_of_the_weaker_contrast():
    wide = Contrast(estimate=-1.0, seeds=6, pairs=6, se=0.9, low=-3.3, high=1.3, p=0.3)
    assert judge(at(BELOW), wide, {}, {}).smallest_effect == wide.smallest_effect
