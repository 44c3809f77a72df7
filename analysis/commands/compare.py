"""`zslx compare RESULTS`: the comparison of a study, or of several that share a baseline, from the records alone."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from analysis.inference.pooled_breaks import PooledBreaks
from analysis.study.join import join
from analysis.study.load import load_study, place_of
from analysis.study.measures import Measures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_studies(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the whole comparison as one JSON object")
    form.add_argument("--csv", action="store_true", help="the numbers of each arm and size as CSV")
    form.add_argument("--latex", action="store_true", help="the table as LaTeX (booktabs)")


def add_studies(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which study is meant, or which are joined."""
    what = "a results folder (its newest study), a study's folder or name; several, of one baseline, are joined"
    parser.add_argument("studies", nargs="+", metavar="STUDY", help=what)
    parser.add_argument("--study", help="the study's name in the one results folder that is given")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where names are looked up (results)")


def run(args: argparse.Namespace) -> int:
    """Print the table and the answers, or what another program reads."""
    from analysis.inference.compare import compare_study
    from analysis.report.headline import print_comparison
    from analysis.report.table_formats import csv_text, latex_text
    from zslx.runs.json_files import dumps

    comparison = compare_study(load_fitted(args))
    if args.json:
        print(dumps(comparison, indent=1))
    elif args.csv or args.latex:
        print((csv_text if args.csv else latex_text)(comparison), end="")
    else:
        print_comparison(comparison, sys.stdout)
    return 0


def load_fitted(args: argparse.Namespace) -> PooledBreaks:
    """The study that is meant, with its curves fitted, showing progress on a terminal where that takes long."""
    if args.study and len(args.studies) > 1:
        raise ValueError(f"--study {args.study} names a study of one results folder, and {len(args.studies)} are given")
    places = [place_of(word, args.results) for word in args.studies]
    breaks = PooledBreaks(Measures(join([load_study(folder, args.study or name) for folder, name in places])))
    breaks.fit_all(show_progress())
    return breaks


def show_progress() -> Callable[[int, int], None]:
    """Tells on a terminal how many curves are fitted, where that takes long."""
    start = time.monotonic()

    def progress(done: int, of: int) -> None:
        spent = time.monotonic() - start
        if sys.stderr.isatty() and spent > 2:
            line = f"\rfitting curves: {done} of {of}, {spent / done * (of - done):.0f} s left "
            print(line, end="\n" if done == of else "", file=sys.stderr, flush=True)

    return progress
