"""Trend of a loss, or of a term of its decomposition, over model sizes: log|M| = c + α log N.

Least squares in log-log. R² is the squared correlation of log|M| and log N; the slope gap |α_M − α_CE| says how far
a term scales unlike cross-entropy itself. Source: "What Scales in Cross-Entropy Scaling Law?" (arXiv 2510.04067),
Section 4. Exact; checked on planted laws by tests/unit/test_decomposition.py. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TERMS = ("ce", "ee", "sa", "conf")


def scaling_trend(sizes: Sequence[float], values: Sequence[float]) -> dict[str, Any]:
    """`alpha`, `c`, `r2` and the number of sizes n. ValueError below two different sizes.

    sizes: parameters N > 0; values: the measure at each, of one sign and not 0. With two sizes the line passes
    through both and says nothing about R²: null.
    """
    n, m = np.asarray(sizes, dtype=np.float64), np.abs(np.asarray(values, dtype=np.float64))
    if n.shape != m.shape or n.ndim != 1:
        raise ValueError(f"scaling trend: {n.shape} sizes and {m.shape} values; one value a size is needed")
    if not (np.isfinite(n).all() and np.isfinite(m).all() and (n > 0).all() and (m > 0).all()):
        raise ValueError("scaling trend: sizes and magnitudes must be finite and above 0")
    signs = np.sign(np.asarray(values, dtype=np.float64))
    if len(set(signs)) > 1:
        raise ValueError("scaling trend: the values change sign, so log|M| has no trend to speak of")
    if len(set(n.tolist())) < 2:
        raise ValueError(f"scaling trend: {len(set(n.tolist()))} different sizes; at least 2 are needed")
    x, y = np.log(n), np.log(m)
    dx, dy = x - x.mean(), y - y.mean()
    alpha = float(dx @ dy / (dx @ dx))
    spread = float(dy @ dy)
    r2 = float((dx @ dy) ** 2 / ((dx @ dx) * spread)) if len(n) > 2 and spread > 0 else None
    return {"alpha": alpha, "c": float(y.mean() - alpha * x.mean()), "r2": r2, "n": len(n)}


def decomposition_trends(sizes: Sequence[float], records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The trend of each term of the decomposition over sizes, with `slope_gap` = |α_M − α_CE|.

    A term without a trend (its sign changes) has {"refused": reason}.
    """
    if any(records[0][key] != record[key] for record in records for key in ("n", "bins")):
        raise ValueError("scaling trend: decompositions of different token counts or bins cannot be compared")
    found: dict[str, dict[str, Any]] = {}
    for term in TERMS:
        try:
            found[term] = scaling_trend(sizes, [record[term] for record in records])
        except ValueError as error:
            found[term] = {"refused": str(error)}
    reference = found["ce"].get("alpha")
    for trend in found.values():
        if "alpha" in trend and reference is not None:
            trend["slope_gap"] = abs(trend["alpha"] - reference)
    return found
