"""Looks before the last seed keep the error at 5 % and most of the power: simulated studies that stop when decided."""

from collections import Counter

import numpy as np
import pytest

from analysis.simulation.error_rates import World, decided_share, verdict_at_looks

pytestmark = pytest.mark.slow

NOTHING = "no effect found"
GAINS = ("improves", "mitigates deceleration")
STUDIES = 400_000


@pytest.mark.parametrize("seeds", [7, 8, 9, 10, 12, 16, 20, 30])
def test_without_an_effect_at_most_5_percent_are_decided(seeds):
    """Of 400,000 studies 5 % are 20,000, with a standard deviation of 138: two of them are allowed."""
    found, _, _ = decided_share(seeds, 0.0, STUDIES, np.random.default_rng(seeds))
    assert 0.045 < found <= 0.05 + 2 * 138 / STUDIES


@pytest.mark.parametrize("seeds", [8, 10, 20])
@pytest.mark.parametrize("effect", [-3.0, -4.0])
def test_looks_cost_at_most_four_points_of_power(seeds, effect):
    found, fixed, used = decided_share(seeds, effect, 100_000, np.random.default_rng(0))
    assert fixed - 0.04 <= found <= fixed and used < seeds


def test_an_effect_of_five_standard_errors_saves_a_quarter_of_ten_seeds():
    found, _, used = decided_share(10, -5.0, 100_000, np.random.default_rng(0))
    assert found >= 0.97 and used <= 7.5


@pytest.mark.parametrize("seeds", [7, 8, 10, 12, 20, 30])
def test_futility_raises_no_error_and_saves_seeds_where_there_is_nothing(seeds):
    draws = (np.random.default_rng(seeds) for _ in range(2))
    with_it, without = (decided_share(seeds, 0.0, STUDIES, next(draws), futility=may) for may in (True, False))
    assert 0.04 < with_it[0] <= without[0] and with_it[2] < without[2] - 0.15 * (seeds - 6)


@pytest.mark.parametrize("seeds", [8, 10, 20])
@pytest.mark.parametrize("effect", [-3.0, -3.3, -4.0])
def test_futility_costs_less_than_a_point_of_power(seeds, effect):
    draws = (np.random.default_rng(0) for _ in range(2))
    with_it, without = (decided_share(seeds, effect, 100_000, next(draws), futility=may) for may in (True, False))
    assert without[0] - 0.01 < with_it[0] <= without[0] and with_it[2] < without[2]


def verdicts(world: World, studies: int, **options: bool) -> tuple[Counter[str], float]:
    generator = np.random.default_rng(0)
    found = [verdict_at_looks(world, generator, **options) for _ in range(studies)]
    return Counter(verdict.word for verdict, _ in found), float(np.mean([seeds for _, seeds in found]))


@pytest.mark.parametrize("world", [World(), World(heavy=True), World(missing=0.1), World(shared=0.0)],
                         ids=["normal", "heavy tails", "10 % missing", "independent sizes"])  # fmt: skip
def test_the_whole_rule_says_anything_else_at_most_at_the_nominal_rate(world):
    """2,000 studies: more than 5 % + 3 standard deviations has a probability below 1 in 700."""
    words, _ = verdicts(world, 2000)
    assert 2000 - words[NOTHING] <= 2000 * 0.05 + 3 * (2000 * 0.05 * 0.95) ** 0.5, words
    assert sum(words[word] for word in GAINS) <= 0.02 * 2000


def test_the_whole_rule_with_futility_says_as_little_in_fewer_seeds():
    """Where there is nothing; and where the arm beats the baseline but not its placebo, which no more seeds change."""
    for world in (World(), World(arm=-6, placebo=-6)):
        (words, used), (plain, before) = verdicts(world, 1000, futility=True), verdicts(world, 1000)
        assert words[NOTHING] >= plain[NOTHING] and used < before - 1.0, (words, used, before)


def test_the_whole_rule_with_futility_finds_an_effect():
    (words, _), (plain, _) = verdicts(World(arm=-4), 1000, futility=True), verdicts(World(arm=-4), 1000)
    assert sum(words[word] for word in GAINS) >= sum(plain[word] for word in GAINS) - 0.02 * 1000, (words, plain)


def test_an_effect_of_four_standard_errors_is_found_and_earlier():
    words, used = verdicts(World(arm=-4), 1000)
    assert sum(words[word] for word in GAINS) >= 0.78 * 1000 and used < 9.5, (words, used)
