"""Estimated times and the progress lines."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from sweeps.estimate import START, UNKNOWN_COST, Estimate, earlier, estimate, study_seconds
from sweeps.ledger import Ledger
from sweeps.progress import Progress
from sweeps.study import build


@pytest.fixture
def study(tiny):
    return build(("ema",), "smoke", sizes=["0.1M", "0.2M"], overrides=[*tiny.split()[:3], "train.steps=100"])


def finish(folder, config, seconds: float) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    totals = {"steps": config.train.steps, "seconds": seconds}
    (folder / "manifest.json").write_text(json.dumps({"status": "finished", "totals": totals}))


def test_earlier_timings_are_used_and_the_rest_measured(study, tmp_path):
    baseline = study.trials[0]
    finish(tmp_path / "trials" / "a", baseline.config, 20.0)
    finish(tmp_path / "trials" / "b", baseline.config, 40.0)
    finish(tmp_path / "trials" / "c", baseline.config, 60.0)
    (tmp_path / "trials" / "d").mkdir()
    (tmp_path / "trials" / "d" / "manifest.json").write_text("{torn")
    assert list(earlier(tmp_path).values()) == [0.4]
    measured = []
    made = estimate(study.trials, tmp_path, lambda config: measured.append(config) or 1.0)
    assert made.rates["baseline", "0.1M"] == 0.4
    assert made.rates["ema", "0.1M"] == pytest.approx(0.4 * UNKNOWN_COST)
    assert made.rates["ema", "0.2M"] == pytest.approx(UNKNOWN_COST * made.rates["baseline", "0.2M"])
    assert len(measured) == 1 and "measurement" in made.source
    begun = tmp_path / "trials" / baseline.key / "steps.jsonl"
    begun.parent.mkdir()
    begun.write_text(json.dumps({"step": 40, "loss": 4.5}) + "\n")
    half = baseline.up_to(50)
    assert estimate([half], tmp_path).seconds(half) == pytest.approx(10 * 0.4), "10 steps are left of the first 50"
    begun.unlink()
    known = estimate(study.trials[:1], tmp_path)
    assert str(tmp_path) in known.source and known.seconds(baseline) == 40.0


def test_a_real_measurement_is_a_positive_time(study, tmp_path):
    made = estimate(study.trials, tmp_path)
    assert all(0 < rate < 10 and math.isfinite(rate) for rate in made.rates.values())
    assert made.rates["baseline", "0.2M"] > made.rates["baseline", "0.1M"] / 2


def test_a_study_takes_as_long_as_its_slots_or_its_longest_trial():
    assert study_seconds([[10.0] * 6], 2) == 30 + START
    assert study_seconds([[10.0, 90.0], [20.0]], 4) == 90 + 20 + START
    assert study_seconds([], 2) == 0


def test_time_left_follows_the_trials_own_rates(study, tmp_path, monkeypatch, capsys):
    """The estimate says 1 s a step; the trials turn out to take 3."""
    rates = {(trial.arm, trial.size): 1.0 for trial in study.trials}
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    ledger = Ledger(tmp_path)
    progress = Progress(study.trials, len(study.trials), ledger, Estimate(rates, ""), slots=2)
    assert progress.left() == len(study.trials) * 100 / 2
    first = study.trials[0]
    lines = ledger.folder(first.key) / "steps.jsonl"
    lines.parent.mkdir(parents=True)
    with progress:
        for step in (10, 20):
            now[0] += 30.0
            lines.write_text(json.dumps({"step": step, "loss": 4.5}) + "\n")
            progress.update([first])
    assert progress.left() == pytest.approx((len(study.trials) * 300 - 20 * 3) / 2)
    said = capsys.readouterr().err.splitlines()
    for step, after in ((40, 20.0), (60, 20.0), (80, 20.0)):  # it becomes faster: a second a step
        now[0] += after
        lines.write_text(json.dumps({"step": step, "loss": 4.5}) + "\n")
        progress.update([first])
    assert progress.rates[first.arm, first.size] == 1.0
    assert len(said) == 2 and "baseline/0.1M/0 step 20 of 100, loss 4.500" in said[1]
    finish(tmp_path / "trials" / "x", dataclasses.replace(first.config), 500.0)
    (tmp_path / "trials" / "x" / "manifest.json").rename(lines.parent / "manifest.json")
    progress.finished(first)
    assert progress.headline().startswith(f"1 of {len(study.trials)} trials done, about")
    assert progress.rates[first.arm, first.size] == 5.0
