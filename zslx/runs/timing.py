"""What a run's seconds come to, from the lines of timing.jsonl. Torch-free: whoever has the lines can check them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any


def time_totals(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds in all, of training and of instruments, and the median of a step: of each line its own median counts as
    often as it has steps."""
    training = sum(line["seconds"] for line in lines)
    instruments = sum(line["instrument_seconds"] for line in lines)
    medians = [(line["step_seconds"], line["steps"]) for line in lines if line["steps"]]
    return {
        "seconds": training + instruments,
        "train_seconds": training,
        "instrument_seconds": instruments,
        "median_step_seconds": weighted_median(medians) if medians else 0.0,
    }


def weighted_median(pairs: Sequence[tuple[float, int]]) -> float:
    """The median of values that each stand there so many times, one at least."""
    ordered = sorted(pairs)
    ends = list(accumulate(times for _, times in ordered))
    low, high = (ordered[bisect_right(ends, place)][0] for place in ((ends[-1] - 1) // 2, ends[-1] // 2))
    return (low + high) / 2
