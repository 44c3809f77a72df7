"""`zslx fit FILE... [--json]`: fit loss curves and print L_d, t_d, r_d, L̂_T, or say why they are not given.

A file that cannot be read or fitted gets one line on stderr, the others are fitted all the same, and the exit
code is 1. A fit that ran exits 0, whatever its status. `--json` prints one list in the order of the arguments;
a file that failed stands in it with `status: "error"` when at least one other file was fitted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from typing import Any

from zslx.deceleration.binning import SMOOTHINGS
from zslx.deceleration.curve_file import Curve, CurveError, read
from zslx.deceleration.fit import Fit, fit_curve, local_slope, loss_at, tail_slope
from zslx.deceleration.forecast import forecast_curve
from zslx.deceleration.slopes import Band
from zslx.printable import printable

KEYS = (
    *("status", "reason", "b", "c0", "c1", "d1", "f1", "a", "L_d", "t_d", "r_d", "L_T_hat", "L_T", "T", "rsle"),
    *("breaks", "ci95", "ci_method", "profile_t_d", "sensitivity", "criterion", "second"),
    *("transient", "smoothing", "protocol"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `zslx fit`."""
    parser.description = "Fit a broken power law to loss curves and say where they decelerate."
    parser.add_argument("files", nargs="+", metavar="FILE", help="CSV with step and loss, JSON lines, or a run folder")
    parser.add_argument(
        "--columns",
        type=_columns,
        default=("step", "loss"),
        metavar="STEP,LOSS",
        help="names of the two columns in a CSV or JSON lines, such as _step,probe/heldout_loss (default step,loss)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list, an object a file")
    parser.add_argument("--smoothing", choices=SMOOTHINGS, help="moving average (default centred)")
    parser.add_argument("--transient", type=_whole, metavar="S", help="keep steps > S only")
    parser.add_argument("--protocol", choices=["paper"], help="the published protocol, numbers whatever the status")
    parser.add_argument("--warmup", type=_whole, metavar="W", help="warm-up in steps, where the file does not say")
    parser.add_argument("--breaks", choices=["auto", "0", "1", "2"], default="auto", help="number of breaks")
    parser.add_argument("--irreducible", action="store_true", help="fit an irreducible loss a too")
    parser.add_argument("--robust", action="store_true", help="Huber's loss: outliers count little")
    parser.add_argument(
        "--bootstrap", type=_whole, default=1000, metavar="N", help="replicates for intervals (default 1000, 0: none)"
    )
    parser.add_argument("--seed", type=_whole, default=0, help="seed of the replicates (default 0)")
    parser.add_argument(
        "--forecast", type=_share, metavar="X", help="also forecast L at the end from the first share X of the steps"
    )


def _columns(text: str) -> tuple[str, str]:
    step, comma, loss = (part.strip() for part in text.partition(","))
    if not (step and comma and loss) or "," in loss:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not two names joined by a comma, such as step,loss")
    return step, loss


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
        value = float("nan")
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a share between 0 and 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Fit each file, print, and return the exit code."""
    results: list[dict[str, Any]] = []
    failed = 0
    for file in args.files:
        try:
            curve = read(file, args.columns)
            if args.protocol == "paper" and args.smoothing is None and curve.gap > 1:
                print(
                    f"zslx fit: {printable(file)}: its points are {curve.gap:g} steps apart, so it may be smoothed "
                    "already, and the paper's moving average smooths it once more; --smoothing none takes it as it is",
                    file=sys.stderr,
                )
            result = _fit(curve, args)
        except ValueError as error:
            failed += 1
            line = str(error) if isinstance(error, CurveError) else f"{file}: {error}"
            print(f"zslx fit: {printable(line)}", file=sys.stderr)
            results.append({"file": file, **dict.fromkeys(KEYS), "status": "error", "error": printable(line)})
            continue
        results.append(_record(file, curve, result, args))
        if not args.json:
            print(_text(results[-1]))
    if args.json and failed < len(args.files):
        print(json.dumps(results, indent=1, allow_nan=False))
    return 1 if failed else 0


def _fit(curve: Curve, args: argparse.Namespace) -> Fit:
    if args.warmup is not None:
        curve = dataclasses.replace(curve, warmup=args.warmup)
    return fit_curve(
        curve,
        breaks=args.breaks if args.breaks == "auto" else int(args.breaks),
        smoothing=args.smoothing,
        transient=args.transient,
        protocol=args.protocol,
        irreducible=args.irreducible,
        robust=args.robust,
        bootstrap=args.bootstrap,
        seed=args.seed,
    )


def _record(file: str, curve: Curve, result: Fit, args: argparse.Namespace) -> dict[str, Any]:
    record = {"file": file, **{key: value for key, value in result.as_dict().items() if key in KEYS}}
    record |= _cut_robust(curve, result.transient)
    if args.forecast is not None:
        record["forecast"] = _forecast(curve, result, args)
    return record


def _cut_robust(curve: Curve, cut: float) -> dict[str, Any]:
    """Tail slope, local slope and loss at fixed steps, each null where the curve is too short for it."""
    fixed = [s for s in (10.0**k for k in range(1, 9)) if cut < s < curve.steps[-1]] + [float(curve.steps[-1])]
    record: dict[str, Any] = {}
    for name, measure in (
        ("tail_slope", lambda: list(tail_slope(curve.steps, curve.losses))),
        ("local_slope", lambda: _band(local_slope(curve.steps, curve.losses, transient=cut, places=20))),
        ("loss_at", lambda: _band(loss_at(curve.steps, curve.losses, fixed, transient=cut))),
    ):
        try:
            record[name] = measure()
        except ValueError:
            record[name] = None
    return record


def _band(band: Band) -> dict[str, list[float | None]]:
    return {name: [float(v) if math.isfinite(v) else None for v in column] for name, column in band._asdict().items()}


def _forecast(curve: Curve, result: Fit, args: argparse.Namespace) -> dict[str, Any]:
    """The forecast from the first share of the steps, or why there is none."""
    options = {"transient": result.transient, "bootstrap": args.bootstrap, "seed": args.seed}
    try:
        return forecast_curve(curve, share=args.forecast, **options).as_dict()
    except ValueError as error:
        return {"share": args.forecast, "error": str(error)}


def _text(record: dict[str, Any]) -> str:
    """A paragraph for the terminal."""
    cut = f"steps > {record['transient']:g} of {record['T']}, smoothing {record['smoothing']}"
    protocol = ", the paper's protocol" if record["protocol"] else ""
    lines = [f"{printable(record['file'])}  ({cut}{protocol})"]
    reason = f": {record['reason']}" if record["reason"] else ""
    lines.append(f"  status  {record['status']}{reason}")
    for name, meaning, form in (
        ("L_d", "loss at deceleration", "{:.4f}"),
        ("t_d", "step of deceleration", "{:.0f}"),
        ("r_d", "slope after it", "{:.5f}"),
        ("L_T_hat", "loss at T by the asymptotes", "{:.4f}"),
    ):
        if record[name] is not None:
            interval = _range(record["ci95"][name], form)
            lines.append(f"  {name:<8}{form.format(record[name]):>9}  {interval:<22}{meaning}")
    if record["tail_slope"]:
        value, low, high = record["tail_slope"]
        lines.append(f"  tail    {value:9.5f}  {_range([low, high], '{:.5f}'):<22}slope over the last factor of 4")
    off = "" if record["rsle"] is None else f"; the fit misses the points by {record['rsle']:.2g} in log loss"
    lines.append(f"  L_T     {record['L_T']:9.4f}  {'':<22}smoothed loss at T{off}")
    lines += _forecast_text(record["forecast"]) if "forecast" in record else []
    rows = [row for row in record["sensitivity"] if row["t_d"] is not None]
    if rows:
        lines.append("  how the one-break fit moves:    cut  smoothing      L_d       t_d       r_d")
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
        lines.append(f"    {name:<10}{e['L']:9.4f}  {_range(e['interval'], '{:.4f}'):<22}{missed}  ({form})")
    return lines


def _range(interval: list[float] | None, form: str) -> str:
    return f"[{form.format(interval[0])}, {form.format(interval[1])}]" if interval else ""
