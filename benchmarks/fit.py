"""Measures the fit of the deceleration: its cost, the coverage of its intervals, the errors of its forecasts.

`python -m benchmarks.fit WHAT` prints one table in Markdown; benchmarks/README.md has those of the last measurement.

    speed               seconds of a fit and of 1,000 bootstrap fits, beside a loop over scipy's curve_fit
    coverage [--curves 200] [--only laptop]   share of 95 % intervals that hold the planted value, and of statuses
    pooled [--curves 200]   what intervals over seeds cover, from 3, 6 and 10 seeds
    forecast FILE...    errors at T of forecasts from the first 3 to 50 % of finished runs
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
from scipy.optimize import curve_fit

from zslx.deceleration.curve_file import read
from zslx.deceleration.fit import fit
from zslx.deceleration.fit_options import FitOptions
from zslx.deceleration.forecast import forecast
from zslx.deceleration.intervals import MEASURES
from zslx.deceleration.loss_curve import Curve
from zslx.deceleration.planted_curves import EARLY, LATE, SETTINGS, STRAIGHT, Planted, coverage, pooled_coverage


def speed() -> None:
    """Times, each the median of three."""
    print(
        "| curve | plain fit | fit + 1,000 bootstrap fits | curve_fit in a loop, 1,000 (from 20) |\n|---|---|---|---|"
    )
    for name in ("laptop smooth ρ=0.3", "paper smooth ρ=0.3"):
        planted = SETTINGS[name]
        curve = planted.draw(np.random.default_rng(0))
        fit(curve)
        plain = _median(lambda c=curve: fit(c, FitOptions(bootstrap=0)))
        boot = _median(lambda c=curve: fit(c, FitOptions(bootstrap=1000)))
        loop = _median(lambda p=planted, c=curve: _loop(p, c, 20)) * 50
        print(f"| {name}, {len(curve.steps):,} steps | {plain:.2f} s | {boot:.2f} s | {loop:.0f} s |", flush=True)


def _loop(planted: Planted, curve: Curve, count: int) -> None:
    """The plain way: resample the curve of all steps, and call curve_fit from the optimum."""
    kept = curve.after(10)
    x, y = np.log(kept.steps), kept.log_losses
    generator = np.random.default_rng(0)

    def form(x, log_b, c0, c1, log_d, f):
        return log_b - c0 * x - c1 * f * np.logaddexp(0, (x - log_d) / f)

    start = [*planted.theta[:4], planted.f]
    fitted = form(x, *start)
    for _ in range(count):
        curve_fit(form, x, fitted + generator.permutation(y - fitted), p0=start, method="dogbox")


def _median(call) -> float:
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def show_coverage(curves: int, only: str, bootstrap: int) -> None:
    """One row for each setting; progress goes to stderr."""
    print(f"| {curves} curves each | break | L_d | t_d | r_d | L̂_T |\n|---|---|---|---|---|---|")
    for name, planted in {**SETTINGS, **LATE, **STRAIGHT, **EARLY}.items():
        if only not in name:
            continue
        begin = time.perf_counter()
        result = coverage(planted, curves, bootstrap=0 if name in STRAIGHT else bootstrap)
        given = result.statuses["break"]
        cells = " | ".join(f"{100 * result.covered[n]:.1f} %" if given else "–" for n in MEASURES)
        print(f"| {name} | {given}/{curves} | {cells} |", flush=True)
        print(f"{name}: {time.perf_counter() - begin:.0f} s, {result}", file=sys.stderr, flush=True)


def show_pooled(studies: int) -> None:
    """One row for each number of seeds: what intervals over seeds cover, levels and paired differences."""
    print("| seeds | identified | " + " | ".join(f"{n} | Δ{n}" for n in MEASURES) + " |")
    print("|---|---|" + "---|---|" * len(MEASURES))
    for seeds in (3, 6, 10):
        found = pooled_coverage(seeds, studies)
        cells = " | ".join(f"{100 * found.levels[n]:.1f} % | {100 * found.differences[n]:.1f} %" for n in MEASURES)
        print(f"| {seeds} | {100 * found.identified:.0f} % | {cells} |", flush=True)


def show_forecasts(files: list[str]) -> None:
    """Errors of log loss at T in per cent, and after ± the half-width of the interval."""
    print("| run | seen | fit | inside its interval | plain power law |\n|---|---|---|---|---|")
    for file in files:
        for share in (0.03, 0.1, 0.2, 0.3, 0.5):
            f = forecast(read(file), share=share)
            half = 50 * float(np.log(f.fit.interval[1] / f.fit.interval[0]))
            print(
                f"| {file.rsplit('/', 1)[-1]} | {share:.0%} | {100 * (f.fit.error or 0):+.2f} ± {half:.2f} % | "
                f"{'yes' if f.fit.covered else 'no'} | {100 * (f.power_law.error or 0):+.2f} % |",
                flush=True,
            )


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "coverage", "pooled", "forecast"])
    parser.add_argument("files", nargs="*")
    parser.add_argument("--curves", type=int, default=200)
    parser.add_argument("--only", default="", help="settings whose name has this in it")
    parser.add_argument("--bootstrap", type=int, default=300)
    args = parser.parse_args()
    if args.what == "speed":
        speed()
    elif args.what == "coverage":
        show_coverage(args.curves, args.only, args.bootstrap)
    elif args.what == "pooled":
        show_pooled(args.curves)
    else:
        show_forecasts(args.files)


if __name__ == "__main__":
    main()
