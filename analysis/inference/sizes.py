"""The sizes of a study: their horizon and parameters, and what is read over them (the fits are in size_trends.py)."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.inference import size_trends
from analysis.inference.pooled_breaks import PooledBreaks
from analysis.inference.rows import Size
from analysis.study.measures import Measures, parameters


def describe_size(measures: Measures, size: str) -> Size:
    """T, tokens a step and parameter counts of one size."""
    trial = measures.example(size)
    horizon, unit = measures.horizon.get(size), measures.unit.get(size)
    return {
        "size": size,
        "T": horizon,
        "tokens_per_step": unit,
        "parameters": parameters(trial) if trial else None,
    }


def parameter_counts(measures: Measures) -> list[dict[str, int]] | None:
    """The parameters of each size; None where one has no finished trial."""
    counts = [describe_size(measures, size)["parameters"] for size in measures.study.sizes]
    known = [c for c in counts if c is not None]
    return known if len(known) == len(counts) else None


def trends(breaks: PooledBreaks) -> dict[str, Any]:
    """Slopes of each arm's measures in log N (non-embedding and total), and laws of the baseline's loss."""
    measures, study = breaks.measures, breaks.study
    counts = parameter_counts(measures)
    if counts is None:
        return {"refused": "a size without a finished trial has no parameter count"}
    found: dict[str, Any] = {}
    for kind in ("non_embedding", "total"):
        n = np.array([c[kind] for c in counts], dtype=np.float64)
        found[kind] = {
            arm.name: {
                "log_loss": size_trends.trend(study.grid(arm.name, measures.log_loss), n),
                "tail_slope": size_trends.trend(study.grid(arm.name, measures.tail), n),
                **breaks.trends(arm.name, n),
            }
            for arm in study.arms
        }
    n = np.array([c["non_embedding"] for c in counts], dtype=np.float64)
    tokens = np.array([measures.horizon[s] * measures.unit[s] for s in study.sizes])
    found["laws"] = size_trends.laws(study.grid(study.baseline.name, measures.log_loss), n, tokens)
    return found


def gains(measures: Measures, difference: np.ndarray) -> dict[str, Any]:
    """Scale-equivalent gain at each size."""
    study = measures.study
    counts = parameter_counts(measures)
    if counts is None:
        return {size: {"refused": "a size has no finished trial"} for size in study.sizes}
    n = np.array([c["non_embedding"] for c in counts], dtype=np.float64)
    base = study.grid(study.baseline.name, measures.log_loss)
    return {size: size_trends.equivalent_gain(difference, base, n, s) for s, size in enumerate(study.sizes)}
