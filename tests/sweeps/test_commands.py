"""What `zslx sweep` prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps import carry_out
from sweeps.estimate import Estimate
from sweeps.ledger import Ledger
from sweeps.outcome import Failure, Outcome
from sweeps.study import build

HOSTILE = "\x1b[2J"


@pytest.fixture
def sweep(tiny, tmp_path):
    """A planned sweep of six trials, two of them done, in a folder whose name holds an escape sequence."""
    study = build(("ema",), "smoke", sizes=["0.1M"], seeds=(0, 1, 2), overrides=tiny.split())
    results = Path(f"results{HOSTILE}")
    rates = {(trial.arm, trial.size): 1.0 for trial in study.trials}
    return carry_out.Sweep(
        study=study,
        ledger=Ledger(results),
        done=list(study.trials[:2]),
        pending=list(study.trials[2:]),
        estimate=Estimate(rates, f"earlier trials in {results}"),
        slots=2,
        wandb="off",
    )


def test_trials_are_counted_by_who_trained_them(sweep):
    keys = [trial.key for trial in sweep.pending]
    all_ours = Outcome(trained=set(keys))
    assert carry_out.counts(sweep, all_ours) == "4 trained, 2 finished before"
    shared = Outcome(trained={keys[0]}, failures={keys[1]: Failure("why")})
    assert carry_out.counts(sweep, shared) == "1 trained, 2 finished before, 2 finished meanwhile by another sweep"


def test_names_cannot_reach_the_terminal_as_escape_sequences(sweep, capsys):
    carry_out.announce(sweep)
    for line in carry_out.dry_run(sweep):
        carry_out.say(line)
    failure = Failure(f"an error {HOSTILE}", "traceback")
    sweep.ledger.record(sweep.study, {sweep.pending[0].key: failure})
    carry_out.report_failures(sweep, {sweep.pending[0].key: failure})
    assert carry_out.interrupted(sweep) == 130
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and shown.count("\\x1b[2J") >= 4
