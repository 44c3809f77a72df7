"""The records of a probed run in the order of their steps, and the trends of several runs over their sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zslx.config.run_config import Config
from zslx.config.sizes import LAPTOP_SIZES, PAPER_SIZES
from zslx.deceleration.scaling_law import ScalingTrend, decomposition_trends


@dataclass(frozen=True, kw_only=True)
class Series:
    """One run's records in the order of their steps."""

    label: str
    parameters: int  # without embedding and unembedding
    records: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, label: str, parameters: int, records: Sequence[Mapping[str, Any]]) -> Series:
        in_order = sorted(records, key=lambda r: r["step"])
        return cls(label=label, parameters=parameters, records=in_order)

    def curve(self, *path: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) where the records have a number at `path`."""
        found = [(r["step"], value) for r in self.records if (value := at(r, path)) is not None]
        return np.array([s for s, _ in found], dtype=float), np.array([v for _, v in found], dtype=float)

    def both(self, x: tuple[str, ...], y: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(steps, x, y) where the records have a number at both paths."""
        found = [(r["step"], a, b) for r in self.records if None not in (a := at(r, x), b := at(r, y))]
        steps, xs, ys = np.array(found, dtype=float).reshape(-1, 3).T
        return steps, xs, ys


def at(record: Any, path: Iterable[str]) -> float | None:
    """The number at a path of keys, or None."""
    for key in path:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record if isinstance(record, (int, float)) and not isinstance(record, bool) else None


def run_label(folder: Path, config: Config) -> str:
    """Size, intervention and seed; the folder's name where the size has none."""
    m = config.model
    shape = (m.d_model, m.n_layers, m.n_heads)
    named = {} if m.hf else LAPTOP_SIZES | PAPER_SIZES
    size = next((n for n, s in named.items() if s == shape), folder.name)
    arm = "" if config.intervention == "none" else f" {config.intervention}"
    return f"{size}{arm}, seed {config.train.seed}"


def final_trends(series: Sequence[Series]) -> dict[str, ScalingTrend | ValueError] | None:
    """The trend of each term over sizes, each model at its last checkpoint; None below three sizes."""
    return _trends([one.parameters for one in series], [one.records[-1] for one in series])


def trends_over_steps(series: Sequence[Series]) -> dict[int, dict[str, ScalingTrend | ValueError]]:
    """The same at each step above 0 that all models have."""
    records = [{r["step"]: r for r in one.records} for one in series]
    common = sorted(set.intersection(*map(set, records)) - {0})
    found = {step: _trends([one.parameters for one in series], [r[step] for r in records]) for step in common}
    return {step: trends for step, trends in found.items() if trends}


def scaling_record(series: Sequence[Series]) -> dict[str, Any]:
    """What the figure `scaling` draws, as JSON: the models and their trends, at each step too; {} without a trend."""
    try:
        found = final_trends(series)
    except ValueError:
        return {}
    if found is None:
        return {}

    def written(trends: Mapping[str, ScalingTrend | ValueError]) -> dict[str, Any]:
        return {k: t._asdict() if isinstance(t, ScalingTrend) else {"refused": str(t)} for k, t in trends.items()}

    models = [{"name": one.label, "parameters": one.parameters, "step": one.records[-1]["step"]} for one in series]
    over_steps = {str(step): written(trends) for step, trends in trends_over_steps(series).items()}
    return {"models": models, "trends": written(found), "steps": over_steps}


def _trends(sizes: list[int], records: list[Mapping[str, Any]]) -> dict[str, ScalingTrend | ValueError] | None:
    if len(set(sizes)) < 3:
        return None
    return decomposition_trends(sizes, [record["decomposition"] for record in records])
