"""Simulated studies have the shape of real runs: no key that a run does not write, every key that is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.inference.matched_loss import INSTRUMENTS
from analysis.simulation.study import BASELINE, write_study
from zslx.config.run_config import Config
from zslx.runs.records import Run, read_run
from zslx.training.train import train

EVERYTHING = {
    "train.steps": 16,
    "instruments.probes": True,
    "instruments.heldout_points": 50,
    "instruments.gradient_sequences": 4,
    "instruments.token_samples": 8,
}


def paths(value: Any, prefix: str = "") -> set[str]:
    """The dotted keys of every number in a record; a domain's name is the corpus's own and so left out."""
    if not isinstance(value, Mapping):
        return {prefix}
    if prefix == "heldout_by_domain":
        return {prefix}
    return {path for key, inner in value.items() for path in paths(inner, f"{prefix}.{key}" if prefix else key)}


def keys(lines: list[dict[str, Any]]) -> set[str]:
    return {path for line in lines for path in paths(line)}


@pytest.fixture
def runs(tiny: Callable[..., Config], tmp_path: Path) -> tuple[Run, Run]:
    """(simulated, real)"""
    write_study(tmp_path / "simulated", np.random.default_rng(0), arms=(BASELINE,), sizes=("0.1M",), seeds=1, steps=64)
    [folder] = (tmp_path / "simulated" / "trials").iterdir()
    train(tiny(**EVERYTHING), tmp_path / "real")
    return read_run(folder), read_run(tmp_path / "real")


def test_simulated_records_hold_only_what_runs_write(runs: tuple[Run, Run]) -> None:
    simulated, real = runs
    assert keys(simulated.probes) <= keys(real.probes)
    assert simulated.steps.keys() <= real.steps.keys()
    assert keys(simulated.timing) <= keys(real.timing)
    assert simulated.manifest.keys() <= real.manifest.keys()
    assert simulated.manifest["totals"].keys() <= real.manifest["totals"].keys()


def test_what_is_compared_at_matched_loss_stands_in_both(runs: tuple[Run, Run]) -> None:
    for run in runs:
        assert INSTRUMENTS.keys() <= keys(run.probes)
