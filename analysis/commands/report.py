"""`zslx report RESULTS`: table and HTML report of a study, or of several that share a baseline, from the records."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.inference.pooled_breaks import PooledBreaks
    from analysis.inference.rows import Comparison

WIDTH = 160  # of the name of a report: those of two studies
MODES = ("off", "offline", "online")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from analysis.commands.compare import add_studies

    add_studies(parser)
    parser.add_argument("--out", type=Path, help="the file to write (default: RESULTS/<study>.html)")
    what = "also make a report and a run of the study in wandb, or in files if there is no account (online)"
    parser.add_argument("--wandb", choices=MODES, nargs="?", const="online", help=what)


def run(args: argparse.Namespace) -> int:
    """Print the table, write the report; its path comes last, alone on a line."""
    breaks, comparison, out = make(args)
    if args.wandb not in (None, "off"):
        from analysis.commands.to_wandb import report_in_wandb

        for line in report_in_wandb(breaks, comparison, out, args.wandb):
            print(line)
    print(out.resolve())
    return 0


def make(args: argparse.Namespace) -> tuple[PooledBreaks, Comparison, Path]:
    """Print the table, write the report; the study, what it says, and the report's path."""
    from analysis.commands.compare import load_fitted
    from analysis.inference.compare import compare_study
    from analysis.report.headline import print_comparison
    from analysis.report.report import write_report
    from zslx.slug import slug

    breaks = load_fitted(args)
    comparison = compare_study(breaks)
    print_comparison(comparison, sys.stdout)
    out = args.out or breaks.study.folder.parents[1] / f"{slug(comparison['study'], WIDTH)}.html"
    return breaks, comparison, write_report(breaks, out, comparison)
