"""The end of the early phase is found where one is planted, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest

from zslx.deceleration.early_cut import default_cut
from zslx.deceleration.early_phase import early_phase_end
from zslx.deceleration.fit import fit
from zslx.deceleration.fit_options import FitOptions
from zslx.deceleration.planted_curves import EARLY, Planted, PlantedEarly


def drawn(planted, seed=0):
    return planted.draw(np.random.default_rng(seed))


def end(curve):
    return early_phase_end(curve, default_cut(curve))


@pytest.mark.parametrize("name", EARLY)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_early_phase_is_found(name, seed):
    """From the steps of its end to where 95 % of its change of slope have happened, give or take the noise."""
    planted = EARLY[name]
    assert 0.9 * planted.t_end < end(drawn(planted, seed)) < 1.5 * planted.t_end * np.exp(3 * planted.f_end)


@pytest.mark.parametrize("last", [1000, 2000, 8000])
def test_its_end_does_not_depend_on_the_length_of_the_run(last):
    curve = drawn(EARLY["early phase, mean of six runs"])
    assert 140 < end(curve.until(last)) < 260


def test_it_is_found_on_a_held_out_curve_of_a_hundred_points():
    curve = drawn(replace(EARLY["early phase, one run"], sigma=0.005))
    probed = np.isin(curve.steps, np.unique(np.geomspace(1, curve.steps[-1], 100).astype(int)))
    assert 140 < end(curve.where(probed)) < 300


@pytest.mark.parametrize("name", ["early phase, mean of six runs", "early phase that ends slowly"])
def test_a_fit_that_leaves_it_out_finds_the_break_and_one_that_does_not_cannot(name):
    planted = EARLY[name]
    curve = drawn(planted)
    blind, found = (fit(curve, FitOptions(bootstrap=0, transient=cut)) for cut in (planted.warmup, None))
    assert blind.status == "not_identifiable" and blind.early_phase is None
    assert found.status == "break" and found.transient == found.early_phase == end(curve)
    assert abs(np.log(found.t_d / planted.t_d)) < 0.15 and abs(found.r_d - planted.r_d) < 0.02
    assert found.rsle < 0.4 * blind.rsle


@pytest.mark.parametrize(
    "planted",
    [
        Planted(),
        Planted(sigma=0.02, rho=0.7),
        Planted(c0=0.1, r_d=0.1, sigma=0.02),
        Planted(last=40, t_d=10),
        Planted(last=3),
    ],
)
def test_without_one_nothing_changes(planted):
    curve = drawn(planted)
    assert end(curve) is None
    found = fit(curve, FitOptions(bootstrap=0))
    assert found.early_phase is None and found.transient == default_cut(curve)


def test_an_acceleration_late_in_the_run_is_no_early_phase():
    """As a falling learning rate makes one: the slope is steeper in the last half of the steps."""
    curve = drawn(Planted(sigma=0.005))
    late = np.log(curve.steps / (curve.steps[-1] / 2)).clip(0)
    assert end(replace(curve, losses=curve.losses * np.exp(-0.1 * late))) is None


def test_the_cut_stays_where_the_early_phase_runs_into_the_deceleration():
    """Its end is recorded; without what comes before, nothing of the deceleration would be seen."""
    curve = drawn(PlantedEarly(last=20_000, t_d=120.0, f=0.3, c0=0.25, r_d=0.02, b=20.0, sigma=0.002, rho=0.0))
    found = fit(curve, FitOptions(bootstrap=0))
    assert found.early_phase and found.early_phase > 140 and found.transient == default_cut(curve)
