"""Downstream scores in a study: the frame and the report's table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import zslx
from analysis.inference.pooled_breaks import load
from analysis.report.downstream_blocks import downstream
from analysis.report.figures import Figures
from analysis.simulation.study import BASELINE, SimulatedArm, write_study

STEPS, SEEDS = 120, 4


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A study of two arms; every trial was evaluated on one task, at the last step and half-way."""
    arms = (BASELINE, SimulatedArm(name="pcgrad", intervention="pcgrad"))
    options = {"arms": arms, "sizes": ("0.1M",), "seeds": SEEDS, "steps": STEPS}
    write_study(tmp_path / "results", np.random.default_rng(0), **options)
    for trial in zslx.load_study(tmp_path / "results").study.trials:
        better = 0.1 * (trial.arm == "pcgrad") * (1 + trial.seed)
        lines = [
            {"step": step, "task": "piqa", "key": "a" * 16, "few_shot": None, "limit": 0}
            | {"scores": {"piqa": {"acc": 0.25 + 0.01 * trial.seed + better + shift, "acc_stderr": 0.05}}}
            for step, shift in ((STEPS // 2, -0.1), (STEPS, 0.0))
        ]
        (trial.folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "results"


def test_a_row_a_score(results: Path) -> None:
    frame = zslx.load_study(results).evaluations
    assert len(frame) == 2 * SEEDS * 2 and set(frame["metric"]) == {"acc"} and set(frame["stderr"]) == {0.05}
    chosen = frame[(frame["arm"] == "pcgrad") & (frame["seed"] == 1) & (frame["step"] == STEPS)]
    assert chosen["score"].tolist() == pytest.approx([0.46]) and chosen["few_shot"].isna().all()


def test_the_table_has_paired_differences_at_the_last_step(results: Path) -> None:
    [table] = downstream(Figures(load(results)))
    assert table.columns == ("task", "arm", "0.1M")
    gains = 0.1 * (1 + np.arange(SEEDS))
    half = stats.t.ppf(0.975, SEEDS - 1) * gains.std(ddof=1) / np.sqrt(SEEDS)
    mean = 0.25 + 0.015 + gains.mean()
    assert table.rows == (
        ("piqa: acc", "baseline", "0.265"),
        ("piqa: acc", "pcgrad", f"{mean:.3f} (+{gains.mean():.3f} ± {half:.3f})"),
    )


def test_without_scores_there_is_no_table_and_damage_is_told(results: Path) -> None:
    files = sorted(results.glob("trials/*/evaluations.jsonl"))
    files[0].write_text("{}\n{}\n")
    [text] = downstream(Figures(load(results)))
    assert "evaluations.jsonl:1: step is missing" in text.text
    with pytest.raises(ValueError, match=r"evaluations.jsonl:1: step is missing"):
        _ = zslx.load_study(results).evaluations
    for file in files:
        file.unlink()
    assert downstream(Figures(load(results))) == [] and zslx.load_study(results).evaluations.empty
