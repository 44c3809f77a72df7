"""Compares instruments between arms at the same held-out loss: does an arm reach it through less zero-sum learning?

D rises and M falls along every loss curve, so an arm that is ahead has a higher D at the same *step* just for being
ahead. Each instrument is therefore also compared at the same *held-out loss*. For both runs of a pair it is taken as a
function of log L, the running minimum of the loss, and the difference is averaged over the losses that both passed
through after the baseline's step T/4. At matched step the difference is averaged over the probes after T/4.

    lower at matched loss      the arm interferes less than the baseline did when it was as good
    lower at matched step only  explained by where on the curve the arm is

Approximate: linear interpolation between probes (about two a factor of 2). Checked on planted curves in
tests/unit/test_compare_measures.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from analysis.inference.contrasts import as_dict, pooled
from analysis.study.load import Trial
from analysis.study.measures import Measures

# key of the record → what it is. D: share of changes that cancel; M: mean size of a change, nats. Gradient interference
# is that of the body: the embedding's many coordinates, most of them idle in a batch, would drown it.
INSTRUMENTS = {
    "dt1_heldout.D": "D of one step, held-out",
    "dt1_heldout.M": "M of one step, held-out",
    "dt1_batch.D": "D of one step, its own batch",
    "dtt.D": "D from t to 2t, held-out",
    "dtt.M": "M from t to 2t, held-out",
    "grad_token.ratio": "gradient interference of tokens",
    "grad_sequence.ratio": "gradient interference of sequences",
    "first_order.C_g": "agreement C_g of token gradients",
}
GRID = 32  # losses at which a pair is compared


def mechanism(measures: Measures, arm: str, against: str) -> list[dict[str, Any]]:
    """One entry an instrument that both arms recorded: paired change at matched loss and at matched step."""
    study = measures.study
    other = {(t.size, t.seed): t for t in study.of(against)}
    found = []
    for key, label in INSTRUMENTS.items():
        tables = {}
        for name, matched in (("matched_loss", at_matched_loss), ("matched_step", at_matched_step)):

            def change(trial: Trial, key: str = key, matched: Any = matched) -> float:
                partner = other.get((trial.size, trial.seed))
                return math.nan if partner is None else matched(measures, trial, partner, key)

            tables[name] = as_dict(pooled(study.grid(arm, change)))
        if any(tables.values()):
            found.append({"instrument": key, "label": label, **tables})
    return found


def at_matched_loss(measures: Measures, arm: Trial, base: Trial, key: str) -> float:
    """Mean difference of the instrument over the losses that both runs passed through late; nan when none."""
    y, values = against_loss(measures, arm, key)
    y0, values0 = against_loss(measures, base, key)
    if len(y) < 2 or len(y0) < 2:
        return math.nan
    start = measures.log_loss(base, measures.horizon[base.size] / 4, loss_of(base))
    low, high = max(y[0], y0[0]), min(y[-1], y0[-1], start)
    if not low < high:
        return math.nan
    grid = np.linspace(low, high, GRID)
    return float(np.mean(np.interp(grid, y, values) - np.interp(grid, y0, values0)))


def against_loss(measures: Measures, trial: Trial, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(log held-out loss increasing, instrument) at the probes that lowered the loss."""
    t, values = measures.curve(trial, key)
    log_loss = np.array([measures.log_loss(trial, step, loss_of(trial)) for step in t])
    lower = np.isfinite(log_loss)
    t, values, log_loss = t[lower], values[lower], log_loss[lower]
    if not len(log_loss):
        return log_loss, values
    best = np.minimum.accumulate(log_loss)
    progress = np.concatenate([[True], best[1:] < best[:-1]])
    return log_loss[progress][::-1], values[progress][::-1]


def loss_of(trial: Trial) -> str:
    """The held-out loss of the weights that the instruments measure: those in training, where a method ships others."""
    trained = "heldout_loss_trained"
    return trained if trained in trial.values else "heldout_loss"


def at_matched_step(measures: Measures, arm: Trial, base: Trial, key: str) -> float:
    """Mean difference of the instrument over the baseline's probes after T/4; nan when there are none."""
    t, values = measures.curve(arm, key)
    t0, values0 = measures.curve(base, key)
    late = (t0 >= measures.horizon[base.size] / 4) & (t0 <= (t[-1] if len(t) else 0))
    if not late.any() or len(t) < 2:
        return math.nan
    return float(np.mean(np.interp(np.log(t0[late]), np.log(t), values) - values0[late]))
