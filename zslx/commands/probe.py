"""`zslx probe RUN...`: measure interference and decomposition on the checkpoints of finished runs, and draw them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from zslx.printable import printable
from zslx.tracking import MODES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `zslx probe`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Measure loss and gradient interference, the first-order decomposition of the run's update and the\n"
        "decomposition of cross-entropy at the checkpoints of finished runs.\n\n"
        "RUN may also be a series of checkpoints from elsewhere, in folders named as the hub's revisions are:\n"
        "SERIES/step0, SERIES/step512, ..., SERIES/step1000-tokens4B, with config.json and *.safetensors each.\n"
        "A folder of a single checkpoint is a series, too. It needs --text, the text to measure on. Its records and\n"
        "figures go to SERIES/zslx-probe.\n\n"
        "hf:OWNER/NAME is a series from the hub: the revisions that are named by a step, or else the main one. It is\n"
        "kept in ./NAME. While one checkpoint is measured the next is fetched; each is then deleted.\n\n"
        "With three sizes or more, the last table is the scaling law of cross-entropy and its terms: the slopes of\n"
        "log|term| over log N, N without embeddings, each model at its last checkpoint.\n\n"
        "Records go to RUN/probe.jsonl, figures to RUN/figures. What is there is not measured again: after an\n"
        "interruption the same command goes on.\n\n"
        "examples:\n"
        "  zslx probe runs/a runs/b --together figures\n"
        "  zslx probe hf:EleutherAI/pythia-14m --revisions step1,step512,step143000 --text notes\n"
        "  zslx probe hf:EleutherAI/pythia-{14m,70m,160m} --revisions 'step*000' --text notes --together figures"
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of a finished run or of a series of checkpoints, or hf:OWNER/NAME",
    )
    parser.add_argument(
        "--n", type=_tokens, default=1024, metavar="N", help="sampled tokens of the per-token gradients, or all"
    )
    parser.add_argument("--sequences", type=_positive, default=0, metavar="S", help="held-out sequences (the run's)")
    parser.add_argument("--seq-len", type=_positive, default=0, metavar="T", help="their length (the run's)")
    parser.add_argument("--steps", metavar="1,2,4", type=_steps, help="checkpoints (powers of two and the last)")
    parser.add_argument(
        "--text", default="", metavar="PATH", help="where the text of the runs lies now (data.path); the text of series"
    )
    parser.add_argument(
        "--revisions", default="", metavar="A,B*", help="of hf:OWNER/NAME: names and patterns (all that have a step)"
    )
    parser.add_argument("--keep", action="store_true", help="do not delete what was fetched: NAME becomes a series")
    parser.add_argument("--json", action="store_true", help="print the records as one JSON list, an object a run")
    parser.add_argument("--together", type=Path, metavar="DIR", help="also draw all runs on one set of figures there")
    parser.add_argument("--wandb", default="off", choices=MODES, help="log what was measured to wandb (default: off)")
    parser.add_argument("--no-figures", action="store_true", help="draw nothing")


def run(args: argparse.Namespace) -> int:
    from zslx.probing.hub_series import is_hub
    from zslx.probing.probe import ProbeSettings
    from zslx.progress import Progress

    if not any(map(is_hub, args.runs)) and (args.revisions or args.keep):
        raise ValueError("--revisions and --keep are about models of the hub: give hf:OWNER/NAME")

    settings = ProbeSettings(n=args.n, sequences=args.sequences, seq_len=args.seq_len)
    # Everything that is asked for is checked before the first measurement.
    probes = [_probe(name, settings, args) for name in dict.fromkeys(args.runs)]
    plans = [probe.steps(args.steps) for probe in probes]
    line = Progress("probe")
    for probe, steps in zip(probes, plans, strict=True):
        probe.before(steps, line.say)
    missing = [len(set(steps) - set(probe.records())) for probe, steps in zip(probes, plans, strict=True)]
    total, done = sum(missing) or 1, 0
    results = []
    for probe, steps, count in zip(probes, plans, missing, strict=True):

        def at(share: float, what: str, done: int = done, count: int = count, name: str = probe.name) -> None:
            line.at((done + share * count) / total, name, f", {what}")

        results.append(probe.measure(steps, at))
        done += count
    line.done(f"{sum(missing)} checkpoints measured, {sum(map(len, plans)) - sum(missing)} were there")
    if args.json:
        listed = [
            {"run": str(p.folder), "key": p.key, "probes": list(found.values())}
            for p, found in zip(probes, results, strict=True)
        ]
        print(json.dumps(listed, indent=1, allow_nan=False))
    else:
        for probe, found in zip(probes, results, strict=True):
            print(f"{printable(str(probe.folder))}\n{table(list(found.values()))}")
        print_trends(probes, results)
    if args.wandb != "off":
        log(probes, results, args.wandb)
    if not args.no_figures:
        draw(probes, results, args.together)
    return 0


def _probe(name: str, settings: Any, args: argparse.Namespace) -> Any:
    from zslx.probing.checkpoint_series import SeriesProbe, is_series
    from zslx.probing.hub_series import HubProbe, is_hub
    from zslx.probing.probe import RunProbe

    if is_hub(name):
        return HubProbe(name, settings, args.text, revisions=args.revisions, keep=args.keep)
    folder = Path(name)
    return SeriesProbe(folder, settings, args.text) if is_series(folder) else RunProbe(folder, settings, args.text)


def print_trends(probes: list[Any], results: list[dict[int, dict[str, Any]]]) -> None:
    """The scaling law of cross-entropy and its terms, from three sizes on."""
    from zslx.probing.series import Series, final_trends

    series = [Series.of(p.label, p.parameters, list(found.values())) for p, found in zip(probes, results, strict=True)]
    try:
        found = final_trends(series)
    except ValueError as error:  # of other counts of tokens: what was measured stands
        print(f"\n{error}")
        return
    if found:
        sizes = [one.parameters for one in series]
        print(f"\n{len(series)} models of {min(sizes):,} to {max(sizes):,} parameters: log|term| = c + α log N")
        print(trend_table(found))
        if len({p.measured_on for p in probes}) > 1:
            print(
                "Their texts or tokenizers differ, and so the tokens: error-entropy and confidence depend on the "
                "vocabulary."
            )


def log(probes: list[Any], results: list[dict[int, dict[str, Any]]], mode: str) -> None:
    from zslx.tracking.single import probed

    for probe, found in zip(probes, results, strict=True):
        try:
            probed(probe.folder, list(found.values()), mode)
        except Exception as error:  # what was measured is in the records
            print(printable(f"wandb: {type(error).__name__}: {error}; the records have everything"), file=sys.stderr)


def draw(probes: list[Any], results: list[dict[int, dict[str, Any]]], together: Path | None) -> None:
    from zslx.probing.figures import write_figures
    from zslx.probing.series import Series, scaling_record
    from zslx.runs.json_files import write_json

    series = [Series.of(p.label, p.parameters, list(found.values())) for p, found in zip(probes, results, strict=True)]
    for probe, one in zip(probes, series, strict=True):
        folder = write_figures([one], probe.folder / "figures")
        print(f"figures: {printable(str(folder))}", file=sys.stderr)
    if together is not None:
        print(f"figures of all runs: {printable(str(write_figures(series, together)))}", file=sys.stderr)
        if record := scaling_record(series):
            write_json(together / "scaling.json", record)


COLUMNS = (
    ("step", "{:d}", ("step",)),
    ("loss", "{:.4f}", ("heldout_loss",)),
    ("D(t−1,t)", "{:.3f}", ("dt1_heldout", "D")),
    ("M(t−1,t)", "{:.4f}", ("dt1_heldout", "M")),
    ("D(t/2,t)", "{:.3f}", ("dtt", "D")),
    ("D seq", "{:.4f}", ("grad_sequence", "ratio")),
    ("chance", "{:.4f}", ("grad_sequence", "chance_ratio")),
    ("D token", "{:.4f}", ("grad_token", "ratio")),
    ("±se", "{:.4f}", ("grad_token", "ratio_se")),
    ("chance", "{:.4f}", ("grad_token", "chance_ratio")),
    ("C_g", "{:.4f}", ("first_order", "C_g")),
    ("C_uG/C_ug", "{:.2f}", ("first_order", "ratio")),
    ("1st-order error", "{:.3f}", ("first_order", "error")),
    ("EE", "{:.3f}", ("decomposition", "ee")),
    ("SA", "{:.3f}", ("decomposition", "sa")),
    ("Conf", "{:.3f}", ("decomposition", "conf")),
)


def trend_table(trends: dict[str, Any]) -> str:
    """A line a term: slope, R², and how much the slope differs from that of cross-entropy, with 95 % intervals."""
    from zslx.deceleration.scaling_law import ScalingTrend
    from zslx.figure_style import TERMS

    rows = [["term", "α", "95 %", "R²", "α less that of cross-entropy", "95 %"]]
    for key, name in TERMS.items():
        trend = trends[key]
        if not isinstance(trend, ScalingTrend):
            rows.append([name, str(trend).partition(": ")[2], "", "", "", ""])
            continue
        gap = ["", ""] if key == "ce" else [_signed(trend.slope_gap), _between(trend.gap_interval)]
        r2 = "–" if trend.r2 is None else f"{trend.r2:.3f}"
        rows.append([name, _signed(trend.alpha), _between(trend.interval), r2, *gap])
    return _aligned(rows)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def _between(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"


def table(records: list[dict[str, Any]]) -> str:
    """A line a checkpoint; a dash where a number is missing."""
    rows = [[name for name, _, _ in COLUMNS]]
    for record in records:
        rows.append([_cell(record, form, path) for _, form, path in COLUMNS])
    return _aligned(rows)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def _cell(record: dict[str, Any], form: str, path: tuple[str, ...]) -> str:
    value: Any = record
    for key in path:
        if key == "ratio" and path[0] == "first_order":
            c_ug, c_ug_total = value.get("C_ug"), value.get("C_uG")
            value = c_ug_total / c_ug if c_ug and c_ug_total is not None else None
        else:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            return "–"
    return form.format(value)


def _tokens(text: str) -> int | str:
    return text if text == "all" else _positive(text)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _steps(text: str) -> list[int]:
    return [_positive(item) for item in text.split(",")]
