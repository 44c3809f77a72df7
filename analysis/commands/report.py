"""`zslx report RESULTS`: table and HTML report of a study, or of several that share a baseline, from the records."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

WIDTH = 160  # of the name of a report: those of two studies


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from analysis.commands.compare import add_studies

    add_studies(parser)
    parser.add_argument("--out", type=Path, help="the file to write (default: RESULTS/<study>.html)")


def run(args: argparse.Namespace) -> int:
    """Print the table, write the report; its path comes last, alone on a line."""
    from analysis.commands.compare import load_fitted
    from analysis.inference.compare import compare_study
    from analysis.report.headline import print_comparison
    from analysis.report.report import write_report
    from zslx.slug import slug

    breaks = load_fitted(args)
    comparison = compare_study(breaks)
    results = breaks.study.folder.parents[1]
    out = args.out or results / f"{slug(comparison['study'], WIDTH)}.html"
    print_comparison(comparison, sys.stdout)
    print(write_report(breaks, out, comparison).resolve())
    return 0
