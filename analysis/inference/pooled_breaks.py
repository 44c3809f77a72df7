"""L_d, t_d and r_d of every arm and size from fits pooled over seeds, and their paired differences to the baseline.

The protocol is declared by the study, and is the same for all arms of a size:
    curve      the mean over seeds of the log training loss ("training"), as in the zero-sum learning paper (arXiv
               2506.05447); that of the held-out loss ("heldout") where an arm trains on other text or other lengths
               than the baseline, or averages its weights. The other curve is fitted as well, and stands beside it
    form       a power law with one break
    early cut  the end of the early phase in the baseline's pooled curve, where it shows one (zslx/deceleration/fit.py)

The numbers are always given. `identified` says whether the data place the break (zslx/deceleration/break_status.py);
where they do not, the numbers describe the curve and claim nothing. Intervals are over seeds, with the same random
weights of the seeds in both arms of a difference (zslx/deceleration/pooled_fit.py).

How a difference in the last loss comes about follows from L̂_T = L_d (t_d/T)^{r_d}:

    Δ log L̂_T = Δ log L_d + r̄ Δ log t_d + (mean log t_d − log T) Δ r_d         r̄: the mean of the two slopes

exactly, since the last two terms are those of a product of two differences taken at the midpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.inference.contrasts import CONFIDENCE, Contrast
from analysis.inference.looks import confidence_at
from analysis.inference.rows import Interval, PooledBreak
from analysis.inference.size_trends import LEAST_SIZES, slope_weights
from analysis.numbers import count
from analysis.study.load import load_study
from analysis.study.measures import Measures
from zslx.deceleration.fit import fit
from zslx.deceleration.fit_options import FitOptions
from zslx.deceleration.intervals import MEASURES
from zslx.deceleration.loss_curve import Curve, curve
from zslx.deceleration.pooled_fit import CUT_SHARES, PooledFit, pool, pooled_fit, spread_over_seeds

Array = NDArray[np.float64]

CURVES = {"heldout": "none", "training": "centred"}  # and the smoothing of their fits: held-out curves are thin already
BREAK_MEASURES = ("L_d", "t_d", "r_d")


class PooledBreaks:
    """The pooled fits of a study, each made once."""

    def __init__(self, measures: Measures):
        self.measures, self.study = measures, measures.study
        self.kind = self.study.curve
        if self.kind not in CURVES:
            raise ValueError(f"{self.study.folder}: protocol.curve is {self.kind!r}; allowed: {', '.join(CURVES)}")
        self.confidence = confidence_at(self.study.looks, len(self.study.seeds))  # of paired differences
        self._read: dict[tuple[str, str, str], dict[int, Curve]] = {}
        self._fits: dict[tuple[str, str, str, tuple[int, ...]], PooledFit | None] = {}

    @cached_property
    def cuts(self) -> dict[tuple[str, str], tuple[float, float | None]]:
        """(early cut, end of the early phase or None) of each (curve, size), in t; from the baseline's curves."""
        found = {}
        for kind, smoothing in CURVES.items():
            for size in self.measures.horizon:
                if curves := self.curves(kind, self.study.baseline.name, size):
                    at = fit(pool(list(curves.values())), FitOptions(smoothing=smoothing, bootstrap=0))
                    found[kind, size] = (at.transient, at.early_phase)
        return found

    def fit(self, arm: str, size: str, kind: str | None = None, seeds: Iterable[int] | None = None) -> PooledFit | None:
        """The pooled fit of an arm at a size, over all its finished seeds or those given.

        None where no curve is there, or it is too short for a fit.
        """
        kind = kind or self.kind
        curves = self.curves(kind, arm, size)
        chosen = tuple(sorted(curves.keys() & set(seeds))) if seeds is not None else tuple(sorted(curves))
        key = (kind, arm, size, chosen)
        if key not in self._fits:
            self._fits[key] = None
            if chosen and (kind, size) in self.cuts:
                try:
                    cut = self.cuts[kind, size][0]
                    self._fits[key] = pooled_fit([curves[s] for s in chosen], cut, smoothing=CURVES[kind])
                except ValueError:  # too few points after the cut, or no step in common
                    pass
        return self._fits[key]

    def curves(self, kind: str, arm: str, size: str) -> dict[int, Curve]:
        """The curve of each finished seed, over t."""
        if size not in self.measures.horizon:
            return {}
        if (kind, arm, size) in self._read:
            return self._read[kind, arm, size]
        read = self.measures.curve if kind == "heldout" else self.measures.training_curve
        found = {}
        for trial in self.study.of(arm, size):
            t, losses = read(trial)
            good = np.isfinite(losses) & (losses > 0)
            if good.any():
                found[trial.seed] = curve(t[good], losses[good], warmup=trial.warmup)
        self._read[kind, arm, size] = found
        return found

    def both(
        self, arm: str, size: str, kind: str | None = None, against: str | None = None
    ) -> tuple[PooledFit, PooledFit] | None:
        """(arm, baseline or `against`) over the seeds that both have."""
        kind = kind or self.kind
        base = against or self.study.baseline.name
        shared = self.shared(arm, size, kind, base)
        pair = self.fit(arm, size, kind, shared), self.fit(base, size, kind, shared)
        return (pair[0], pair[1]) if pair[0] and pair[1] else None

    def shared(self, arm: str, size: str, kind: str, against: str) -> frozenset[int]:
        """The seeds whose curves both arms have."""
        return frozenset(self.curves(kind, arm, size).keys() & self.curves(kind, against, size).keys())

    # What the comparison shows.

    def protocol(self) -> dict[str, Any]:
        """How the breaks of this study are fitted."""
        cuts: dict[str, dict[str, Any]] = {kind: {} for kind in CURVES}
        for (kind, size), (cut, end) in self.cuts.items():
            cuts[kind][size] = {"cut": cut, "early_phase": end}
        return {"curve": self.kind, "form": "one break", "pooled": "mean log loss of the seeds", "early_cuts": cuts}

    def cell(self, arm: str, size: str, kind: str | None = None) -> PooledBreak:
        """L_d, t_d, r_d, L_T_hat of an arm at a size, each with mean, low, high, n, identified; and the status."""
        found = self.fit(arm, size, kind)
        if found is None:
            return {"L_d": None, "t_d": None, "r_d": None, "L_T_hat": None, "break": None}
        numbers: dict[str, Interval] = {
            name: {"mean": r.mean, "low": r.low, "high": r.high, "n": found.seeds, "identified": found.identified}
            for name, r in found.ranges().items()
        }
        at = found.fit
        fitted = {"status": at.status, "reason": at.reason, "cut": found.cut, "rsle": at.rsle}
        return {
            "L_d": numbers["L_d"],
            "t_d": numbers["t_d"],
            "r_d": numbers["r_d"],
            "L_T_hat": numbers["L_T_hat"],
            "break": fitted | {"profile_t_d": at.profile_t_d},
        }

    def difference(
        self, arm: str, size: str, kind: str | None = None, against: str | None = None
    ) -> dict[str, Any] | None:
        """Paired differences of log L_d, log t_d, r_d and log L̂_T, their signs at other cuts, and the parts."""
        pair = self.both(arm, size, kind, against)
        if pair is None:
            return None
        return self._differ(*pair, size) | {"signs": {name: self._signs([pair], name) for name in BREAK_MEASURES}}

    def _differ(self, a: PooledFit, b: PooledFit, size: str) -> dict[str, Any]:
        last = math.log(self.measures.horizon[size])
        values, draws = a.estimate - b.estimate, a.draws - b.draws
        found: dict[str, Any] = {
            name: as_contrast(values[i], draws[:, i], a.seeds, self.confidence).as_dict()
            for i, name in enumerate(MEASURES)
        }
        parts, part_draws = shares(a.estimate, b.estimate, last), shares(a.draws, b.draws, last)
        found["parts"] = {
            name: as_contrast(parts[i], part_draws[:, i], a.seeds, self.confidence).as_dict()
            for i, name in enumerate(BREAK_MEASURES)
        }
        return found | {"identified": a.identified and b.identified}

    def differences(self, arm: str, kind: str, against: str | None = None) -> dict[str, Any]:
        """`difference` at each size, and the averages that may claim something."""
        sizes = [size for size in self.study.sizes if size in self.measures.horizon]
        averaged = {name: c.as_dict() if c else None for name, c in self.averaged(arm, sizes, kind, against).items()}
        return {"by_size": {size: self.difference(arm, size, kind, against) for size in sizes}, "averaged": averaged}

    def scale_parts(self) -> list[dict[str, Any]]:
        """What the baseline gets from scale: differences between neighbouring sizes, as in `difference`."""
        found, sizes, base = [], self.study.sizes, self.study.baseline.name
        ends = self.measures.horizon
        for small, large in pairwise(sizes):
            if not {small, large} <= ends.keys() or ends[small] != ends[large]:
                continue  # L̂_T is then at another T
            shared = self.curves(self.kind, base, small).keys() & self.curves(self.kind, base, large).keys()
            a, b = self.fit(base, large, seeds=shared), self.fit(base, small, seeds=shared)
            if a and b:
                found.append({"from": small, "to": large, **self._differ(a, b, large)})
        return found

    def averaged(
        self, arm: str, sizes: Sequence[str], kind: str | None = None, against: str | None = None
    ) -> dict[str, Contrast | None]:
        """Differences averaged over the sizes at which the break of both arms is identified.

        None where those are fewer than two (or than all, of a single size), or fewer than half of `sizes`.
        """
        pairs = self.identified(arm, sizes, kind, against)
        if not pairs:
            return dict.fromkeys(BREAK_MEASURES)
        base = against or self.study.baseline.name
        (seeds, *others) = {self.shared(arm, size, kind or self.kind, base) for size in pairs}
        if others:  # other seeds at other sizes: their draws are not paired
            return dict.fromkeys(BREAK_MEASURES)
        values = np.mean([a.estimate - b.estimate for a, b in pairs.values()], axis=0)
        draws = np.mean([a.draws - b.draws for a, b in pairs.values()], axis=0)
        return {
            name: as_contrast(values[i], draws[:, i], len(seeds), self.confidence)
            for i, name in enumerate(MEASURES)
            if name in BREAK_MEASURES
        }

    def identified(
        self, arm: str, sizes: Sequence[str], kind: str | None = None, against: str | None = None
    ) -> dict[str, tuple[PooledFit, PooledFit]]:
        """The pairs of fits that may claim something, by size: see `averaged`."""
        pairs = {size: p for size in sizes if (p := self.both(arm, size, kind, against))}
        there = {size: p for size, p in pairs.items() if p[0].identified and p[1].identified}
        return there if len(there) >= max(min(2, len(sizes)), len(sizes) / 2) else {}

    def signs(self, arm: str, sizes: Sequence[str], against: str | None = None) -> dict[str, list[float]]:
        """The averaged differences of r_d and L_d at each share of the cut, nan where a curve is too short for it."""
        pairs = list(self.identified(arm, sizes, against=against).values())
        return {name: self._signs(pairs, name) for name in ("r_d", "L_d")}

    @staticmethod
    def _signs(pairs: Sequence[tuple[PooledFit, PooledFit]], name: str) -> list[float]:
        at, found = MEASURES.index(name), []
        for share in CUT_SHARES:
            values = [(a.at_cuts[share], b.at_cuts[share]) for a, b in pairs]
            known = [float(x[at] - y[at]) for x, y in values if x is not None and y is not None]
            found.append(float(np.mean(known)) if known and len(known) == len(values) else math.nan)
        return found

    def trends(self, arm: str, parameters: Array) -> dict[str, Any]:
        """Slopes of log L_d, log t_d and r_d in log N over the sizes, or why there are none."""
        fits = [self.fit(arm, size) for size in self.study.sizes]
        there = [(f, n) for f, n in zip(fits, parameters, strict=True) if f]
        seeds = {frozenset(self.curves(self.kind, arm, s)) for s, f in zip(self.study.sizes, fits, strict=True) if f}
        different = len({n for _, n in there})
        if different < LEAST_SIZES:
            why = {"refused": f"{count(different, 'size')} with a fit; a trend needs {LEAST_SIZES}"}
            return dict.fromkeys(BREAK_MEASURES, why)
        if len(seeds) > 1 or there[0][0].seeds < 2:
            why = {"refused": "the sizes have other seeds, or a single one"}
            return dict.fromkeys(BREAK_MEASURES, why)
        weights = slope_weights(np.log([n for _, n in there]))
        values = np.einsum("s,sm->m", weights, [f.estimate for f, _ in there])
        draws = np.einsum("s,srm->rm", weights, [f.draws for f, _ in there])
        identified = all(f.identified for f, _ in there)
        return {
            name: as_contrast(values[i], draws[:, i], there[0][0].seeds).as_dict() | {"identified": identified}
            for i, name in enumerate(MEASURES)
            if name in BREAK_MEASURES
        }

    def fit_all(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Make every fit, of trials and of their means, so that what follows is quick."""
        trials = [t for t in self.study.trials if t.finished]
        pools = [(a.name, s, kind) for kind in CURVES for s in self.measures.horizon for a in self.study.arms]
        of = len(trials) + len(pools)
        self.measures.fit_all(lambda done, _: progress(done, of) if progress else None)
        for done, (arm, size, kind) in enumerate(pools, len(trials) + 1):
            self.fit(arm, size, kind)
            self.both(arm, size, kind)
            if progress:
                progress(done, of)
        self._read.clear()  # of thousands of trials these are gigabytes, and few are asked for again


def load(results: Path | str, study: str | None = None) -> PooledBreaks:
    """The pooled fits of one study, the newest by default. ValueError where there is none."""
    return PooledBreaks(Measures(load_study(results, study)))


def shares(arm: Array, base: Array, last: float) -> Array:
    """What L_d, t_d and r_d add to Δ log L̂_T: measures (..., 4) of both arms, log T -> (..., 3)."""
    slope, place = (arm[..., 2] + base[..., 2]) / 2, (arm[..., 1] + base[..., 1]) / 2
    moved = arm - base
    stacked: Array = np.stack([moved[..., 0], slope * moved[..., 1], (place - last) * moved[..., 2]], axis=-1)
    return stacked


def as_contrast(value: float, draws: Array, seeds: int, confidence: float = CONFIDENCE) -> Contrast:
    """An estimate with the t interval that its draws (R,) over seeds give."""
    spread = spread_over_seeds(draws[:, None], seeds)
    if spread is None:
        return Contrast(estimate=float(value), seeds=seeds, pairs=seeds)
    return Contrast.of(float(value), float(spread[0]), seeds, seeds, confidence)
