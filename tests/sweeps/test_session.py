"""A sweep from Python, with an intervention that no file defines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import zslx
from zslx.testing.subject import text

SESSION = """
import dataclasses, sys
import zslx

@dataclasses.dataclass(frozen=True)
class Decaying(zslx.Intervention):
    name = "decaying"
    last: float = zslx.setting(0.5, "share of the rate at the last step", low=0.0, high=1.0)

    def lr_factor(self, run, state):
        return 1 - (1 - self.last) * run.step / run.steps

settings = "data.path={text} data.vocab_size=308 data.seq_len=8 data.batch_size=4 data.heldout_sequences=4"
options = ["--preset", "smoke", "--sizes", "0.1M", "--seeds", "1", "--steps", "20", "--wandb", "off", "--set", settings]
for last in (0.5, 0.25):
    more = [*options[:-1], options[-1] + f" decaying.last={{last}}"]
    study = zslx.sweep(Decaying, options=more, results="results")
    for trial in study.trials.itertuples():
        print("trial", trial.arm, trial.status, trial.identity)
again = zslx.sweep("decaying", options=more, results="results")
first, last = (zslx.load_run(again.trials.folder.iloc[i]).steps["lr"][-1] for i in (0, -1))
print("rate", last / first)
"""


@pytest.mark.slow
def test_a_class_of_a_session_is_swept(cache: Path, tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(Path(zslx.__file__).parents[1])}
    code = SESSION.format(text=text())
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
    trials = [line.split()[1:] for line in run.stdout.splitlines() if line.startswith("trial")]
    assert [t[:2] for t in trials] == [["baseline", "finished"], ["decaying", "finished"]] * 2
    assert trials[0][2] == trials[2][2] and trials[1][2] != trials[3][2]  # the baseline is shared, a setting counts
    assert "rate 0.25" in run.stdout
    assert "0 trained, 2 finished before" in run.stdout  # the same class by its name


def test_what_is_asked_wrongly_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="unknown intervention 'nothing_such'"):
        zslx.sweep("nothing_such", results=tmp_path)
    with pytest.raises(ValueError, match=r"options:.*zslx sweep --help"):
        zslx.sweep("pcgrad", options=["--presett", "smoke"], results=tmp_path)
