"""Sweeps whose trials train in packs: the same study, whatever happens to one of its trials."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from sweeps.packing import OFF, checked, packs
from sweeps.study import build
from zslx.runs.records import read_run

OPTIONS = ("--seeds", "3", "--steps", "40", "--pack", "6")
LONG = ("--seeds", "3", "--steps", "900", "--pack", "3")
FOCAL = """
import os
from interventions.token_weighting.focal import Focal


class Fragile(Focal):
    name = "fragile"

    def token_weights(self, run, view, state):
        if run.config.train.seed == 1 and run.step == 7:
            {fault}
        return super().token_weights(run, view, state)
"""


def by_label(sweep) -> dict:
    """The runs of the one study there is, by arm and seed."""
    runs = {(t["arm"], t["seed"]): read_run(sweep.results / "trials" / t["identity"]) for t in sweep.study()["trials"]}
    assert all(len(run.steps["step"]) and run.probes for run in runs.values())  # read now: the folder may move
    return runs


@pytest.mark.medium
def test_a_sweep_in_packs_is_the_sweep_of_single_trials(sweep, tmp_path):
    done = sweep("ema", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "6 trials to train in 1 packs, 1 at a time" in done.stdout
    assert "6 trained, 0 finished before" in done.stdout
    assert "PACK=6" in sweep.study()["command"]
    packed, before = by_label(sweep), sweep.records()
    again = sweep("ema", *OPTIONS)
    assert "0 trained, 6 finished before" in again.stdout and sweep.records() == before
    sweep.results.rename(tmp_path / "packed")
    assert sweep("ema", *OPTIONS[:-2]).returncode == 0
    for label, alone in by_label(sweep).items():
        own = packed[label]
        assert own.manifest["identity"] != alone.manifest["identity"]
        np.testing.assert_allclose(own.steps["loss"], alone.steps["loss"], rtol=1e-3)
        assert len(own.probes) == len(alone.probes)


@pytest.mark.slow
def test_a_pack_of_which_another_sweep_trained_some(sweep):
    assert sweep("none", *OPTIONS[:-1], "1").returncode == 0, "packs of one are the same trials"
    before = sweep.records()
    done = sweep("ema", *OPTIONS)
    assert done.returncode == 0 and "3 trained, 3 finished before" in done.stdout
    assert before.items() <= sweep.records().items()


@pytest.mark.medium
@pytest.mark.parametrize(
    "fault", ["raise RuntimeError('no more')", pytest.param("os._exit(1)", marks=pytest.mark.slow)]
)
def test_a_trial_that_fails_costs_only_itself(sweep, plugins, fault):
    (plugins / "fragile.py").write_text(FOCAL.format(fault=fault))
    done = sweep("fragile", *OPTIONS)
    assert done.returncode == 1, done.stdout + done.stderr
    statuses = {(t["arm"], t["seed"]): t["status"] for t in sweep.study()["trials"]}
    assert statuses.pop(("fragile", 1)) == "failed"
    assert set(statuses.values()) == {"finished"}
    assert ("no more" if "raise" in fault else "its process died") in done.stdout


@pytest.mark.slow
def test_a_killed_pack_goes_on(sweep, processes, tmp_path):
    assert sweep("none", *LONG).returncode == 0
    whole = sweep.records()
    sweep.results.rename(tmp_path / "whole")
    running = sweep.start("none", *LONG, extra="run.resume_seconds=0.3")
    processes.wait_for(lambda: sweep.checkpoints(), running)
    os.kill(processes.workers(running.pid)[0], signal.SIGKILL)
    out, err = running.communicate(timeout=240)
    assert running.returncode == 0, out + err
    assert "3 trained" in out and "failed" not in out
    steps = {name: data for name, data in sweep.records().items() if not name.endswith("config.json")}
    assert steps == {name: whole[name] for name in steps}


@pytest.mark.slow
def test_trials_of_one_shape_and_length_share_a_pack(tiny):
    study = build(("length_warmup",), "smoke", sizes=["0.1M"], seeds=range(5), overrides=tiny.split(), pack="4")
    assert [len(pack) for pack in packs(study.trials, "4")] == [4, 4, 2]
    assert all(trial.packed for trial in study.trials)
    alone = build(("length_warmup",), "smoke", sizes=["0.1M"], seeds=range(5), overrides=tiny.split(), pack=OFF)
    assert [len(pack) for pack in packs(alone.trials, OFF)] == [1] * 10
    assert not {t.identity for t in study.trials} & {t.identity for t in alone.trials}
    sizes = build(("none",), "smoke", sizes=["0.1M", "0.2M"], seeds=range(2), pack="4")
    assert [len(pack) for pack in packs(sizes.trials, "4")] == [2, 2]


@pytest.mark.parametrize("pack", ["0", "-1", "some", "1.5", ""])
def test_what_a_pack_may_be(pack):
    with pytest.raises(ValueError, match=r"PACK=.*auto, off, or how many"):
        checked(pack)
