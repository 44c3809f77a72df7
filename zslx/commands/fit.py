"""`zslx fit FILE... [--json]`: fits loss curves and prints L_d, t_d, r_d and L̂_T, or says why they are not given.

A file that cannot be read or fitted gets one line on stderr. The other files are fitted all the same, and the exit code
is 1. A fit that ran exits with 0, whatever its status. `--json` prints one list in the order of the arguments. A file
that failed stands in it with `status: "error"`, unless all failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from zslx.deceleration.binning import SMOOTHINGS
from zslx.deceleration.curve_file import STEP_AND_LOSS, Columns, CurveError, read
from zslx.deceleration.fit import IN_JSON, Fit, fit
from zslx.deceleration.fit_options import WIDEST, FitOptions
from zslx.deceleration.forecast import forecast
from zslx.deceleration.intervals import REPLICATES
from zslx.deceleration.loss_curve import Curve
from zslx.deceleration.slopes import Band, local_slope, loss_at, tail_slope
from zslx.printable import printable

DESCRIPTION = """\
Fit a broken power law to loss curves and say where they decelerate.

A FILE is one of these:
  CSV         a header line, commas between columns, one row a step. Column `step` has whole numbers that increase, and
              column `loss` nats per token, above 0. Other columns are ignored.
  JSON lines  an object with the keys `step` and `loss` on each line
  run folder  its steps.jsonl is read, and the warm-up from its config.json
Where the two columns have other names, --columns says which; rows without a loss are skipped then.

examples:
  zslx fit run.csv
  zslx fit results/trials/*/ --json
  zslx fit export.csv --columns _step,probe/heldout_loss

The answer is one of four words: break, no_break, break_outside (the break lies outside the curve) or not_identifiable
(the data do not say where it lies). Numbers have intervals where there is a break; elsewhere they stand in parentheses
and describe the fit only. docs/deceleration.md explains them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `zslx fit`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = DESCRIPTION
    parser.add_argument("files", nargs="+", metavar="FILE", help="a CSV file, a file of JSON lines, or a run folder")
    parser.add_argument(
        "--columns",
        type=_columns,
        default=STEP_AND_LOSS,
        metavar="STEP,LOSS",
        help="the names of the two columns, or of the two keys of JSON lines (default step,loss)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list, with an object for each file")
    parser.add_argument("--smoothing", choices=SMOOTHINGS, help="the moving average before the fit (default centred)")
    parser.add_argument("--transient", type=_whole, metavar="S", help="the early cut: fit the steps after S only")
    parser.add_argument("--protocol", choices=["paper"], help="the published protocol: numbers whatever the status")
    parser.add_argument(
        "--warmup", type=_whole, metavar="W", help="warm-up of the learning rate in steps, where the file does not say"
    )
    parser.add_argument(
        "--breaks", choices=["auto", "0", "1", "2"], default="auto", help="number of breaks (default: the data choose)"
    )
    parser.add_argument(
        "--widest", type=float, default=WIDEST, metavar="F",
        help="the largest width f of a break in log t (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--irreducible", action="store_true", help="also fit an irreducible loss a")
    parser.add_argument("--robust", action="store_true", help="use Huber's loss, under which outliers count little")
    parser.add_argument(
        "--bootstrap", type=_whole, default=REPLICATES, metavar="N",
        help="replicates for the intervals (default %(default)s, at least 50; 0: the delta method)",
    )  # fmt: skip
    parser.add_argument("--seed", type=_whole, default=0, help="seed of the replicates (default 0)")
    parser.add_argument(
        "--forecast", type=_share, metavar="X", help="also forecast the last loss from the first share X of the steps"
    )


def _columns(text: str) -> Columns:
    names = [part.strip() for part in text.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not two names joined by a comma, such as step,loss")
    return names[0], names[1]


def _whole(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a share between 0 and 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Fits each file, prints the results, and returns the exit code. ValueError where options exclude one another."""
    options = FitOptions(
        breaks=args.breaks if args.breaks == "auto" else int(args.breaks),
        smoothing=args.smoothing,
        transient=args.transient,
        protocol=args.protocol,
        widest=args.widest,
        irreducible=args.irreducible,
        robust=args.robust,
        bootstrap=args.bootstrap,
        seed=args.seed,
    )
    results: list[dict[str, Any]] = []
    failed = 0
    for file in args.files:
        try:
            with np.errstate(all="ignore"):  # losses of 1e300 overflow; what is not finite is null
                results.append(_fitted(file, args, options))
        except ValueError as error:
            failed += 1
            line = printable(str(error) if isinstance(error, CurveError) else f"{file}: {error}")
            print(f"zslx fit: {line}", file=sys.stderr)
            results.append({"file": file, **dict.fromkeys(IN_JSON), "status": "error", "error": line})
        else:
            if not args.json:
                print(_text(results[-1]))
    if args.json and failed < len(args.files):
        print(json.dumps(results, indent=1, allow_nan=False))
    return 1 if failed else 0


def _fitted(file: str, args: argparse.Namespace, options: FitOptions) -> dict[str, Any]:
    """The record of one file, as `--json` prints it."""
    curve = read(file, args.columns)
    if args.warmup is not None:
        curve = dataclasses.replace(curve, warmup=args.warmup)
    if options.protocol == "paper" and options.smoothing is None and curve.gap > 1:
        print(
            f"zslx fit: {printable(file)}: its points are {curve.gap:g} steps apart, so it may be smoothed already, "
            "and the paper's moving average smooths it once more; --smoothing none takes it as it is",
            file=sys.stderr,
        )
    result = fit(curve, options)
    record = {"file": file, **result.as_dict(), **_without_break(curve, result.transient)}
    if args.forecast is not None:
        record["forecast"] = _forecast(curve, result, args.forecast, options)
    return record


def _without_break(curve: Curve, cut: float) -> dict[str, Any]:
    """The measures that need no break, at fixed steps; None where the curve is too short for them."""
    fixed = [s for s in (10.0**k for k in range(1, 9)) if cut < s < curve.steps[-1]] + [float(curve.steps[-1])]
    record: dict[str, Any] = {}
    for name, measure in (
        ("tail_slope", lambda: list(tail_slope(curve))),
        ("local_slope", lambda: _band(local_slope(curve, transient=cut, places=20))),
        ("loss_at", lambda: _band(loss_at(curve, fixed, transient=cut))),
    ):
        try:
            record[name] = measure()
        except ValueError:
            record[name] = None
    return record


def _band(band: Band) -> dict[str, list[float | None]]:
    return {name: [float(v) if math.isfinite(v) else None for v in column] for name, column in band._asdict().items()}


def _forecast(curve: Curve, result: Fit, share: float, options: FitOptions) -> dict[str, Any]:
    """The forecast from the first share of the steps, or why there is none."""
    try:
        found = forecast(curve, share=share, transient=result.transient, bootstrap=options.bootstrap, seed=options.seed)
    except ValueError as error:
        return {"share": share, "error": str(error)}
    return found.as_dict()


def _text(record: dict[str, Any]) -> str:
    """The record as a paragraph for the terminal."""
    cut = f"steps > {record['transient']:g} of {record['T']}, smoothing {record['smoothing']}"
    protocol = ", the paper's protocol" if record["protocol"] else ""
    lines = [f"{printable(record['file'])}  ({cut}{protocol})"]
    reason = f": {record['reason']}" if record["reason"] else ""
    lines.append(f"  status  {record['status']}{reason}")
    for name, meaning, form in (
        ("L_d", "loss where it decelerates", "{:.4f}"),
        ("t_d", "step where it decelerates", "{:.0f}"),
        ("r_d", "slope after it", "{:.5f}"),
        ("L_T_hat", "loss at T by the slope r_d", "{:.4f}"),
    ):
        if record[name] is not None:
            interval = _range(record["ci95"][name], form)
            lines.append(f"  {name:<8}{form.format(record[name]):>9}  {interval:<22}{meaning}")
        elif record["estimate"] is not None:
            shown = f"({form.format(record['estimate'][name])})"
            lines.append(f"  {name:<8}{shown:>9}  {'not identified':<22}{meaning}")
    if record["tail_slope"]:
        value, *interval = record["tail_slope"]
        lines.append(f"  tail    {value:9.5f}  {_range(interval, '{:.5f}'):<22}slope over the last factor of 4")
    off = "" if record["rsle"] is None else f"; the fit misses the points by {record['rsle']:.2g} in log loss"
    lines.append(f"  L_T     {record['L_T']:9.4f}  {'':<22}smoothed loss at the last step T{off}")
    lines += _forecast_text(record["forecast"]) if "forecast" in record else []
    rows = [row for row in record["sensitivity"] if row["t_d"] is not None]
    if rows:
        lines.append("  with other choices:             cut  smoothing      L_d       t_d       r_d")
        for row in rows:
            label = f"{row['share']:g} × {row['of']}" if row["varied"] == "cut" else "other smoothing"
            lines.append(
                f"    {label:<24}{row['cut']:>9g}  {row['smoothing']:<9}{row['L_d']:>9.4g} {row['t_d']:>9.5g}"
                f" {row['r_d']:>9.4f}"
            )
    if any(record["ci95"].values()):
        lines.append(f"  intervals 95 %: {record['ci_method']}")
    return "\n".join(lines)


def _forecast_text(f: dict[str, Any]) -> list[str]:
    if "error" in f:
        return [f"  forecast  none: {f['error']}"]
    lines = [f"  forecast of L at step {f['at']} from the first {f['seen']} steps:"]
    for name, key in (("fit", "fit"), ("power law", "power_law")):
        e = f[key]
        form = f"{e['breaks']} breaks{' and an irreducible loss' if e['irreducible'] else ''}"
        missed = "" if e["error"] is None else f"off by {100 * e['error']:+.2f} %"
        lines.append(
            f"    {name:<10}{_number(e['L'], '{:.4f}'):>9}  {_range(e['interval'], '{:.4f}'):<22}{missed}  ({form})"
        )
    return lines


def _range(interval: Sequence[float | None] | None, form: str) -> str:
    return f"[{_number(interval[0], form)}, {_number(interval[1], form)}]" if interval else ""


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
