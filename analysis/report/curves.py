"""The curves that the figures draw: an arm's mean over its seeds, with a 95 % t band (of few seeds, their range).

Trials are brought to common places by linear interpolation in log t, of log L for losses. A place counts where two
seeds or more have it; with one seed the curve has no band. Differences are paired by seed before they are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.inference.contrasts import CONFIDENCE
from analysis.inference.pooled_breaks import PooledBreaks
from analysis.study.load import Trial
from analysis.study.measures import Measures
from analysis.study.step_records import edges
from zslx.deceleration.binning import bins
from zslx.deceleration.loss_curve import curve
from zslx.deceleration.pooled_fit import PooledFit, pool
from zslx.deceleration.slopes import local_slope

PLACES = 96
BAND_SEEDS = 4  # with fewer, t bands are so wide that nothing else is seen: the range of the seeds instead
Points = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Line:
    """x, y (M,) and, where there are seeds enough, a band low, high (M,)."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Line:
        """y and band through an increasing function."""
        ends = [None if v is None else function(v) for v in (self.low, self.high)]
        return Line(x=self.x, y=function(self.y), low=ends[0], high=ends[1])


def places(measures: Measures, size: str, start: float = 1.0) -> np.ndarray:
    """Log-spaced t from `start` to T of a size."""
    return np.geomspace(start, measures.horizon[size], PLACES)


def over_seeds(x: np.ndarray, table: Iterable[np.ndarray]) -> Line | None:
    """Mean and band of curves (n, M) at common places x (M,); nan where a curve has no value."""
    rows = np.array(list(table), dtype=np.float64).reshape(-1, len(x))
    counts = np.isfinite(rows).sum(axis=0)
    keep = counts >= min(2, len(rows))
    if not len(rows) or not keep.any():
        return None
    x, rows, counts = x[keep], rows[:, keep], counts[keep]
    mean = np.nansum(rows, axis=0) / counts
    if len(rows) < 2:
        return Line(x=x, y=mean)
    if len(rows) < BAND_SEEDS:
        return Line(x=x, y=mean, low=np.nanmin(rows, axis=0), high=np.nanmax(rows, axis=0))
    spread = np.sqrt(np.nansum((rows - mean) ** 2, axis=0) / (counts - 1) / counts)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, counts - 1) * spread
    return Line(x=x, y=mean, low=mean - half, high=mean + half)


def resample(points: Points, x: np.ndarray) -> np.ndarray:
    """Values at x, linear in log t, nan outside the curve."""
    t, values = points
    if not len(t):
        return np.full(len(x), np.nan)
    return np.interp(np.log(x), np.log(t), values, left=np.nan, right=np.nan)


def loss(measures: Measures, arm: str, size: str) -> Line | None:
    """Held-out loss: geometric mean over seeds."""
    x = places(measures, size)
    line = over_seeds(x, (_log_loss(measures, t, x) for t in measures.study.of(arm, size)))
    return line and line.map(np.exp)


def _log_loss(measures: Measures, trial: Trial, x: np.ndarray) -> np.ndarray:
    t, losses = measures.curve(trial)
    return resample((t, np.log(losses)), x)


def difference(measures: Measures, arm: str, against: str, size: str) -> Line | None:
    """Paired difference of held-out loss in per cent of the other arm's."""
    x = places(measures, size)
    other = {t.seed: _log_loss(measures, t, x) for t in measures.study.of(against, size)}
    line = over_seeds(
        x,
        (_log_loss(measures, t, x) - other[t.seed] for t in measures.study.of(arm, size) if t.seed in other),
    )
    return line and line.map(lambda d: 100 * np.expm1(d))


def training(breaks: PooledBreaks, arm: str, size: str) -> Line | None:
    """Training loss: geometric mean over the seeds and over bins of equal width in log t."""
    runs = breaks.curves("training", arm, size)
    if not runs:
        return None
    whole = pool(list(runs.values()))
    binned = bins(whole.steps, whole.log_losses, count=PLACES)
    return Line(x=np.exp(binned.x), y=np.exp(binned.y))


def fitted(breaks: PooledBreaks, arm: str, size: str, kind: str) -> tuple[Line, PooledFit] | None:
    """The curve of the pooled fit after its early cut, and the fit; None where there is none."""
    found = breaks.fit(arm, size, kind)
    if found is None or found.fit.form is None:
        return None
    x = places(breaks.measures, size, start=found.cut + 1)
    return Line(x=x, y=found.fit.curve(x)), found


def slope(measures: Measures, arm: str, size: str) -> Line | None:
    """Local slope −d log L / d log t; with one seed its own band from the residuals."""
    bands = []
    for trial in measures.study.of(arm, size):
        try:
            bands.append(local_slope(curve(*measures.curve(trial))))
        except ValueError:  # too few points for any window
            continue
    if len(bands) == 1:
        return Line(x=bands[0].steps, y=bands[0].value, low=bands[0].low, high=bands[0].high)
    x = places(measures, size)
    return over_seeds(x, (resample((b.steps, b.value), x) for b in bands))


def instrument(measures: Measures, arm: str, size: str, key: str) -> Line | None:
    """An instrument at the probe steps that its trials share."""
    series = [measures.curve(t, key) for t in measures.study.of(arm, size)]
    series = [s for s in series if len(s[0])]
    if not series:
        return None
    x = np.unique(np.concatenate([t for t, _ in series]))
    return over_seeds(x, (_exactly(s, x) for s in series))


def plane(measures: Measures, arm: str, size: str, kind: str) -> Line | None:
    """(D, M) of an instrument over training, each the mean over seeds, at the probe steps where both are there.

    D has no value, and M no logarithm, where an update moved nothing.
    """
    found = [instrument(measures, arm, size, f"{kind}.{key}") for key in "DM"]
    if found[0] is None or found[1] is None:
        return None
    _, at_d, at_m = np.intersect1d(found[0].x, found[1].x, return_indices=True)
    d, m = found[0].y[at_d], found[1].y[at_m]
    return Line(x=d[m > 0], y=m[m > 0])


def equal_change(change: float, low: float, high: float) -> Line | None:
    """Where M (1 − D) = `change`, for M between `low` and `high`; D from 0 to below 1."""
    m = np.geomspace(max(low, change), high, 100) if change < high else np.empty(0)
    d = 1 - change / m
    keep = d < 0.997
    return Line(x=d[keep], y=m[keep]) if keep.sum() > 1 else None


def _exactly(points: Points, x: np.ndarray) -> np.ndarray:
    found = np.full(len(x), np.nan)
    found[np.searchsorted(x, points[0])] = points[1]
    return found


def metric(measures: Measures, arm: str, size: str, key: str) -> Line | None:
    """What an intervention reported at each step, in bins of equal width in log t."""
    ends = edges(measures.horizon[size])
    summaries = (measures.steps(trial) for trial in measures.study.of(arm, size))
    return over_seeds(np.sqrt(ends[:-1] * ends[1:]), (s.metrics[key] for s in summaries if s and key in s.metrics))


def from_step(line: Line | None, first: float) -> Line | None:
    """The part of a line at t ≥ first."""
    if line is None or not (keep := line.x >= first).any():
        return line
    low, high = (None if v is None else v[keep] for v in (line.low, line.high))
    return Line(x=line.x[keep], y=line.y[keep], low=low, high=high)


def in_words(found: Mapping[str, Line]) -> str:
    """First, lowest and last value of each line, for readers who do not see it."""
    texts = []
    for arm, line in found.items():
        y = line.y[np.isfinite(line.y)]
        if len(y):
            texts.append(
                f"{arm} from {y[0]:.3g} to {y[-1]:.3g} at the last step (range {y.min():.3g} to {y.max():.3g})"
            )
    return "; ".join(texts)
