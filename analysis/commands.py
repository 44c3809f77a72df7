"""`zslx compare RESULTS` prints the comparison of a study; `zslx report RESULTS` writes its HTML report.

Both rebuild everything from the records; nothing is trained.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--json", action="store_true", help="the whole comparison as one JSON object")


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--out", type=Path, help="the file to write (default: RESULTS/<study>.html)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, help="the results folder of one or more sweeps")
    parser.add_argument("--study", help="the study's name (default: the newest)")


def run_compare(args: argparse.Namespace) -> int:
    """Print the table and the answers, or JSON."""
    from analysis.compare import compare_study
    from analysis.table import print_comparison
    from zslx.records import dumps

    comparison = compare_study(_fitted(args.results, args.study))
    if args.json:
        print(dumps(comparison, indent=1))
    else:
        print_comparison(comparison, sys.stdout)
    return 0


def run_report(args: argparse.Namespace) -> int:
    """Write the report; its path comes last, alone on a line."""
    from analysis.compare import compare_study
    from analysis.report import slug, write_report
    from analysis.table import print_comparison

    measures = _fitted(args.results, args.study)
    comparison = compare_study(measures)
    out = args.out or args.results / f"{slug(comparison['study'])}.html"
    print_comparison(comparison, sys.stdout)
    print(write_report(measures, out, comparison).resolve())
    return 0


def _fitted(results: Path, study: str | None):
    """The study with its fits made, showing progress on a terminal where that takes long."""
    from analysis.measures import Measures
    from analysis.studies import load_study

    measures = Measures(load_study(results, study))
    start = time.monotonic()

    def progress(done: int, of: int) -> None:
        spent = time.monotonic() - start
        if sys.stderr.isatty() and spent > 2:
            left = spent / done * (of - done)
            print(
                f"\rfitting curves: {done} of {of}, {left:.0f} s left ",
                end="\n" if done == of else "",
                file=sys.stderr,
            )

    measures.fit_all(progress)
    return measures
