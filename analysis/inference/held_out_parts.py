"""Who gains at whose expense: an arm's held-out loss at T by domain and by frequency, and its last doubling by domain.

Every arm of a size is measured on the same held-out tokens, whatever it trained on. Losses of a part are read at T as
the loss of all tokens is (analysis/study/measures.py), and their differences to the baseline paired by seed. They
describe; the rule does not read them, and nothing corrects for their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from analysis.inference.contrasts import as_dict, contrast, mean_interval
from analysis.inference.rows import Difference, DomainChanges, HeldOutParts, Part
from analysis.study.doublings import Doubling
from analysis.study.load import Trial
from analysis.study.measures import Measures

BY_DOMAIN, BY_FREQUENCY = "heldout_by_domain.", "heldout_by_frequency."


def held_out_parts(measures: Measures, arm: str, size: str) -> HeldOutParts:
    """An arm at a size, with its paired differences to the baseline; empty where nothing was recorded."""
    base = measures.study.baseline.name
    own = _by_seed(measures, arm, size)
    others = _by_seed(measures, base, size) if arm != base else {}
    return {
        "by_domain": _parts(measures, own, others, BY_DOMAIN),
        "by_frequency": _parts(measures, own, others, BY_FREQUENCY),
        "last_doubling": _last_doubling(measures, own, others),
    }


def _by_seed(measures: Measures, arm: str, size: str) -> dict[int, Trial]:
    return {t.seed: t for t in measures.study.of(arm, size)} if size in measures.horizon else {}


def _parts(measures: Measures, own: Mapping[int, Trial], others: Mapping[int, Trial], prefix: str) -> dict[str, Part]:
    """The parts under a prefix by name, in the order of the records."""
    keys = dict.fromkeys(key for trial in own.values() for key in trial.values if key.startswith(prefix))
    found: dict[str, Part] = {}
    for key in keys:
        logs = {seed: measures.log_loss(trial, key=key) for seed, trial in own.items()}
        theirs = {seed: measures.log_loss(trial, key=key) for seed, trial in others.items() if seed in own}
        found[key.removeprefix(prefix)] = {
            "loss": mean_interval(np.exp(list(logs.values()))),
            "difference": _paired(logs, theirs),
        }
    return found


def _last_doubling(measures: Measures, own: Mapping[int, Trial], others: Mapping[int, Trial]) -> DomainChanges | None:
    """Means over seeds of the last doubling; only seeds whose steps and domains are those of the first one count."""
    runs = {seed: last for seed, trial in own.items() if (last := measures.last_doubling(trial)) is not None}
    if not runs:
        return None
    first = next(iter(runs.values()))
    runs = {seed: d for seed, d in runs.items() if (d.start, d.end, d.names) == (first.start, first.end, first.names)}
    shares = {seed: d.between_share for seed, d in runs.items()}
    theirs = {
        seed: last.between_share
        for seed, trial in others.items()
        if seed in runs and (last := measures.last_doubling(trial)) is not None
    }
    return {
        "start": first.start,
        "end": first.end,
        "seeds": len(runs),
        "names": list(first.names),
        "between": _mean_matrix(runs.values()),
        "shift": {name: mean_interval([d.shift[i] for d in runs.values()]) for i, name in enumerate(first.names)},
        "between_share": mean_interval(list(shares.values())),
        "difference": _paired(shares, theirs),
    }


def _mean_matrix(runs: Iterable[Doubling]) -> list[list[float | None]]:
    """The mean over seeds of each entry, None where no seed has one."""
    stacked = np.stack([d.between for d in runs])
    known = np.isfinite(stacked)
    counts = known.sum(axis=0)
    means = np.where(known, stacked, 0.0).sum(axis=0) / np.maximum(counts, 1)
    return [[float(m) if n else None for m, n in zip(*row, strict=True)] for row in zip(means, counts, strict=True)]


def _paired(own: Mapping[int, float], others: Mapping[int, float]) -> Difference | None:
    return as_dict(contrast([own[seed] - others[seed] for seed in own if seed in others])) if others else None
