"""L_d, t_d and r_d of a study's arms: always a number, paired, and adding up to the difference of the last loss."""

import dataclasses
import math

import numpy as np
import pytest

from analysis.inference.compare import compare_study
from analysis.inference.contrasts import contrast
from analysis.inference.pooled_breaks import BREAK_MEASURES, PooledBreaks, as_contrast, load
from analysis.report.headline import headline
from analysis.simulation.study import BASELINE, SimulatedArm, write_study
from analysis.study.measures import Measures
from zslx.deceleration.pooled_fit import seed_weights

ARM = SimulatedArm(name="pcgrad", intervention="pcgrad", effect=-0.03)


@pytest.fixture(scope="module")
def breaks(tmp_path_factory):
    results = write_study(
        tmp_path_factory.mktemp("results"), np.random.default_rng(0), arms=(BASELINE, ARM),
        sizes=("0.1M", "0.2M", "0.4M"), seeds=4, steps=1500,
    )  # fmt: skip
    return load(results)


def test_every_cell_has_numbers_on_both_curves(breaks):
    comparison = compare_study(breaks)
    assert len(comparison["cells"]) == 6
    for cell in comparison["cells"]:
        for kind in ("heldout", "training"):
            for name in (*BREAK_MEASURES, "L_T_hat"):
                found = cell["fits"][kind][name]
                assert found["low"] <= found["mean"] <= found["high"] and found["n"] == 4
                assert found["identified"] == (cell["fits"][kind]["break"]["status"] == "break")
    assert "–" not in [text for row in headline(comparison).rows for text in row[5:8]]


def test_the_parts_add_up_to_the_difference_of_the_last_loss(breaks):
    for size in breaks.study.sizes:
        for kind in ("heldout", "training"):
            found = breaks.difference("pcgrad", size, kind)
            total = sum(part["estimate"] for part in found["parts"].values())
            assert total == pytest.approx(found["L_T_hat"]["estimate"], abs=1e-9)
    assert breaks.difference("pcgrad", "0.1M")["L_T_hat"]["estimate"] == pytest.approx(-0.03, abs=0.01)


def test_scale_has_the_same_parts_between_neighbouring_sizes(breaks):
    found = breaks.scale_parts()
    assert [(f["from"], f["to"]) for f in found] == [("0.1M", "0.2M"), ("0.2M", "0.4M")]
    for entry in found:
        total = sum(part["estimate"] for part in entry["parts"].values())
        assert total == pytest.approx(entry["L_T_hat"]["estimate"], abs=1e-9) and entry["L_d"]["estimate"] < 0


def test_a_missing_seed_leaves_the_pairs_that_are_there(breaks):
    lost = tuple(
        dataclasses.replace(t, status="failed") if (t.arm, t.size, t.seed) == ("pcgrad", "0.1M", 2) else t
        for t in breaks.study.trials
    )
    fewer = PooledBreaks(Measures(dataclasses.replace(breaks.study, trials=lost)))
    arm, base = fewer.both("pcgrad", "0.1M")
    assert arm.seeds == base.seeds == 3 and fewer.fit("baseline", "0.1M").seeds == 4
    assert fewer.averaged("pcgrad", fewer.study.sizes)["r_d"] is None  # other seeds at other sizes are not paired


def test_as_many_seeds_but_others_at_other_sizes_are_not_paired(breaks):
    gone = {("pcgrad", "0.1M", 2), ("pcgrad", "0.2M", 3), ("pcgrad", "0.4M", 3)}

    def without(lost):
        trials = tuple(
            dataclasses.replace(t, status="failed") if (t.arm, t.size, t.seed) in lost else t
            for t in breaks.study.trials
        )
        return PooledBreaks(Measures(dataclasses.replace(breaks.study, trials=trials)))

    sizes, parameters = breaks.study.sizes, np.array([1e5, 2e5, 4e5])
    same = without({("pcgrad", size, 3) for size in sizes})
    assert same.averaged("pcgrad", sizes)["r_d"] and "estimate" in same.trends("pcgrad", parameters)["r_d"]
    other = without(gone)
    assert other.both("pcgrad", "0.1M")[0].seeds == other.both("pcgrad", "0.2M")[0].seeds == 3
    assert other.averaged("pcgrad", sizes)["r_d"] is None
    assert other.trends("pcgrad", parameters)["r_d"] == {"refused": "the sizes have other seeds, or a single one"}


def test_a_contrast_of_weighted_means_is_the_t_interval():
    x = np.random.default_rng(0).normal(1, 1, 10)
    found, wanted = as_contrast(float(x.mean()), seed_weights(10) @ x, 10), contrast(x)
    assert found.estimate == pytest.approx(wanted.estimate)
    assert found.se == pytest.approx(wanted.se, rel=0.1) and found.low == pytest.approx(wanted.low, abs=0.1)
    assert as_contrast(1.0, np.empty(0), 1).se is None


def test_an_unknown_curve_in_the_protocol_is_named(breaks):
    study = dataclasses.replace(breaks.study, curve="validation")
    with pytest.raises(ValueError, match=r"protocol\.curve is 'validation'; allowed: heldout, training"):
        PooledBreaks(Measures(study))
    assert breaks.kind == "heldout", "a study from before the protocol was declared"
    assert math.isfinite(breaks.cuts["heldout", "0.1M"][0])
