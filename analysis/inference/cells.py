"""What an arm measures at one size: losses, slopes, the break, instruments and cost, each with its interval."""

from __future__ import annotations

import math
from collections import Counter

from analysis.inference.compute import step_cost
from analysis.inference.contrasts import as_dict, contrast, mean_interval
from analysis.inference.held_out_parts import held_out_parts
from analysis.inference.matched_loss import INSTRUMENTS
from analysis.inference.pooled_breaks import CURVES, PooledBreaks
from analysis.inference.rows import Cell
from analysis.study.arm import Arm


def describe_cell(breaks: PooledBreaks, arm: Arm, at: int) -> Cell:
    """One arm at one size: means with 95 % t intervals over seeds, and the paired difference to baseline."""
    measures, study, size = breaks.measures, breaks.study, breaks.study.sizes[at]
    trials = list(study.of(arm.name, size)) if size in measures.horizon else []
    loss = [math.exp(measures.log_loss(t)) for t in trials]
    fits = {kind: breaks.cell(arm.name, size, kind) for kind in CURVES}
    difference = None
    if arm.role != "baseline":
        row = measures.paired(arm.name, study.baseline.name, measures.log_loss)[[at]]
        difference = as_dict(contrast(row, confidence=breaks.confidence))
    return {
        "arm": arm.name,
        "size": size,
        "finished": len(trials),
        "heldout_loss": mean_interval(loss),
        "tail_slope": mean_interval([measures.tail(t) for t in trials]),
        "break_status": dict(Counter(measures.fit(t).status for t in trials)),
        **fits[breaks.kind],
        "fits": fits,
        "difference": difference,
        "cost": step_cost(measures, arm.name, at),
        "step_seconds": mean_interval([measures.step_seconds(t) for t in trials], log=True),
        "instruments": {
            key: mean_interval([measures.instrument(t, key) for t in trials])
            for key in INSTRUMENTS
            if any(key in t.values for t in trials)
        },
        "held_out": held_out_parts(measures, arm.name, size),
    }
