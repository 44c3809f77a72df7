"""What a tuning cost, and the words for a range and for a cut of a search, in the terminal as in the report.

A tuning itself is carried out by sweeps/tune_rate.py or sweeps/search.py; study.json of the comparison says `tuning`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from analysis.study.load import Trial

COMPLEMENT = "1 - "  # before the name of a setting near 1: what Optuna varies is its distance to 1


def train_seconds(trials: Iterable[Trial]) -> float:
    """Seconds of training of these trials and of the reference runs that they needed, given ones included.

    Each run counts once: a trial may belong to several arms, or be the reference of others. A reference run is known by
    the name of its folder, which is its identity where a sweep trained it.
    """
    seconds: dict[str, float] = {}
    references: dict[str, float] = {}
    for trial in trials:
        totals = trial.manifest.get("totals") or {}
        seconds[trial.identity] = float(totals.get("train_seconds") or 0)
        if folder := trial.config.get("reference"):
            references[Path(folder).name] = float(totals.get("reference_seconds") or 0)
    return sum((references | seconds).values())


def tuned_arms(tuning: Mapping[str, Any] | None) -> set[str]:
    """The names of the arms whose rates were tuned, each for itself, from `tuning` of study.json."""
    if not tuning:
        return set()
    return {search["arm"] for search in tuning["arms"]} if "arms" in tuning else set(tuning.get("log_loss") or ())


def cut_at(rungs: Mapping[str, float]) -> str:
    """Where a point was cut, the last of the rungs to which it came, and its value there: `at step 256: +0.0100`."""
    step = max(rungs, key=int)
    return f"at step {step}: {rungs[step]:+.4f}"


def setting_of(name: str) -> str:
    """The setting that Optuna varies under this name."""
    return name.removeprefix(COMPLEMENT)


def searched(ranges: Mapping[str, object]) -> str:
    """What is searched: `rate 0.25 .. 4, log scale; focal.gamma 0 .. 5`. A range is always that of the setting."""
    return "; ".join(f"{setting_of(name)} {values}" for name, values in ranges.items())
