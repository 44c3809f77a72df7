"""The step records of a trial, read once and kept as a summary: what was clipped and skipped, what methods report.

steps.jsonl is by far the largest part of a run. pyarrow parses it to columns (about twenty times as fast as line
by line; `zslx.runs.records.columns` is the oracle in tests/unit/test_compare_steps.py). What is kept is a few numbers,
each metric's mean over `BINS` bins of equal width in log t, and the training loss at up to `MOST_LOSSES` places, so
that studies of thousands of trials fit in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

BINS = 48
MOST_LOSSES = 10_000


@dataclass(frozen=True, kw_only=True)
class StepSummary:
    """Shares of clipped and skipped steps, the median gradient norm (nan where not recorded), metrics as (BINS,).

    `t` and `losses` (N,) are the training loss of each step up to T, in nats per token; of a long run, geometric means
    over equally many steps each.
    """

    clipped: float
    skipped: float
    grad_norm: float
    metrics: dict[str, np.ndarray]
    t: np.ndarray
    losses: np.ndarray


def edges(horizon: float) -> np.ndarray:
    """(BINS + 1,) edges in t from 1 to T."""
    return np.geomspace(1, horizon * (1 + 1e-9), BINS + 1)


def summarise(path: Path, unit: float, horizon: float) -> StepSummary:
    """Read steps.jsonl; `unit` tokens make one t. Metrics are the columns `<intervention>/<key>`, `scale` and `depth`.

    ValueError names the file where it is damaged.
    """
    columns = read_columns(path)
    steps = max(len(columns.get("step", ())), 1)

    def total(key: str) -> float:
        return float(np.nansum(columns[key])) / steps if key in columns else 0.0

    def median(key: str) -> float:
        return float(np.nanmedian(columns[key])) if np.isfinite(columns.get(key, np.nan)).any() else np.nan

    t = columns.get("tokens", np.empty(0)) / unit
    places, losses = thinned(t, columns.get("loss", np.full(len(t), np.nan)), horizon)
    if (np.diff(places) <= 0).any():
        raise ValueError(f"{path}: tokens must increase with the steps")
    return StepSummary(
        clipped=total("clipped"),
        skipped=total("skipped"),
        grad_norm=median("grad_norm"),
        metrics={k: binned(t, v, horizon) for k, v in columns.items() if "/" in k or k in ("scale", "depth")},
        t=places,
        losses=losses,
    )


def thinned(t: np.ndarray, losses: np.ndarray, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """The losses up to T at `MOST_LOSSES` places or fewer: geometric means over runs of k steps each."""
    good = (losses > 0) & np.isfinite(losses) & (t <= horizon * (1 + 1e-9))
    t, losses = t[good], losses[good]
    k = -(-len(t) // MOST_LOSSES)
    if k > 1:
        whole = len(t) // k * k
        t = np.exp(np.log(t[:whole]).reshape(-1, k).mean(axis=1))
        losses = np.exp(np.log(losses[:whole]).reshape(-1, k).mean(axis=1))
    return t, losses.astype(np.float32)


def binned(t: np.ndarray, values: np.ndarray, horizon: float) -> np.ndarray:
    """Means (BINS,) over bins in log t, nan where a bin is empty."""
    known = np.isfinite(values) & (t <= edges(horizon)[-1])
    place = np.clip(np.searchsorted(edges(horizon), t[known], side="right") - 1, 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    sums = np.bincount(place, weights=values[known], minlength=BINS)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Each column of numbers or booleans of a JSON lines file, float64, nan where null or absent.

    A torn last line is left out; anything else that is no JSON is a ValueError that names the file.
    """
    import pyarrow
    import pyarrow.json

    data = path.read_bytes()
    whole = memoryview(data)[: data.rfind(b"\n") + 1]
    if not len(whole):
        return {}
    try:
        # One block, so that a column which is whole at first and fractional later has one type.
        table = pyarrow.json.read_json(
            pyarrow.BufferReader(whole),
            read_options=pyarrow.json.ReadOptions(block_size=max(len(whole), 1), use_threads=False),
        )
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: {error}") from None
    found = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if pyarrow.types.is_boolean(kind):
            column = column.cast(pyarrow.int8())
        elif not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)):
            continue
        found[name] = column.cast(pyarrow.float64()).to_numpy()
    return found
