"""Sweeps whose trials train in packs: the same study, whatever happens to it. A full disk is in test_faults.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from sweeps.ledger import Ledger
from sweeps.packing import OFF, checked, packs
from sweeps.study import build
from sweeps.trial import Job, run
from zslx.config.run_config import Config
from zslx.runs.records import read_run
from zslx.training.pack import train_pack

OPTIONS = ("--seeds", "3", "--steps", "40", "--pack", "6")
LONG = ("--seeds", "3", "--steps", "900", "--pack", "3")
FOCAL = """
import os
from interventions.token_weighting.focal import Focal


class Fragile(Focal):
    name = "fragile"
    keep_scale = True

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


DIVERGE = "return view.losses.new_full(view.losses.shape, 1e30)"


@pytest.mark.medium
@pytest.mark.parametrize(
    ("fault", "status", "told"),
    [
        ("raise RuntimeError('no more')", "failed", "no more"),
        pytest.param("os._exit(1)", "failed", "its process died", marks=pytest.mark.slow),
        pytest.param(DIVERGE, "diverged", "6 trained", marks=pytest.mark.slow),
    ],
)
def test_a_trial_that_fails_or_diverges_costs_only_itself(sweep, plugins, fault, status, told):
    (plugins / "fragile.py").write_text(FOCAL.format(fault=fault))
    done = sweep("fragile", *OPTIONS)
    assert done.returncode == (1 if status == "failed" else 0), done.stdout + done.stderr
    statuses = {(t["arm"], t["seed"]): t["status"] for t in sweep.study()["trials"]}
    assert statuses.pop(("fragile", 1)) == status
    assert set(statuses.values()) == {"finished"}
    assert told in done.stdout


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
def test_a_pack_goes_on_after_sigterm_and_after_a_killed_command(sweep, processes, tmp_path):
    """The command finishes it, and the records are those of packs that nothing interrupted."""
    options = ("--seeds", "4", "--steps", "900", "--pack", "2", "--wandb", "off")
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        running = sweep.start("none", *options, extra="run.resume_seconds=0.3")
        processes.wait_for(lambda: sweep.checkpoints() and sweep.steps_done() > 100, running)
        below = processes.below(running.pid)
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
        assert running.returncode == code and "Traceback" not in out + err, out + err
        assert number == signal.SIGKILL or "PACK=2" in out, "it says how to go on"
        training = [pid for pid, command in below.items() if "Train" in command]
        processes.wait_for(lambda pids=training: not [pid for pid in pids if processes.alive(pid)], seconds=60)
        assert sweep.steps_done() < 4 * 900, "it was stopped after the end: the test shows nothing"
    done = sweep("none", *options, extra="run.resume_seconds=0.3")
    assert done.returncode == 0, done.stdout + done.stderr
    kept = [read_run(sweep.results / "trials" / entry["identity"]) for entry in sweep.study()["trials"]]
    folders = [tmp_path / "whole" / one.folder.name for one in kept]
    for first in (0, 2):
        configs = [Config.from_dict(one.config) for one in kept[first : first + 2]]
        train_pack(configs, folders[first : first + 2])
    assert {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files(folders)} == sweep.records()


def files(folders: list[Path]) -> list[Path]:
    """What must not depend on faults."""
    return [folder / name for folder in folders for name in ("config.json", "steps.jsonl", "probes.jsonl")]


@pytest.mark.medium
def test_of_a_pack_only_the_trial_with_damaged_records_is_trained_again(tiny, tmp_path):
    """Cut short, changed or lost: it is set aside, and what is trained again is what it was."""
    study = build(
        ("none",), "smoke", sizes=["0.1M"], seeds=range(3), overrides=[*tiny.split(), "train.steps=12"], pack="3"
    )
    ledger = Ledger(tmp_path)
    jobs = [
        Job(
            config=trial.config.to_dict(),
            folder=str(ledger.folder(trial.key)),
            identity=trial.identity,
            packed=True,
            working_directory=str(tmp_path),
            labels={"results": str(tmp_path), "study": "s", "arm": "a", "size": "0.1M", "seed": trial.seed},
            wandb="off",
        )
        for trial in study.trials
    ]
    assert [outcome["trained"] for outcome in run(jobs)] == [True] * 3
    every = files([ledger.folder(trial.key) for trial in study.trials])
    before = [path.read_bytes() for path in every]
    _, cut, lost = (ledger.folder(trial.key) for trial in study.trials)
    (cut / "steps.jsonl").write_bytes((cut / "steps.jsonl").read_bytes()[:200])
    (lost / "probes.jsonl").unlink()
    assert [outcome["trained"] for outcome in run(jobs)] == [False, True, True]
    assert [path.read_bytes() for path in every] == before
    assert len(list((tmp_path / "trials" / ".damaged").iterdir())) == 2


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
