"""`zslx compare RESULTS`: the comparison of a study, rebuilt from its records alone."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from analysis.inference.pooled_breaks import PooledBreaks, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, help="the results folder of one or more sweeps")
    parser.add_argument("--study", help="the study's name (default: the newest)")
    parser.add_argument("--json", action="store_true", help="the whole comparison as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the table and the answers, or JSON."""
    from analysis.inference.compare import compare_study
    from analysis.report.headline import print_comparison
    from zslx.runs.json_files import dumps

    comparison = compare_study(load_fitted(args.results, args.study))
    if args.json:
        print(dumps(comparison, indent=1))
    else:
        print_comparison(comparison, sys.stdout)
    return 0


def load_fitted(results: Path, study: str | None) -> PooledBreaks:
    """A study with its curves fitted, showing progress on a terminal where that takes long."""
    breaks = load(results, study)
    start = time.monotonic()

    def progress(done: int, of: int) -> None:
        spent = time.monotonic() - start
        if sys.stderr.isatty() and spent > 2:
            line = f"\rfitting curves: {done} of {of}, {spent / done * (of - done):.0f} s left "
            print(line, end="\n" if done == of else "", file=sys.stderr, flush=True)

    breaks.fit_all(progress)
    return breaks
