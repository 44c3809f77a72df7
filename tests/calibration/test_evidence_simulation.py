"""Error rates of the rule on simulated studies: what it says when nothing, something, or only a placebo is true."""

from collections import Counter

import numpy as np
import pytest

from analysis.inference.compare import compare
from analysis.inference.contrasts import pooled
from analysis.inference.evidence import judge
from analysis.simulation.error_rates import World, verdicts
from analysis.simulation.study import BASELINE, RATES, SimulatedArm, write_study

STUDIES = 500
NOTHING = "no effect found"
GAINS = ("improves", "mitigates deceleration")

pytestmark = pytest.mark.slow


def gains(found: Counter) -> int:
    return sum(found[word] for word in GAINS)


@pytest.mark.parametrize("world", [
    World(), World(heavy=True), World(missing=0.1), World(shared=0.0), World(own=0.0005, shared=0.004),
    World(with_placebo=False), World(with_placebo=False, has_placebo=False),
], ids=["normal", "heavy tails", "10 % missing", "independent sizes", "sizes move together", "no placebo run",
        "no placebo exists"])  # fmt: skip
def test_without_an_effect_at_most_37_of_500_say_anything_else(world):
    """A two-sided 5 % test says something 25 times; more than 37 has a probability below 1 %."""
    found = verdicts(world, STUDIES)
    assert STUDIES - found[NOTHING] <= 37, found


def test_the_rate_of_false_gains_is_far_below_that_since_the_placebo_must_be_beaten_too():
    assert gains(verdicts(World(), 5000)) <= 0.02 * 5000


@pytest.mark.parametrize("missing", [0.0, 0.05])
def test_an_effect_of_four_standard_errors_is_found_in_80_percent(missing):
    found = verdicts(World(arm=-4, missing=missing), STUDIES)
    assert gains(found) >= 0.8 * STUDIES, found


def test_a_placebo_that_does_just_what_the_arm_does_never_ends_in_improves():
    """The same losses to the last bit: a method whose weights do not matter."""
    generator = np.random.default_rng(0)
    for _ in range(STUDIES):
        base = generator.normal(0, 0.005, (3, 10))
        arm = base - 0.02 + generator.normal(0, 0.003, (3, 10))
        assert judge(pooled(arm - base), pooled(arm - arm.copy()), {}, {}).word == NOTHING


@pytest.mark.parametrize("effect", [-4.0, -8.0])
def test_a_placebo_that_works_as_well_with_noise_of_its_own_ends_in_improves_at_most_at_the_nominal_rate(effect):
    """Two arms of equal effect differ below 0 in one of 40 studies by the definition of a 95 % interval."""
    found = verdicts(World(arm=effect, placebo=effect), 4000)
    assert gains(found) <= 4000 * 0.025 + 3 * (4000 * 0.025 * 0.975) ** 0.5, found


@pytest.mark.parametrize("has_placebo", [True, False])
def test_another_rate_that_works_as_well_ends_in_improves_at_most_at_the_nominal_rate(has_placebo):
    world = World(arm=-4, rate=-4, with_placebo=has_placebo, has_placebo=has_placebo)
    assert gains(verdicts(world, 4000)) <= 4000 * 0.025 + 3 * (4000 * 0.025 * 0.975) ** 0.5


def test_without_a_placebo_an_effect_is_found_against_the_rates():
    assert gains(verdicts(World(arm=-4, with_placebo=False, has_placebo=False), STUDIES)) >= 0.8 * STUDIES


def test_a_placebo_that_works_better_never_ends_in_improves():
    assert gains(verdicts(World(arm=-4, placebo=-8), STUDIES)) == 0


def test_a_better_slope_without_an_effect_on_it_is_seldom_claimed():
    """Given a true gain in loss alone, the slope is claimed at no more than its one-sided rate."""
    found = verdicts(World(arm=-8), 2000)
    # The slope's noise goes with the loss's, and the arm is picked for a low loss: allow twice the nominal 2.5 %.
    assert found["mitigates deceleration"] <= 0.05 * 2000, found


def test_whole_studies_from_record_files_say_nothing_without_an_effect(tmp_path):
    """The pipeline with its fits, not the arrays. At true rates of .03 and .005, more than 3 that speak and more
    than one gain among 20 studies have probabilities below 1 %."""
    arms = (BASELINE, SimulatedArm(name="arm", intervention="arm"),
            SimulatedArm(name="p", intervention="placebo:arm", role="placebo", of="arm"), *RATES)  # fmt: skip
    words: Counter[str] = Counter()
    for i in range(20):
        folder = write_study(
            tmp_path / str(i),
            np.random.default_rng(i),
            arms=arms,
            sizes=("0.1M",),
            seeds=6,
            steps=200,
            step_lines=False,
        )
        words[compare(folder)["answers"][0]["word"]] += 1
    assert gains(words) <= 1 and 20 - words[NOTHING] <= 3, words
