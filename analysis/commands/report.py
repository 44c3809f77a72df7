"""`zslx report RESULTS`: table and HTML report of a study, rebuilt from its records alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, help="the results folder of one or more sweeps")
    parser.add_argument("--study", help="the study's name (default: the newest)")
    parser.add_argument("--out", type=Path, help="the file to write (default: RESULTS/<study>.html)")


def run(args: argparse.Namespace) -> int:
    """Print the table, write the report; its path comes last, alone on a line."""
    from analysis.commands.compare import load_fitted
    from analysis.inference.compare import compare_study
    from analysis.report.headline import print_comparison
    from analysis.report.report import write_report
    from zslx.slug import slug

    breaks = load_fitted(args.results, args.study)
    comparison = compare_study(breaks)
    out = args.out or args.results / f"{slug(comparison['study'], 80)}.html"
    print_comparison(comparison, sys.stdout)
    print(write_report(breaks, out, comparison).resolve())
    return 0
